-- Notes what a check has said of a turn's answers: that they may be shown and voted on; or why not, and they are forgotten.
-- ARGV: battle, owner, turn, request of a, request of b, why ('' they may)
-- Returns whether the turn still had these answers
run_when_full()
local battle, owner, turn, a, b, why = K.battle(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local v = redis.call('HMGET', battle, 'owner', 'run:a:' .. turn, 'run:b:' .. turn)
if v[1] ~= owner or v[2] ~= a or v[3] ~= b then return 0 end
redis.call('HDEL', battle, 'unchecked:' .. turn)
redis.call('HINCRBY', battle, 'revision', 1)  -- a vote that was written without these answers is written anew
if why ~= '' then
  redis.call('HDEL', battle, 'run:a:' .. turn, 'run:b:' .. turn, 'a:' .. turn, 'b:' .. turn)
  redis.call('HSET', battle, 'state', 'void', 'why', why)
end
return 1
