-- Takes from an owner's lists what has expired. ARGV: owner, conversation ids ...
run_when_full()
local owner = ARGV[1]
for i = 2, #ARGV do
  if redis.call('EXISTS', K.conversation(ARGV[i])) == 0 then
    for _, list in ipairs({'conversations', 'archived', 'pinned'}) do redis.call('ZREM', K[list](owner), ARGV[i]) end
    redis.call('HDEL', K.tagged(owner), ARGV[i])
  end
end
return 1
