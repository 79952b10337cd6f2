-- Ends a waiting or running request because somebody wants it to end. ARGV: id, owner, reason.
-- Returns 1, 0 if it had ended already or is unknown, -1 if it is somebody else's.
run_when_full()
local r = load_request(ARGV[1])
if not r.state then return 0 end
if r.owner ~= ARGV[2] then return -1 end
if r.state == 'ended' then return 0 end
finish(ARGV[1], r, false, ARGV[3])
tell_worker(ARGV[1], r)
return 1
