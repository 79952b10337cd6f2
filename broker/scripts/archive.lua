-- Forgets what was said in battles, now that it is in a file; that they were voted on stays known.
-- ARGV: battles
run_when_full()
for _, battle in ipairs(ARGV) do
  if redis.call('HEXISTS', K.voted(), battle) == 1 then redis.call('HSET', K.voted(), battle, '') end
end
return 0
