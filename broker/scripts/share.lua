-- Keeps a snapshot under a link. ARGV: share, conversation ('' for what lives by itself), owner, retain_ms, title, created (ms),
-- snapshot (msgpack). Returns 1, or 0 if the conversation is not there any more.
local share, id, owner, retain_ms, title, created, snapshot = unpack(ARGV)
retain_ms = tonumber(retain_ms)
local c = id ~= '' and redis.call('HMGET', K.conversation(id), 'owner', 'shares')
if c and c[1] ~= owner then return 0 end
local first = redis.call('EXISTS', K.shares(owner)) == 0
redis.call('HSET', K.share(share), 'owner', owner, 'conversation', id, 'title', title, 'created', created, 'snapshot', snapshot)
redis.call('ZADD', K.shares(owner), created, share)
if c then
  redis.call('HSET', K.conversation(id), 'shares', (c[2] and c[2] .. ' ' or '') .. share)
  retain(id, owner, retain_ms, now_ms())
elseif retain_ms > 0 then
  redis.call('PEXPIRE', K.share(share), retain_ms)
  local left = redis.call('PTTL', K.shares(owner))
  if first or left > 0 and left < retain_ms then redis.call('PEXPIRE', K.shares(owner), retain_ms + 86400000) end
end
return 1
