-- Ends a link. ARGV: share, owner. Returns 1, or 0 if there is none of this owner's.
run_when_full()
local share, owner = ARGV[1], ARGV[2]
local s = redis.call('HMGET', K.share(share), 'owner', 'conversation')
if s[1] ~= owner then return 0 end
redis.call('DEL', K.share(share))
redis.call('ZREM', K.shares(owner), share)
if s[2] == '' then return 1 end
local left = {}
for one in string.gmatch(redis.call('HGET', K.conversation(s[2]), 'shares') or '', '%S+') do
  if one ~= share then left[#left + 1] = one end
end
if redis.call('EXISTS', K.conversation(s[2])) == 1 then
  redis.call('HSET', K.conversation(s[2]), 'shares', table.concat(left, ' '))
end
return 1
