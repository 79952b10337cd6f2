-- Keeps a worker's leases. ARGV: lease_ms, then id and claim for each. Returns the ids that are no longer its own.
run_when_full()
local lease_ms, at, lost = tonumber(ARGV[1]), now_ms(), {}
for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  local v = redis.call('HMGET', K.request(id), 'claim', 'state', 'queue')
  if v[1] ~= ARGV[i + 1] or v[2] == 'ended' then
    lost[#lost + 1] = id
  elseif v[2] == 'waiting' then
    regain(id, v[3], lease_ms, at)
  else
    redis.call('ZADD', K.running(v[3]), at + lease_ms, id)
  end
end
return lost
