"""Every Redis key and channel, its type, lifetime, writer and reader. No other file contains a key.

A name's pattern stands in `PATTERNS` once; `keys.queue("pocket")` gives the key in Python, and `LUA` gives the scripts
a table `K` with the same functions, so that both sides cannot drift apart.

    key                  type     lifetime            written by            read by      what
    ───────────────────  ───────  ──────────────────  ────────────────────  ───────────  ──────────────────────────────
    queue:MODEL          zset     while it waits      every script          all          waiting request ids by turn
    queue:MODEL#tokens   zset     while it waits      every script          all          the same of what is done beside a worker's slots: token lists
    running:MODEL        zset     while it runs       every script          all          claimed ids by lease end (ms)
    queue:MODEL:health-check  string  6 s             arq                   arq --check  a worker of the model lives
    models               hash     kept                beat                  all          name → card (msgpack)
    since                hash     kept                beat                  web          name → when its first card was written (ms)
    serving:MODEL        zset     while served        beat leave expire     all          worker ids by last heartbeat (ms)
    workers              zset     while alive         beat leave expire     all          worker ids by last heartbeat (ms)
    worker:ID            hash     4 s                 beat                  status       host, pid, models, busy, tokens/s …
    request:{R}          hash     limits + 2 min      every script          all          state, worker, epoch, times …
    prompt:{R}           string   as request          enqueue               claim worker the request itself (msgpack)
    frames:{R}           list     as request          append end            readers      the answer so far (msgpack frames)
    tokens:{R}           string   as request          append                worker       its token ids so far (uint32)
    arq:job:R            string   as request          enqueue               arq          what arq runs: function and id
    arq:retry:R          string   as request          arq                   arq          how often arq has started it
    turns:MODEL          hash     1 day               enqueue claim         enqueue      whose turn it is: owner → next turn, '' → now
    pace:MODEL           hash     1 day               end                   enqueue web  mean seconds of an answer, and to its first piece
    counts:MODEL         hash     kept                enqueue end …         web, status  what happened so far: accepted, ended:stop … → how often
    live:OWNER           set      as request          enqueue end           enqueue      ids that use up a user's share
    poisoned:{R}         hash     7 days              expire release end    people       what crashed 3 times or could not be read: why, prompt, job …
    swept                string   kept                expire                expire       when somebody swept last (ms)
    nothing              -        never there         every script          -            deleted first, see common.lua
    conversation:ID      hash     KEEP_DAYS           enqueue end shelf     web          owner, title, times, leaf, requests, pinned, tags …
    messages:ID          hash     as conversation     enqueue end prune …   web          message id → message (msgpack)
    deleted:ID           hash     60 s                shelf                 shelf        a deleted conversation:ID, to be brought back
    conversations:OWNER  zset     as the last of them enqueue end shelf     web          conversation ids by last change (ms)
    archived:OWNER       zset     as the last of them shelf                 web          the archived ones, in no other list
    pinned:OWNER         zset     as the last of them shelf                 web          the pinned ones by when they were (ms)
    tagged:OWNER         hash     as the last of them shelf                 web          conversation id → its tags (JSON list)
    share:ID             hash     as conversation     shares                web          owner, conversation, title, created, snapshot (msgpack)
    shares:OWNER         zset     as the last of them shares                web          share ids by creation (ms)
    retained             string   kept                web                   web          the days that all conversations were last given
    presets:OWNER        hash     kept                presets               web          name → settings that a person saved (JSON)
    battle:ID            hash     1 day                arena's scripts, end  web          a round of the arena: models, turns, answers, state
    votes                stream   kept                settle record         jobs export  one entry a vote, see broker/votes.py
    voted                hash     kept                settle record archive jobs export  a vote's battle id → what was said in it (zlib of msgpack); "": in a file
    voting:WHO           string   1 day               settle                settle       votes of a session, an address or a network in a day
    boards               hash     kept                jobs worker           web          leaderboards by filter, and the table that pairs are drawn by (msgpack)
    labels               hash     kept                jobs worker           jobs         battle id → categories that a judge gave it (JSON)
    ratings              stream   the last 100 000    threads               people       what was rated: model, rating, note, ids
    secret               string   kept                web or import, once   web import   signs the cookies, salts voters
    accounts             hash     kept                fleetchat keys        web          SHA-256 of an API key → whose it is, and its limits (msgpack)
    rate:ACCOUNT         hash     until it is full    spend                 spend        what a key may still use: requests, tokens, at (ms)

    running:, turns:, pace: and counts: have a MODEL#tokens as well, and live: an OWNER#tokens; no model has a # in its name.

    channel              published by        heard by       what
    ───────────────────  ──────────────────  ─────────────  ─────────────────────────────────────────────
    stream:{R}           append end          readers        the frames, live
    control:WORKER       cancel expire …     that worker    "cancel" with a request id, or "drain" (msgpack)
    wake:MODEL           enqueue release …   its workers    there is work
    events               beat leave expire   web            models or workers changed
    events:OWNER         enqueue end web …   web            something in this user's conversations changed (msgpack)
"""

