-- What the scripts share: the clock, reading a request, putting it back, ending it.

local BATTLE_MS = 86400000  -- a round of the arena is there this long after its last change
local STARTING_MS = 5000  -- between the beginning of a battle's turn and its second request
local AFTER_MS = 120000  -- what belongs to a request is readable this long after its last frame

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- A full server refuses a script at its first write that takes memory, and no later one. So what must go on when it is
-- full (all but `enqueue`) begins with a write that takes none.
local function run_when_full()
  redis.call('DEL', K.nothing())
end

-- What has happened to a queue's requests, for ever: `fleetchat status` and /metrics show a model's own (broker/metrics.py has the words).
local function count(queue, what, n)
  redis.pcall('HINCRBY', K.counts(queue), what, n or 1)  -- a number must not keep an answer from its end
end

local TEXTS = {'state', 'model', 'queue', 'owner', 'keep', 'claim', 'worker', 'conversation', 'parent'}
local NUMBERS = {'created', 'wait_until', 'run_ms', 'score', 'epoch', 'crashes'}

-- The name of the data's history: another one after a restart or a fail-over, when the last second may be missing.
local function history()
  return string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') or ''
end

-- The epoch of what is written next. In another history than the request's, a claim and its frames may have been
-- forgotten that readers have; so it is a number that no claim before can have had: the milliseconds since its creation.
local function never_heard(r, epoch, at)
  if r.history == history() then return epoch end
  return math.max(epoch, at - tonumber(r.created))
end

-- A hash's fields. Empty if there is none, or something else.
local function load_hash(key)
  local flat, r = redis.pcall('HGETALL', key), {}
  for i = 1, #flat, 2 do r[flat[i]] = flat[i + 1] end
  return r
end

-- A request's fields. Empty if there is none, or if it is not of the shape that `enqueue` and `claim` give it: nobody can
-- work with that, and one such hash must not stop a queue, or the sweep of all queues.
local function load_request(id)
  local r = load_hash(K.request(id))
  for _, name in ipairs(TEXTS) do
    if not r[name] then return {} end
  end
  for _, name in ipairs(NUMBERS) do
    if not tonumber(r[name]) then return {} end
  end
  if (r.started or r.state == 'running') and not (tonumber(r.run_until) and tonumber(r.claimed)) then return {} end
  return r
end

-- Nobody listens to it and nobody keeps it. The first look only notes the time: a web process may be on its way back.
local function abandoned(id, r, at, grace_ms)
  if r.keep == '1' then return false end
  if redis.call('PUBSUB', 'NUMSUB', K.stream(id))[2] > 0 then
    if r.alone_since then redis.call('HDEL', K.request(id), 'alone_since') end
    r.alone_since = nil
    return false
  end
  if not r.alone_since then
    redis.call('HSET', K.request(id), 'alone_since', at)
    r.alone_since = at
    return false
  end
  return at - tonumber(r.alone_since) >= grace_ms
end

