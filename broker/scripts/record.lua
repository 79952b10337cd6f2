-- Takes a vote out of a file, once.
-- ARGV: battle, what was said (zlib; '' where the file does not have it), then names and values of the entry
-- Returns 1: it was new, 0: it was here already, 2: it was, and what was said is here again
local battle, said = ARGV[1], ARGV[2]
local there = redis.call('HGET', K.voted(), battle)
if not there then
  redis.call('XADD', K.votes(), '*', unpack(ARGV, 3))
elseif there ~= '' or said == '' then
  return 0
end
redis.call('HSET', K.voted(), battle, said)
return there and 2 or 1
