-- What time does: forgets silent workers, gives requests whose lease ran out to others, ends what is past its limits.
-- Every process calls it each half second; one call in 0.4 s works, so one living process is enough.
-- ARGV: heartbeat_ms, grace_ms, errors waited_too_long, ran_too_long, worker_lost (msgpack maps)
-- Returns {workers pruned, requests returned to their queue, requests ended}
run_when_full()
local heartbeat_ms, grace_ms = tonumber(ARGV[1]), tonumber(ARGV[2])
local PAUSE_MS = 2000  -- sweeps are half a second apart; more than this between two is a pause of all
local waited, ran, lost = cmsgpack.unpack(ARGV[3]), cmsgpack.unpack(ARGV[4]), cmsgpack.unpack(ARGV[5])
local at, returned, ended = now_ms(), 0, 0
local last = tonumber(redis.call('GET', K.swept()) or at - 1000)
if at - last < 400 then return {0, 0, 0} end
redis.call('SET', K.swept(), at)
local models, queues = redis.call('HKEYS', K.models()), {}
for _, model in ipairs(models) do
  for _, lane in ipairs(K.lanes) do queues[#queues + 1] = model .. lane end
end

if at - last > math.max(heartbeat_ms / 2, PAUSE_MS) then  -- Redis, or everybody, was away: nobody could renew anything, so all get their time again
  local function start_anew(key, score)
    for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do redis.call('ZADD', key, score, member) end
  end
  start_anew(K.workers(), at)
  for _, model in ipairs(models) do start_anew(K.serving(model), at) end
  for _, queue in ipairs(queues) do start_anew(K.running(queue), at + heartbeat_ms) end
  return {0, 0, 0}
end

local pruned = redis.call('ZREMRANGEBYSCORE', K.workers(), '-inf', at - heartbeat_ms)
for _, model in ipairs(models) do redis.call('ZREMRANGEBYSCORE', K.serving(model), '-inf', at - heartbeat_ms) end

for _, queue in ipairs(queues) do
  for _, id in ipairs(redis.call('ZRANGE', K.running(queue), 0, -1)) do
    local r = load_request(id)
    if r.state == 'running' then
      local lease = tonumber(redis.call('ZSCORE', K.running(queue), id))
      if at >= tonumber(r.run_until) then
        finish(id, r, false, 'error', ran)
        tell_worker(id, r)
        ended = ended + 1
      elseif abandoned(id, r, at, grace_ms) then
        finish(id, r, false, 'abandoned')
        tell_worker(id, r)
        ended = ended + 1
      elseif lease <= at then
        -- the lease and the heartbeat were not renewed in the same instant, so half the time of silence is a crash
        local beat = tonumber(redis.call('ZSCORE', K.workers(), r.worker) or 0)
        if beat < at - heartbeat_ms / 2 and crashed(id, r, lost) then
          ended = ended + 1
        else
          put_back(id, r, r.claim)  -- the claim stays: a worker that was only stuck regains it if nobody took it
          count(queue, 'requeued:lease')
          returned = returned + 1
        end
      end
    elseif redis.call('ZSCORE', K.running(queue), id) then
      redis.call('ZREM', K.running(queue), id)
    end
  end

  for _, id in ipairs(redis.call('ZRANGE', K.queue(queue), 0, -1)) do
    local r = load_request(id)
    if r.state ~= 'waiting' then
      redis.call('ZREM', K.queue(queue), id)
    elseif r.started and at >= tonumber(r.run_until) then  -- its worker went, and no other came
      finish(id, r, false, 'error', waited)
      ended = ended + 1
    elseif not r.started and at >= tonumber(r.wait_until) then
      finish(id, r, false, 'error', waited)
      ended = ended + 1
    elseif abandoned(id, r, at, grace_ms) then
      finish(id, r, false, 'abandoned')
      ended = ended + 1
    end
  end
end
if pruned > 0 then redis.call('PUBLISH', K.events(), 'workers') end
return {pruned, returned, ended}
