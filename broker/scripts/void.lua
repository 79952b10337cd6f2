-- Ends an open round that nobody may vote on any more.
-- ARGV: battle, owner, why (a sentence)
-- Returns whether it was open
run_when_full()
local battle = K.battle(ARGV[1])
local v = redis.call('HMGET', battle, 'owner', 'state')
if v[1] ~= ARGV[2] or v[2] ~= 'open' then return 0 end
redis.call('HSET', battle, 'state', 'void', 'why', ARGV[3])
return 1
