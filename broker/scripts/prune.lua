-- Takes messages out of a conversation; answers that are being written to them end. ARGV: conversation, owner, leaf, ids ...
-- Returns 1, or 0 if there is no such conversation of this owner's.
run_when_full()
local conversation, owner, doomed = K.conversation(ARGV[1]), ARGV[2], {}
if redis.call('HGET', conversation, 'owner') ~= owner then return 0 end
for i = 4, #ARGV do doomed[ARGV[i]] = true end
for _, id in ipairs(under_way(conversation)) do
  local r = load_request(id)
  if doomed[r.parent] then
    finish(id, r, false, 'cancelled')
    tell_worker(id, r)
    doomed[id] = true
  end
end
for id in pairs(doomed) do redis.call('HDEL', K.messages(ARGV[1]), id) end
redis.call('HSET', conversation, 'leaf', ARGV[3])
redis.call('PUBLISH', K.events_of(owner), cmsgpack.pack({type = 'event', event = 'changed', conversation = ARGV[1]}))
return 1
