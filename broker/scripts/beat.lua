-- A worker's heartbeat: that it lives, what it does, and the cards of its models.
-- ARGV: worker, ttl_ms, state, number of field-value pairs, fields and values ..., then name and card (msgpack) of each model
run_when_full()
local worker, ttl_ms, state, pairs_ = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local at, key, changed = now_ms(), K.worker(ARGV[1]), false
local fields = {'state', state, 'seen', at}
for i = 5, 4 + 2 * pairs_ do fields[#fields + 1] = ARGV[i] end
if redis.call('HGET', key, 'state') ~= state then changed = true end
redis.call('HSET', key, unpack(fields))
redis.call('PEXPIRE', key, ttl_ms)
redis.call('ZADD', K.workers(), at, worker)

-- A second worker that still loads, or that failed, does not hide that a first one is ready; nor do two ready workers
-- that differ (in the context that their memory allows) write over each other each second.
local function another_is_ready(model)
  for _, other in ipairs(redis.call('ZRANGE', K.serving(model), 0, -1)) do
    if other ~= worker and redis.call('HGET', K.worker(other), 'state') == 'ready' then return true end
  end
  return false
end

for i = 5 + 2 * pairs_, #ARGV, 2 do
  local model, card = ARGV[i], ARGV[i + 1]
  redis.call('ZADD', K.serving(model), at, worker)
  local known = redis.call('HGET', K.models(), model)
  if known ~= card then
    local shown = known and cmsgpack.unpack(known).state
    if not another_is_ready(model) or (state == 'ready' and shown ~= 'ready') then
      redis.call('HSET', K.models(), model, card)
      if not redis.call('HGET', K.since(), model) then redis.call('HSET', K.since(), model, at) end
      changed = true
    end
  end
end
if changed then redis.call('PUBLISH', K.events(), 'models') end
return at
