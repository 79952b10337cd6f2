-- Puts a deleted conversation back where it stood. ARGV: id, owner, retain_ms.
-- Returns 1, also if it is there already, or 0: it is not this owner's, or really gone.
local id, owner, retain_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
if redis.call('HGET', K.conversation(id), 'owner') == owner then return 1 end
local c = redis.call('HMGET', K.deleted(id), 'owner', 'updated', 'archived', 'pinned', 'tags', 'shares')
if c[1] ~= owner then return 0 end
redis.call('ZADD', c[3] and K.archived(owner) or K.conversations(owner), c[2], id)
if c[4] then redis.call('ZADD', K.pinned(owner), c[4], id) end
if c[5] and c[5] ~= '[]' then redis.call('HSET', K.tagged(owner), id, c[5]) end
for share in string.gmatch(c[6] or '', '%S+') do
  local created = redis.call('HGET', K.share(share), 'created')
  if created then redis.call('ZADD', K.shares(owner), created, share) end
end
redis.call('RENAME', K.deleted(id), K.conversation(id))
retain(id, owner, retain_ms, now_ms())
redis.call('PUBLISH', K.events_of(owner), cmsgpack.pack({type = 'event', event = 'changed', conversation = id}))
return 1
