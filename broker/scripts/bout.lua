-- Begins a turn of a battle, or has its last turn answered again, before the two requests are enqueued.
-- ARGV: battle, owner, text ('' has the last turn answered again), request of a, request of b, most turns,
--       whether its answers have to be checked (1 or 0), and to begin the battle itself: kind, model a, model b, probability
-- Returns {0, turn}, or {-1} not the owner's, {-2} the round is over, {-3} answers are under way, {-4} it has all turns that it may have,
-- {-5} there is nothing to answer again
local id, owner, text, a, b = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local most, checked, kind = tonumber(ARGV[6]), ARGV[7] == '1', ARGV[8]
local battle, at = K.battle(id), now_ms()

if kind and redis.call('EXISTS', battle) == 0 then
  redis.call('HSET', battle, 'owner', owner, 'kind', kind, 'a', ARGV[9], 'b', ARGV[10], 'p', ARGV[11], 'created', at,
    'state', 'open', 'revealed', kind == 'named' and 1 or 0, 'turns', 0, 'revision', 0)
end
local r = load_hash(battle)
if r.owner ~= owner then return {-1} end
local named = r.kind == 'named'
if r.state == 'void' or not named and (r.state ~= 'open' or r.revealed == '1') then return {-2} end
local turn = tonumber(r.turns)
if turn > 0 and battle_under_way(r, turn - 1, at) then return {-3} end
if text == '' then
  if turn == 0 then return {-5} end
  turn = turn - 1
  for _, side in ipairs({'a', 'b'}) do
    local answer = r[side .. ':' .. turn]
    if answer and not r['unchecked:' .. turn] then redis.call('HSET', battle, 'before:' .. side, answer) end
    redis.call('HDEL', battle, side .. ':' .. turn)
  end
else
  if turn >= most then return {-4} end
  redis.call('HDEL', battle, 'before:a', 'before:b')
  redis.call('HSET', battle, 'user:' .. turn, text, 'turns', turn + 1)
end
redis.call('HSET', battle, 'run:a:' .. turn, a, 'run:b:' .. turn, b, 'began', at, 'state', 'open', 'was', r.state)
if checked then redis.call('HSET', battle, 'unchecked:' .. turn, 1) else redis.call('HDEL', battle, 'unchecked:' .. turn) end
redis.call('HINCRBY', battle, 'revision', 1)
redis.call('PEXPIRE', battle, BATTLE_MS)
return {0, turn}
