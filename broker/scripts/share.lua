-- Keeps a snapshot under a link. ARGV: share, conversation, owner, retain_ms, title, created (ms), snapshot (msgpack).
-- Returns 1, or 0 if the conversation is not there any more.
local share, id, owner, retain_ms, title, created, snapshot = unpack(ARGV)
local c = redis.call('HMGET', K.conversation(id), 'owner', 'shares')
if c[1] ~= owner then return 0 end
redis.call('HSET', K.share(share), 'owner', owner, 'conversation', id, 'title', title, 'created', created, 'snapshot', snapshot)
redis.call('ZADD', K.shares(owner), created, share)
redis.call('HSET', K.conversation(id), 'shares', (c[2] and c[2] .. ' ' or '') .. share)
retain(id, owner, tonumber(retain_ms), now_ms())
return 1
