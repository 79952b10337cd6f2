-- Accepts a request, or refuses it by its limits, and wakes a worker. A repeated call for the same id changes nothing.
-- ARGV: id, model, its queue, owner, keep, prompt, job, kinds of models that can do it, wait_ms, run_ms, queue_limit,
--       user_limit (0: none), turns behind (priority),
--       and for an answer in a conversation a msgpack map: conversation, parent, title (begins one), message (of the user),
--       settings (JSON), begun (parts of the answer that it goes on from); and how long it is kept (ms; 0: for ever);
--       for an answer in a battle the map is: battle, side, turn, and `bout` has named this request for that place
-- Returns {0, place}, {0} it had been accepted before, or {-1, seconds until the queue has moved on} queue full, {-2, share} share used,
-- {-3} not the owner's, {-4} as many answers are under way in it as may be, {-5} no such model, {-6, why or ''} nobody serves it,
-- {-7} the model is of another kind
local id, model, queue, owner, keep, prompt, job = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local kinds, wait_ms, run_ms = ARGV[8], tonumber(ARGV[9]), tonumber(ARGV[10])
local queue_limit, user_limit = tonumber(ARGV[11]), tonumber(ARGV[12])
local behind, place = tonumber(ARGV[13]), ARGV[14] and cmsgpack.unpack(ARGV[14]) or {}
local kept, bout = place.conversation and place, place.battle and place
local retain_ms = tonumber(ARGV[15] or 0)
local at, waits, turns, live = now_ms(), K.queue(queue), K.turns(queue), share(owner, model, queue)
local COLUMNS, requests = 4, {}  -- answers that may be under way in one conversation, and those that are

-- Until a worker takes what comes last: as measured, an answer takes so long, and so many are written at once.
local function seconds_to_wait(backlog)
  local slots = 0
  for _, worker in ipairs(redis.call('ZRANGE', K.serving(model), 0, -1)) do
    slots = slots + (tonumber(redis.call('HGET', K.worker(worker), 'slots')) or 0)
  end
  return backlog * tonumber(redis.call('HGET', K.pace(queue), 'seconds') or 1) / math.max(slots, 1)
end

if redis.call('EXISTS', K.request(id)) == 1 or kept and redis.call('HGET', K.messages(kept.conversation), id) then
  return {0}
end
local card = redis.call('HGET', K.models(), model)
if not card then return {-5} end
card = cmsgpack.unpack(card)
if card.state == 'failed' or redis.call('ZCARD', K.serving(model)) == 0 then
  return {-6, card.state == 'failed' and card.why or ''}
end
-- What kind it is, a loading one may not know yet.
if card.state == 'ready' and not string.find(' ' .. kinds .. ' ', ' ' .. card.kind .. ' ', 1, true) then return {-7} end
local backlog = redis.call('ZCARD', waits)
if backlog >= queue_limit then
  run_when_full()
  count(queue, 'refused:queue')
  return {-1, string.format('%.3f', seconds_to_wait(backlog))}
end
if owner ~= '' and user_limit > 0 then
  local used = redis.call('SCARD', live)
  if used >= user_limit then
    run_when_full()
    count(queue, 'refused:user')
    return {-2, used}
  end
end

if kept then
  local whose = redis.call('HGET', K.conversation(kept.conversation), 'owner')
  if whose and whose ~= owner or not whose and not kept.title then return {-3} end
  requests = under_way(K.conversation(kept.conversation))
  if #requests >= COLUMNS then return {-4} end
end

if bout then
  local v = redis.call('HMGET', K.battle(bout.battle), 'owner', 'run:' .. bout.side .. ':' .. bout.turn)
  if v[1] ~= owner or v[2] ~= id then return {-3} end
end

-- The first write, so that a full server refuses it all (see run_when_full).
local ttl = wait_ms + run_ms + AFTER_MS
redis.call('SET', K.prompt(id), prompt, 'PX', ttl)

if kept then
  local conversation = K.conversation(kept.conversation)
  if kept.title then redis.call('HSET', conversation, 'owner', owner, 'title', kept.title, 'created', at) end
  if kept.message then redis.call('HSET', K.messages(kept.conversation), kept.parent, kept.message) end
  requests[#requests + 1] = id
  redis.call('HSET', conversation, 'requests', table.concat(requests, ' '), 'leaf', kept.parent, 'updated', at)
  if kept.settings then redis.call('HSET', conversation, 'settings', kept.settings) end
  redis.call('HDEL', conversation, 'archived')  -- what is spoken in again comes back
  redis.call('ZREM', K.archived(owner), kept.conversation)
  redis.call('ZADD', K.conversations(owner), at, kept.conversation)
  retain(kept.conversation, owner, retain_ms, at)
  redis.call('PUBLISH', K.events_of(owner),
    cmsgpack.pack({type = 'event', event = 'began', conversation = kept.conversation, request_id = id, message = kept.parent}))
end

-- Start-time fair queueing: a user's n-th waiting request stands with everybody's n-th. The fraction is the arrival order.
local past = redis.call('HMGET', turns, '', '#')
local turn, arrival = tonumber(past[1] or 0), (tonumber(past[2] or 0) + 1) % 16777216
if backlog == 0 then redis.call('DEL', turns) end  -- nobody waits, so nobody's past turns count
redis.call('HSET', turns, '', turn, '#', arrival)
local start = turn
if owner ~= '' then
  start = math.max(turn, tonumber(redis.call('HGET', turns, owner) or 0))
  redis.call('HSET', turns, owner, start + 1)
end
redis.call('PEXPIRE', turns, 86400000)
local score = string.format('%.9f', start + behind + arrival / 16777216)

redis.call('HSET', K.request(id), 'state', 'waiting', 'model', model, 'queue', queue, 'owner', owner, 'keep', keep, 'created', at,
  'history', history(), 'wait_until', at + wait_ms, 'run_ms', run_ms, 'score', score, 'epoch', 0, 'crashes', 0, 'claim', '', 'worker', '',
  'retain_ms', retain_ms, 'conversation', kept and kept.conversation or '', 'parent', kept and kept.parent or '')
if kept and kept.begun then redis.call('HSET', K.request(id), 'begun', kept.begun) end
if bout then redis.call('HSET', K.request(id), 'battle', bout.battle, 'side', bout.side, 'turn', bout.turn) end
redis.call('PEXPIRE', K.request(id), ttl)
redis.call('SET', K.job(id), job, 'PX', ttl)
redis.call('ZADD', waits, score, id)
count(queue, 'accepted')
if owner ~= '' then
  redis.call('SADD', live, id)
  redis.call('PEXPIRE', live, ttl)
end
redis.call('PUBLISH', K.wake(model), id)
return {0, redis.call('ZRANK', waits, id)}
