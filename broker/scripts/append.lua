-- Writes and publishes frames of many requests, in order. Idempotent by number; refused unless the claim still holds.
-- ARGV: lease_ms, then for each frame: id, claim, seq, last (0 or 1), prompt_tokens ('' unless first), token ids (uint32), frame
-- Returns for each: receivers >= 0, or -1 not yours any more, -2 ended, -3-n a gap (the list has n frames: send from n)
run_when_full()
local lease_ms, out = tonumber(ARGV[1]), {}

local function append(id, claim, seq, last, prompt_tokens, ids, frame)
  local v = redis.call('HMGET', K.request(id), 'claim', 'state', 'queue')
  if v[1] ~= claim then
    if v[3] then count(v[3], 'fenced') end
    return -1
  end
  if v[2] == 'ended' then return -2 end
  if v[2] == 'waiting' then regain(id, v[3], lease_ms, now_ms()) end
  local frames = K.frames(id)
  local n = redis.call('LLEN', frames)
  if seq > n then return -3 - n end
  if seq < n then return 0 end
  if prompt_tokens ~= '' then redis.call('HSET', K.request(id), 'prompt_tokens', prompt_tokens) end
  if ids ~= '' then redis.call('APPEND', K.tokens(id), ids) end
  if last == '1' then
    finish(id, load_request(id), frame)
    return 0
  end
  redis.call('RPUSH', frames, frame)
  if seq == 0 then
    local ttl = redis.call('PTTL', K.request(id))
    redis.call('PEXPIRE', frames, ttl)
    redis.call('HSET', K.request(id), 'first', now_ms())
  end
  if ids ~= '' and #ids == redis.call('STRLEN', K.tokens(id)) then
    redis.call('PEXPIRE', K.tokens(id), redis.call('PTTL', K.request(id)))
  end
  return redis.call('PUBLISH', K.stream(id), frame)
end

for i = 2, #ARGV, 7 do
  out[#out + 1] = append(ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3], ARGV[i + 4], ARGV[i + 5], ARGV[i + 6])
end
return out
