-- Changes how a conversation stands on its owner's shelf. ARGV: id, owner, retain_ms, most pinned, changes (msgpack map):
--   title, by ('user', or 'model': only while nobody else gave one), pinned, archived (0 or 1), tags (JSON list)
-- Returns 1; 0 there is no such conversation of this owner's; -1 as many are pinned as may be; -2 it has a better title
local id, owner, retain_ms, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local changes, at, conversation = cmsgpack.unpack(ARGV[5]), now_ms(), K.conversation(ARGV[1])
local c = redis.call('HMGET', conversation, 'owner', 'titled', 'updated')
if c[1] ~= owner then return 0 end
if changes.by == 'model' and c[2] then return -2 end
if changes.pinned == 1 and not redis.call('ZSCORE', K.pinned(owner), id) and redis.call('ZCARD', K.pinned(owner)) >= most then
  return -1
end

if changes.title then redis.call('HSET', conversation, 'title', changes.title, 'titled', changes.by) end
if changes.tags then
  redis.call('HSET', conversation, 'tags', changes.tags)
  if changes.tags == '[]' then redis.call('HDEL', K.tagged(owner), id) else redis.call('HSET', K.tagged(owner), id, changes.tags) end
end
if changes.archived == 1 or changes.pinned == 0 then  -- what is put away stands in front no more
  redis.call('HDEL', conversation, 'pinned')
  redis.call('ZREM', K.pinned(owner), id)
end
if changes.archived == 1 then
  redis.call('HSET', conversation, 'archived', at)
  redis.call('ZADD', K.archived(owner), c[3], id)
  redis.call('ZREM', K.conversations(owner), id)
elseif changes.archived == 0 or changes.pinned == 1 then
  redis.call('HDEL', conversation, 'archived')
  redis.call('ZREM', K.archived(owner), id)
  redis.call('ZADD', K.conversations(owner), c[3], id)
end
if changes.pinned == 1 then
  local last = redis.call('ZRANGE', K.pinned(owner), -1, -1, 'WITHSCORES')[2]
  local after = math.max(at, tonumber(last or 0) + 1)  -- two of one millisecond have an order, too
  redis.call('HSET', conversation, 'pinned', after)
  redis.call('ZADD', K.pinned(owner), after, id)
end
retain(id, owner, retain_ms, at)
redis.call('PUBLISH', K.events_of(owner), cmsgpack.pack({type = 'event', event = 'changed', conversation = id}))
return 1
