-- Takes a vote, once, and shows the names: the only writer of `votes` and `voted` beside record.lua.
-- ARGV: battle, owner, winner, revision that the rest was made from, what was said (zlib), number of limits,
--       for each limit: who, votes a day (0: any number); then names and values of the entry but for kind, winner, p, a, b and at
-- Returns {0, kind, a, b}, or {-1} not the owner's, {-2} void, {-3} voted already, {-4} not both answers are finished and checked,
-- {-5} the battle has changed meanwhile, {-6, ms} as many votes as may be, until that time
run_when_full()
local id, owner, winner, revision, said = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local limits, DAY_MS = tonumber(ARGV[6]), 86400000
local battle, at, done = K.battle(id), now_ms(), {stop = true, length = true, tool_calls = true, content_filter = true}
local r = load_hash(battle)
if r.owner ~= owner then return {-1} end
if r.state == 'void' then return {-2} end
if r.state == 'voted' then return {-3} end
if r.revision ~= revision then return {-5} end
if r['unchecked:' .. (tonumber(r.turns) - 1)] then return {-4} end
for _, side in ipairs({'a', 'b'}) do
  local answer = r[side .. ':' .. (tonumber(r.turns) - 1)]
  if not answer or not done[cmsgpack.unpack(answer).reason] then return {-4} end
end
for i = 7, 6 + 2 * limits, 2 do
  local who, most = K.voting(ARGV[i]), tonumber(ARGV[i + 1])
  if most > 0 and tonumber(redis.call('GET', who) or 0) >= most then return {-6, redis.call('PTTL', who)} end
end
for i = 7, 6 + 2 * limits, 2 do
  local who = K.voting(ARGV[i])
  if redis.call('INCR', who) == 1 then redis.call('PEXPIRE', who, DAY_MS) end
end
local kind = r.kind == 'blind' and r.revealed == '1' and 'late' or r.kind
local nth = redis.call('HINCRBY', battle, 'votes', 1)
local as = nth == 1 and id or id .. ':' .. nth  -- a named battle goes on after a vote, and each one has its own conversation
local entry = {'battle', as, 'kind', kind, 'winner', winner, 'a', r.a, 'b', r.b, 'p', r.p, 'at', at}
for i = 7 + 2 * limits, #ARGV do entry[#entry + 1] = ARGV[i] end
redis.call('XADD', K.votes(), '*', unpack(entry))
redis.call('HSET', K.voted(), as, said)
redis.call('HSET', battle, 'state', 'voted', 'winner', winner, 'revealed', 1)
redis.call('PEXPIRE', battle, BATTLE_MS)
return {0, kind, r.a, r.b}
