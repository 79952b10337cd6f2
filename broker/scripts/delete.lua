-- Deletes a conversation with its messages, and ends the answers that are being written in it.
-- ARGV: conversation, owner. Returns 1, or 0 if it does not exist or is somebody else's.
run_when_full()
local id, owner = ARGV[1], ARGV[2]
if redis.call('HGET', K.conversation(id), 'owner') ~= owner then return 0 end
local running = under_way(K.conversation(id))
redis.call('DEL', K.conversation(id), K.messages(id))
redis.call('ZREM', K.conversations(owner), id)
for _, request in ipairs(running) do
  local r = load_request(request)
  if r.state then
    finish(request, r, false, 'cancelled')
    tell_worker(request, r)
  end
end
redis.call('PUBLISH', K.events_of(owner), cmsgpack.pack({type = 'event', event = 'changed', conversation = id}))
return 1
