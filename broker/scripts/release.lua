-- A stopping worker hands a request back; that is no crash. ARGV: id, claim. Returns 1, or 0 if it was not its own.
run_when_full()
local r = load_request(ARGV[1])
if r.claim ~= ARGV[2] or r.state ~= 'running' then return 0 end
put_back(ARGV[1], r, '')
return 1
