-- Gives a worker up to `want` waiting requests, by turn.
-- ARGV: worker, token, want, lease_ms, grace_ms, alone (1: it runs nothing), number of models, models ..., ids that it runs ...
-- Returns, flat: id, claim, epoch, model, waited_ms, crashes, and at its first claim the request ('' later)
run_when_full()
local worker, token, want, lease_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local grace_ms, alone, models = tonumber(ARGV[5]), ARGV[6] == '1', tonumber(ARGV[7])
local PATIENCE_MS = 30000
local at, mine, out = now_ms(), {}, {}
for i = 8 + models, #ARGV do mine[ARGV[i]] = true end

for i = 8, 7 + models do
  local model = ARGV[i]
  local queue = K.queue(model)
  local turn = false
  for _, id in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
    if #out >= 7 * want then break end
    local r = load_request(id)
    local crashes = tonumber(r.crashes or 0)
    if not r.state or r.state == 'ended' then
      redis.call('ZREM', queue, id)
    elseif mine[id] then
      -- its lease ran out under it; its next renewal gets it back, and a second copy here would fight with the first
    elseif abandoned(id, r, at, grace_ms) then
      finish(id, r, false, 'abandoned')
    elseif r.alone_since and r.keep ~= '1' then
      -- nobody listens at the moment: not dropped yet, and not worth a slot yet
    elseif crashes < 2 or (alone and #out == 0) then
      local claim = token .. '/' .. (#out / 7)
      local epoch = never_heard(r, tonumber(r.epoch) + 1, at)
      redis.call('HSET', K.request(id), 'state', 'running', 'worker', worker, 'claim', claim, 'claimed', at, 'epoch', epoch)
      if not r.started then redis.call('HSET', K.request(id), 'started', at, 'run_until', at + tonumber(r.run_ms)) end
      redis.call('ZREM', queue, id)
      redis.call('ZADD', K.running(model), at + lease_ms, id)
      turn = math.max(turn or 0, math.floor(tonumber(r.score)))
      local request = epoch == 1 and redis.call('GET', K.prompt(id)) or ''
      for _, value in ipairs({id, claim, epoch, model, at - tonumber(r.created), crashes, request}) do out[#out + 1] = value end
      if crashes >= 2 then want = 1 end  -- it has brought down two workers: it gets one to itself
    elseif at - tonumber(r.claimed) > PATIENCE_MS then
      break  -- it has waited long for an empty worker: take nothing more, so that this one becomes empty
    end
  end
  if turn then
    local past = tonumber(redis.call('HGET', K.turns(model), '') or 0)
    if turn > past and turn - past < 500000 then  -- low priority stands far behind and moves nobody's turn
      redis.call('HSET', K.turns(model), '', turn)
      redis.call('PEXPIRE', K.turns(model), 86400000)
    end
  end
end
return out
