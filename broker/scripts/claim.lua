-- Gives a worker waiting requests, by turn: of its models' queues up to so many, and of those beside them up to so many.
-- ARGV: worker, token, lease_ms, grace_ms, alone (1: it runs nothing), how many of each of K.lanes ..., number of models, models ..., ids that it runs ...
-- Returns, flat: id, claim, epoch, model, queue, waited_ms, crashes, and at its first claim the request ('' later)
run_when_full()
local worker, token, lease_ms, grace_ms, alone = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5] == '1'
local first = 7 + #K.lanes
local last = first - 1 + tonumber(ARGV[first - 1])
local PATIENCE_MS = 30000
local at, mine, out, full = now_ms(), {}, {}, false
for i = last + 1, #ARGV do mine[ARGV[i]] = true end

-- Up to `want` requests of one queue; gives how many it took.
local function take(model, queue, want)
  local taken, turn = 0, false
  for _, id in ipairs(redis.call('ZRANGE', K.queue(queue), 0, -1)) do
    if taken >= want or full then break end
    local r = load_request(id)
    local crashes = tonumber(r.crashes or 0)
    if not r.state or r.state == 'ended' then
      redis.call('ZREM', K.queue(queue), id)
    elseif mine[id] then
      -- its lease ran out under it; its next renewal gets it back, and a second copy here would fight with the first
    elseif abandoned(id, r, at, grace_ms) then
      finish(id, r, false, 'abandoned')
    elseif r.alone_since and r.keep ~= '1' then
      -- nobody listens at the moment: not dropped yet, and not worth a slot yet
    elseif crashes < 2 or (alone and #out == 0) then
      local claim = token .. '/' .. (#out / 8)
      local epoch = never_heard(r, tonumber(r.epoch) + 1, at)
      redis.call('HSET', K.request(id), 'state', 'running', 'worker', worker, 'claim', claim, 'claimed', at, 'epoch', epoch)
      if not r.started then redis.call('HSET', K.request(id), 'started', at, 'run_until', at + tonumber(r.run_ms)) end
      redis.call('ZREM', K.queue(queue), id)
      redis.call('ZADD', K.running(queue), at + lease_ms, id)
      taken, turn = taken + 1, math.max(turn or 0, math.floor(tonumber(r.score)))
      local request = epoch == 1 and redis.call('GET', K.prompt(id)) or ''
      for _, value in ipairs({id, claim, epoch, model, queue, at - tonumber(r.created), crashes, request}) do
        out[#out + 1] = value
      end
      full = crashes >= 2  -- it has brought down two workers: it gets one to itself
    elseif at - tonumber(r.claimed) > PATIENCE_MS then
      full = true  -- it has waited long for an empty worker: take nothing more, so that this one becomes empty
    end
  end
  if turn then
    local past = tonumber(redis.call('HGET', K.turns(queue), '') or 0)
    if turn > past and turn - past < 500000 then  -- low priority stands far behind and moves nobody's turn
      redis.call('HSET', K.turns(queue), '', turn)
      redis.call('PEXPIRE', K.turns(queue), 86400000)
    end
  end
  return taken
end

for k, lane in ipairs(K.lanes) do
  local want = tonumber(ARGV[5 + k])
  for i = first, last do
    if want > 0 then want = want - take(ARGV[i], ARGV[i] .. lane, want) end
  end
end
return out