-- The set that a request is in while it uses up its owner's share. What lies beside a model's own queue has a share of its own.
local function share(owner, model, queue)
  return K.live(owner .. string.sub(queue, #model + 1))
end

local function put_back(id, r, holder)
  redis.call('ZREM', K.running(r.queue), id)
  redis.call('ZADD', K.queue(r.queue), r.score, id)
  redis.call('HSET', K.request(id), 'state', 'waiting', 'claim', holder)
  redis.call('PUBLISH', K.wake(r.model), id)
end

-- A worker whose lease ran out, and whose request nobody else took, has it again.
local function regain(id, queue, lease_ms, at)
  redis.call('ZREM', K.queue(queue), id)
  redis.call('ZADD', K.running(queue), at + lease_ms, id)
  redis.call('HSET', K.request(id), 'state', 'running')
end

-- A conversation, with what was shared of it, lives so long after a time (0: for ever), and a pinned one for ever. The lists
-- that it is in live a day longer than the last of what they list.
local function retain(id, owner, retain_ms, at)
  local function give(key, until_ms)
    if retain_ms == 0 or not until_ms then redis.call('PERSIST', key) else redis.call('PEXPIREAT', key, until_ms) end
  end
  local c = redis.call('HMGET', K.conversation(id), 'pinned', 'shares')
  local until_ms = not c[1] and at + retain_ms
  for share in string.gmatch(c[2] or '', '%S+') do give(K.share(share), until_ms) end
  give(K.messages(id), until_ms)
  give(K.conversation(id), until_ms)
  local last = redis.call('ZCARD', K.pinned(owner)) == 0 and now_ms() + retain_ms + 86400000
  for _, list in ipairs({'conversations', 'archived', 'pinned', 'tagged', 'shares'}) do give(K[list](owner), last) end
end

-- A conversation's answers under way: those of its `requests` that have not ended.
local function under_way(conversation)
  local ids = {}
  for id in string.gmatch(redis.call('HGET', conversation, 'requests') or '', '%S+') do
    local state = redis.call('HGET', K.request(id), 'state')
    if state and state ~= 'ended' then ids[#ids + 1] = id end
  end
  return ids
end

-- An answer's parts: the frames' text joined by kind, and each call of a tool with its arguments as text. `begun` are
-- the parts (msgpack) of an answer that this one goes on from.
local function parts_of(id, begun)
  local parts, calls = {}, {}
  local function add(part, text)
    if not part.texts then
      part.texts = {}
      parts[#parts + 1] = part
    end
    part.texts[#part.texts + 1] = text
  end
  for _, part in ipairs(begun and cmsgpack.unpack(begun) or {}) do add({kind = part.kind, name = part.name}, part.text) end
  for _, encoded in ipairs(redis.call('LRANGE', K.frames(id), 0, -1)) do
    local frame = cmsgpack.unpack(encoded)
    local kind, last = frame.kind or 'text', parts[#parts]
    if kind == 'tool' and type(frame.data) == 'table' then
      for _, delta in ipairs(frame.data) do  -- as a server behind may send it: nothing of its shape is sure
        local called = type(delta) == 'table' and delta['function']
        if type(called) == 'table' then
          local index = delta.index or 0
          calls[index] = calls[index] or {kind = 'tool', name = tostring(called.name or '')}
          add(calls[index], type(called.arguments) == 'string' and called.arguments or '')
        end
      end
    elseif frame.text and frame.text ~= '' then
      add(last and last.kind == kind and last or {kind = kind}, frame.text)
    end
  end
  for _, part in ipairs(parts) do part.text, part.texts = table.concat(part.texts), nil end
  return parts
end

-- The finished answer as a message. It was created when it was asked for, so versions stand in the order of asking.
local function save_answer(id, r, last, at)
  local conversation = K.conversation(r.conversation)
  if redis.call('HGET', conversation, 'owner') ~= r.owner then return end  -- deleted meanwhile
  redis.call('HSET', K.messages(r.conversation), id, cmsgpack.pack({
    role = 'assistant', parent = r.parent, parts = parts_of(id, r.begun), model = r.model, request_id = id,
    created = tonumber(r.created), reason = last.reason, usage = last.usage, timings = last.timings, error = last.error,
  }))
  redis.call('HSET', conversation, 'leaf', id, 'updated', at, 'requests', table.concat(under_way(conversation), ' '))
  redis.call('ZADD', K.conversations(r.owner), 'XX', at, r.conversation)  -- not if it was archived meanwhile
  local retain_ms = tonumber(r.retain_ms or 0)
  if retain_ms > 0 and not redis.call('HGET', conversation, 'pinned') then  -- the lists were given a day more than that
    redis.call('PEXPIRE', conversation, retain_ms)
    redis.call('PEXPIRE', K.messages(r.conversation), retain_ms)
  end
  redis.call('PUBLISH', K.events_of(r.owner),
    cmsgpack.pack({type = 'event', event = 'ended', conversation = r.conversation, request_id = id}))
end

-- Whether answers of a battle's turn (its fields are `r`) are being written, or about to be.
local function battle_under_way(r, turn, at)
  local begun = 0
  for _, side in ipairs({'a', 'b'}) do
    local id = r['run:' .. side .. ':' .. turn]
    if id and not r[side .. ':' .. turn] then
      local state = redis.call('HGET', K.request(id), 'state')
      if state and state ~= 'ended' then return true end
      if not state then begun = tonumber(r.began or 0) end
    end
  end
  return at - begun < STARTING_MS
end

-- The finished answer of one side of a battle. An error ends the round: nobody can compare with what did not come.
local function save_side(id, r, last, at)
  local battle, place = K.battle(r.battle), r.side .. ':' .. r.turn
  if redis.call('HGET', battle, 'run:' .. place) ~= id then return end  -- forgotten, or answered again meanwhile
  local texts = {text = {}, reasoning = {}}
  for _, part in ipairs(parts_of(id)) do
    if texts[part.kind] then table.insert(texts[part.kind], part.text) end
  end
  redis.call('HSET', battle, place, cmsgpack.pack({
    text = table.concat(texts.text), reasoning = table.concat(texts.reasoning), reason = last.reason,
    usage = last.usage, timings = last.timings, error = last.error,
  }))
  if last.error and redis.call('HGET', battle, 'state') == 'open' then
    redis.call('HSET', battle, 'state', 'void')
  end
  redis.call('HINCRBY', battle, 'revision', 1)
  redis.call('PEXPIRE', battle, BATTLE_MS)
end

-- Ends a request: the last frame, the state, out of queue and running, the message. Callers check that it has not ended.
-- `frame` is the encoded last frame, or false to have one made from `reason` and `error`.
local function finish(id, r, frame, reason, error)
  local at, frames = now_ms(), K.frames(id)
  local last
  if frame then
    last = cmsgpack.unpack(frame)['end']
  else
    last = {
      reason = reason, error = error,
      usage = {
        prompt_tokens = tonumber(r.prompt_tokens or 0),
        completion_tokens = math.floor(redis.call('STRLEN', K.tokens(id)) / 4),
      },
      timings = {total = (at - tonumber(r.created)) / 1000},
    }
    frame = cmsgpack.pack({
      request_id = id, seq = redis.call('LLEN', frames), epoch = never_heard(r, tonumber(r.epoch), at), text = '', ['end'] = last,
    })
  end
  redis.call('RPUSH', frames, frame)
  redis.call('HSET', K.request(id), 'state', 'ended', 'finished', at, 'reason', last.reason,
    'completion_tokens', last.usage and last.usage.completion_tokens or 0, 'error', last.error and last.error.code or '')
  redis.call('ZREM', K.queue(r.queue), id)
  redis.call('ZREM', K.running(r.queue), id)
  redis.call('DEL', K.job(id), K.retry(id), K.prompt(id), K.tokens(id))
  redis.call('PEXPIRE', K.request(id), AFTER_MS)
  redis.call('PEXPIRE', frames, AFTER_MS)
  if r.owner ~= '' then redis.call('SREM', share(r.owner, r.model, r.queue), id) end
  count(r.queue, 'ended:' .. (last.error and last.error.code or last.reason))
  for direction, tokens in pairs({['in'] = 'prompt_tokens', out = 'completion_tokens'}) do
    count(r.queue, 'tokens:' .. direction, math.floor(last.usage and tonumber(last.usage[tokens]) or 0))
  end
  if r.started and (last.reason == 'stop' or last.reason == 'length') then
    local pace = K.pace(r.queue)
    local function note(what, seconds)
      local mean = tonumber(redis.call('HGET', pace, what) or seconds)
      redis.call('HSET', pace, what, string.format('%.3f', mean + 0.1 * (seconds - mean)))
    end
    note('seconds', (at - tonumber(r.started)) / 1000)
    note('first', ((tonumber(r.first) or at) - tonumber(r.started)) / 1000)  -- an answer in one piece has none noted
    redis.call('PEXPIRE', pace, 86400000)
  end
  if r.conversation ~= '' then save_answer(id, r, last, at) end
  if r.battle then save_side(id, r, last, at) end
  redis.call('PUBLISH', K.stream(id), frame)
end

-- What nobody could answer stays for people to look at, with all that was in it.
local function keep_for_inspection(id, r, error)
  local function bytes(key)
    local value = redis.pcall('GET', key)
    return type(value) == 'string' and value or ''
  end
  redis.call('HSET', K.poisoned(id), 'model', r.model, 'why', error.message, 'crashes', r.crashes, 'created', r.created,
    'prompt', bytes(K.prompt(id)), 'job', bytes(K.job(id)))
  redis.call('EXPIRE', K.poisoned(id), 604800)
end

-- A request was there when a worker, or a step of its engine, broke down. The third time it is ended; says whether it was.
local function crashed(id, r, error)
  r.crashes = redis.call('HINCRBY', K.request(id), 'crashes', 1)
  count(r.queue, 'crashed')
  if r.crashes < 3 then return false end
  keep_for_inspection(id, r, error)
  finish(id, r, false, 'error', error)
  return true
end

-- The worker that holds it stops computing; it would also find out by itself at its next append or renewal.
local function tell_worker(id, r)
  if r.state == 'running' then
    redis.call('PUBLISH', K.control(r.worker), cmsgpack.pack({type = 'cancel', request_id = id}))
  end
end
