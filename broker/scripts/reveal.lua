-- Shows a battle's names without a vote; one that comes after that does not count.
-- ARGV: battle, owner
-- Returns 0, or -1 not the owner's, -3 answers are under way
run_when_full()
local battle = K.battle(ARGV[1])
local r = load_hash(battle)
if r.owner ~= ARGV[2] then return -1 end
local turns = tonumber(r.turns)
if turns > 0 and battle_under_way(r, turns - 1, now_ms()) then return -3 end
redis.call('HSET', battle, 'revealed', 1)
return 0