PATTERNS = {
    "queue": "queue:%s",
    "running": "running:%s",
    "models": "models",
    "since": "since",
    "serving": "serving:%s",
    "workers": "workers",
    "worker": "worker:%s",
    "request": "request:{%s}",
    "prompt": "prompt:{%s}",
    "frames": "frames:{%s}",
    "tokens": "tokens:{%s}",
    "job": "arq:job:%s",
    "retry": "arq:retry:%s",
    "turns": "turns:%s",
    "pace": "pace:%s",
    "counts": "counts:%s",
    "live": "live:%s",
    "poisoned": "poisoned:{%s}",
    "swept": "swept",
    "nothing": "nothing",
    "conversation": "conversation:%s",
    "messages": "messages:%s",
    "deleted": "deleted:%s",
    "conversations": "conversations:%s",
    "presets": "presets:%s",
    "archived": "archived:%s",
    "pinned": "pinned:%s",
    "tagged": "tagged:%s",
    "share": "share:%s",
    "shares": "shares:%s",
    "retained": "retained",
    "battle": "battle:%s",
    "votes": "votes",
    "voted": "voted",
    "voting": "voting:%s",
    "boards": "boards",
    "labels": "labels",
    "ratings": "ratings",
    "secret": "secret",
    "accounts": "accounts",
    "rate": "rate:%s",
    "stream": "stream:{%s}",
    "control": "control:%s",
    "wake": "wake:%s",
    "events": "events",
    "events_of": "events:%s",
}


BESIDE = "#tokens"  # behind a model's name: the queue of what is done beside its workers' slots
LANES = ("", BESIDE)  # of each model


def _name(pattern: str, part: str) -> str:
    return PATTERNS[pattern].replace("%s", part)


def queue(model: str) -> str:
    """Waiting requests of a model."""
    return _name("queue", model)


def beside(model: str) -> str:
    """What stands in place of a model's name in the keys of its second queue."""
    return model + BESIDE


def running(model: str) -> str:
    """Claimed requests of a model."""
    return _name("running", model)


def serving(model: str) -> str:
    """Workers of a model."""
    return _name("serving", model)


def worker(worker_id: str) -> str:
    """What one worker says of itself."""
    return _name("worker", worker_id)


def pace(model: str) -> str:
    """How long an answer of a model takes."""
    return _name("pace", model)


def counts(model: str) -> str:
    """What has happened to a model's requests since the fleet's first start."""
    return _name("counts", model)


def request(request_id: str) -> str:
    """State of a request."""
    return _name("request", request_id)


def prompt(request_id: str) -> str:
    """The request itself."""
    return _name("prompt", request_id)


def frames(request_id: str) -> str:
    """Every frame of the answer so far."""
    return _name("frames", request_id)


def tokens(request_id: str) -> str:
    """Token ids of the answer so far."""
    return _name("tokens", request_id)


def conversation(conversation_id: str) -> str:
    """Owner, title and times of a conversation."""
    return _name("conversation", conversation_id)


def messages(conversation_id: str) -> str:
    """Messages of a conversation."""
    return _name("messages", conversation_id)


def deleted(conversation_id: str) -> str:
    """A conversation that can still be brought back."""
    return _name("deleted", conversation_id)


def conversations(owner: str) -> str:
    """Conversations of an owner."""
    return _name("conversations", owner)


def presets(owner: str) -> str:
    """Settings that an owner saved by name."""
    return _name("presets", owner)


def archived(owner: str) -> str:
    """Archived conversations of an owner."""
    return _name("archived", owner)


def pinned(owner: str) -> str:
    """Pinned conversations of an owner."""
    return _name("pinned", owner)


def tagged(owner: str) -> str:
    """Tags of an owner's conversations."""
    return _name("tagged", owner)


def share(share_id: str) -> str:
    """A snapshot that anybody with its link may read."""
    return _name("share", share_id)


def shares(owner: str) -> str:
    """Snapshots of an owner."""
    return _name("shares", owner)


def battle(battle_id: str) -> str:
    """A round of the arena."""
    return _name("battle", battle_id)


def voting(who: str) -> str:
    """Votes of somebody in a day."""
    return _name("voting", who)


def stream(request_id: str) -> str:
    """Channel of a request's frames."""
    return _name("stream", request_id)


def control(worker_id: str) -> str:
    """Channel of orders to one worker."""
    return _name("control", worker_id)


def wake(model: str) -> str:
    """Channel that says "there is work"."""
    return _name("wake", model)


def events_of(owner: str) -> str:
    """Channel of changes in an owner's conversations."""
    return _name("events_of", owner)


MODELS = PATTERNS["models"]
SINCE = PATTERNS["since"]
WORKERS = PATTERNS["workers"]
VOTES = PATTERNS["votes"]
VOTED = PATTERNS["voted"]
BOARDS = PATTERNS["boards"]
LABELS = PATTERNS["labels"]
RATINGS = PATTERNS["ratings"]
SECRET = PATTERNS["secret"]
RETAINED = PATTERNS["retained"]
ACCOUNTS = PATTERNS["accounts"]
EVENTS = PATTERNS["events"]

LUA = f"local K = {{lanes = {{{', '.join(map(repr, LANES))}}}}}\n" + "".join(
    f"K.{name} = function(id) return '{pattern.replace('%s', chr(39) + ' .. id .. ' + chr(39))}' end\n"
    for name, pattern in PATTERNS.items()
)
