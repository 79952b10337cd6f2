-- Shows a battle's names without a vote; one that comes after that does not count.
-- ARGV: battle, owner
-- Returns 0, or -1 not the owner's, -3 answers are under way
run_when_full()
local battle = K.battle(ARGV[1])
local r, flat = {}, redis.call('HGETALL', battle)
for i = 1, #flat, 2 do r[flat[i]] = flat[i + 1] end
if r.owner ~= ARGV[2] then return -1 end
local turns = tonumber(r.turns)
if turns > 0 and battle_under_way(r, turns - 1, now_ms(), 5000) then return -3 end
redis.call('HSET', battle, 'revealed', 1)
return 0
