-- What an API key may use in a minute, as two buckets that fill all the time: of requests, and of tokens.
-- How many tokens an answer has is known at its end, so that bucket may be overdrawn; then nothing goes until it is above 0.
-- ARGV: account, requests a minute, tokens a minute (0: no limit), requests, tokens, force (1: spend in any case)
-- Returns {ms to wait (0: it was spent), requests left, tokens left, ms until all requests are there again, and all tokens}
run_when_full()
local key, at = K.rate(ARGV[1]), now_ms()
local limits, costs, force = {tonumber(ARGV[2]), tonumber(ARGV[3])}, {tonumber(ARGV[4]), tonumber(ARGV[5])}, ARGV[6] == '1'
local past = redis.call('HMGET', key, 'requests', 'tokens', 'at')
local levels, wait = {}, 0
for i, limit in ipairs(limits) do
  local since = math.max(0, at - tonumber(past[3] or at))
  levels[i] = math.min(limit, tonumber(past[i] or limit) + since * limit / 60000)
  local least = i == 1 and costs[1] or math.min(1, limit)
  if limit > 0 and not force and levels[i] < least then
    wait = math.max(wait, math.ceil((least - levels[i]) * 60000 / limit))
  end
end
if wait == 0 then
  for i, cost in ipairs(costs) do levels[i] = levels[i] - cost end
end
local full = {0, 0}
for i, limit in ipairs(limits) do
  if limit > 0 then full[i] = math.ceil((limit - levels[i]) * 60000 / limit) end
end
redis.call('HSET', key, 'requests', string.format('%.6f', levels[1]), 'tokens', string.format('%.6f', levels[2]), 'at', at)
redis.call('PEXPIRE', key, math.max(full[1], full[2], 1000))
return {wait, math.max(0, math.floor(levels[1])), math.max(0, math.floor(levels[2])), full[1], full[2]}
