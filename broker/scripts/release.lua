-- A worker hands a request back: it stops, or (with an error, msgpack) a step of its engine failed, which is a crash.
-- ARGV: id, claim, error or ''. Returns 1, or 0 if it does not wait again: it was not its own, or has ended.
run_when_full()
local r = load_request(ARGV[1])
if r.claim ~= ARGV[2] or r.state ~= 'running' then return 0 end
if ARGV[3] ~= '' and crashed(ARGV[1], r, cmsgpack.unpack(ARGV[3])) then return 0 end
put_back(ARGV[1], r, '')
count(r.queue, ARGV[3] == '' and 'requeued:handed_over' or 'requeued:step_failed')
return 1
