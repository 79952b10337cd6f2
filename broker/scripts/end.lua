-- Ends a request with an error: arq's own failure paths (expired, bad bytes, unknown function) and a job that broke.
-- ARGV: id, claim, error (msgpack map), 1 to keep it for inspection. Returns 1, or 0 if it had ended or belongs to another claim.
run_when_full()
local r = load_request(ARGV[1])
if not r.state or r.state == 'ended' then
  redis.call('DEL', K.retry(ARGV[1]))  -- arq counted this start after the request had ended
  return 0
end
if r.claim ~= ARGV[2] then return 0 end
local error = cmsgpack.unpack(ARGV[3])
if ARGV[4] == '1' then keep_for_inspection(ARGV[1], r, error) end
finish(ARGV[1], r, false, 'error', error)
return 1
