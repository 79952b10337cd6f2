-- Deletes a conversation with its messages, and ends the answer that is being written in it.
-- ARGV: conversation, owner. Returns 1, or 0 if it does not exist or is somebody else's.
run_when_full()
local id, owner = ARGV[1], ARGV[2]
local c = redis.call('HMGET', K.conversation(id), 'owner', 'request')
if c[1] ~= owner then return 0 end
redis.call('DEL', K.conversation(id), K.messages(id))
redis.call('ZREM', K.conversations(owner), id)
local r = c[2] and load_request(c[2]) or {}
if r.state and r.state ~= 'ended' then
  finish(c[2], r, false, 'cancelled')
  tell_worker(c[2], r)
end
redis.call('PUBLISH', K.events_of(owner), cmsgpack.pack({type = 'event', event = 'changed', conversation = id}))
return 1
