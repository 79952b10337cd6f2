-- A turn whose requests were not both accepted is taken back, and what stood there before stands there again.
-- ARGV: battle, owner, turn, request of a, request of b
-- Returns whether it was
run_when_full()
local battle, owner, turn, a, b = K.battle(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local v = redis.call('HMGET', battle, 'owner', 'run:a:' .. turn, 'run:b:' .. turn, 'before:a', 'before:b', 'was')
if v[1] ~= owner or v[2] ~= a or v[3] ~= b then return 0 end
redis.call('HDEL', battle, 'run:a:' .. turn, 'run:b:' .. turn, 'a:' .. turn, 'b:' .. turn, 'before:a', 'before:b', 'began',
  'unchecked:' .. turn)
if v[4] or v[5] then
  if v[4] then redis.call('HSET', battle, 'a:' .. turn, v[4]) end
  if v[5] then redis.call('HSET', battle, 'b:' .. turn, v[5]) end
else
  redis.call('HDEL', battle, 'user:' .. turn)
  redis.call('HSET', battle, 'turns', turn)
end
redis.call('HSET', battle, 'state', v[6])
redis.call('HINCRBY', battle, 'revision', 1)
return 1
