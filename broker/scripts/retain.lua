-- Gives conversations the time that all are kept now, from their last change or their import. ARGV: retain_ms, ids ...
run_when_full()
for i = 2, #ARGV do
  local c = redis.call('HMGET', K.conversation(ARGV[i]), 'owner', 'updated', 'imported')
  if c[1] then retain(ARGV[i], c[1], tonumber(ARGV[1]), math.max(tonumber(c[2] or 0), tonumber(c[3] or 0))) end
end
return 1
