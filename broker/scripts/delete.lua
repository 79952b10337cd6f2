-- Takes a conversation from its owner's shelf, with what was shared of it; for a while it can be brought back (restore.lua).
-- Its answers end first, so what they had said is in it then. ARGV: id, owner, undo_ms. Returns 1, or 0 if it is not there.
run_when_full()
local id, owner, undo_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local c = redis.call('HMGET', K.conversation(id), 'owner', 'shares')
if c[1] ~= owner then return 0 end
for _, request in ipairs(under_way(K.conversation(id))) do
  local r = load_request(request)
  if r.state then
    finish(request, r, false, 'cancelled')
    tell_worker(request, r)
  end
end
redis.call('RENAME', K.conversation(id), K.deleted(id))
redis.call('PEXPIRE', K.deleted(id), undo_ms)
redis.call('PEXPIRE', K.messages(id), undo_ms)
for share in string.gmatch(c[2] or '', '%S+') do
  redis.call('PEXPIRE', K.share(share), undo_ms)
  redis.call('ZREM', K.shares(owner), share)
end
for _, list in ipairs({'conversations', 'archived', 'pinned'}) do redis.call('ZREM', K[list](owner), id) end
redis.call('HDEL', K.tagged(owner), id)
redis.call('PUBLISH', K.events_of(owner), cmsgpack.pack({type = 'event', event = 'changed', conversation = id}))
return 1
