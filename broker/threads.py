"""One path through a conversation's tree, as it is shown: from the first message to a leaf, a page at a time.

A message's versions are its siblings: the messages of the same role under the same parent, in the order in which they
were asked for. Answers under way are versions like any other. Deleting and rating are here, too, since both are about
one message; every function checks the owner.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from broker import keys
from broker.connection import Broker, redis_errors
from broker.conversations import Conversation, StoredMessage, load, path
from broker.errors import BadRequest, NoSuchConversation, NotFound
from broker.messages import pack, unpack

PAGE = 40
RATINGS = ("up", "down", "flag")
KEPT_RATINGS = 100_000
NOTE_CHARACTERS = 2000

Messages = Mapping[str, StoredMessage]


@dataclass(frozen=True, slots=True)
class Run:
    """An answer that is being written in a conversation."""

    request_id: str
    message: str  # the user's that it answers
    model: str
    created: int  # milliseconds since 1970
    begun: tuple[dict[str, Any], ...]  # parts of the answer that it goes on from
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Shown:
    """A page of a path, and what is being written in the conversation."""

    conversation: Conversation
    leaf: str
    messages: list[dict[str, Any]]  # each with the ids of its versions
    more: bool  # there are earlier ones
    running: list[dict[str, Any]]  # each with the ids of its versions

    def to_map(self) -> dict[str, Any]:
        return {
            "conversation": self.conversation.to_map() | {"settings": self.conversation.settings},
            "leaf": self.leaf,
            "messages": self.messages,
            "more": self.more,
            "running": self.running,
        }


async def show(
    broker: Broker, conversation_id: str, owner: str, leaf: str = "", before: str = "", count: int = PAGE
) -> Shown:
    """The last messages of a path.

    Args:
        leaf: a message: the path goes on to the newest leaf below it; or an answer under way; "": what was shown last.
        before: a message of the path; the page ends above it.

    Raises:
        NoSuchConversation, BadRequest
    """
    conversation, messages, running = await _load(broker, conversation_id, owner)
    if leaf and leaf not in messages and leaf not in {run.request_id for run in running}:
        raise BadRequest("There is no such message in this conversation. Reload the page.", param="leaf")
    tip = _tip(messages, leaf or conversation.leaf, running)
    whole = path(dict(messages), tip)
    if before:
        ids = [message.message_id for message in whole]
        if before not in ids:
            raise BadRequest("There is no such message on this path. Reload the page.", param="before")
        whole = whole[: ids.index(before)]
    versions = _versions(messages, running)
    page = [m.to_map() | {"versions": versions[m.parent, m.role]} for m in whole[-count:]]
    under_way = [asdict(run) | {"versions": versions[run.message, "assistant"]} for run in running]
    return Shown(conversation, tip, page, len(whole) > count, under_way)


async def choose(broker: Broker, conversation_id: str, owner: str, leaf: str) -> None:
    """Remember the message that is shown last, or the question of an answer under way.

    Raises:
        NoSuchConversation, BadRequest
    """
    _, messages, running = await _load(broker, conversation_id, owner)
    leaf = {run.request_id: run.message for run in running}.get(leaf, leaf)
    path(dict(messages), leaf)
    async with redis_errors():
        await broker.redis.hset(keys.conversation(conversation_id), "leaf", leaf)


async def delete(broker: Broker, conversation_id: str, owner: str, message_id: str) -> str:
    """Delete a message with everything below it, also answers under way; gives the leaf that is shown now.

    Raises:
        NoSuchConversation, NotFound
    """
    _, messages, running = await _load(broker, conversation_id, owner)
    gone = messages.get(message_id)
    if gone is None:
        raise NotFound("There is no such message in this conversation. Reload the page.")
    doomed = _below(messages, message_id)
    siblings = [i for i in _versions(messages, [])[gone.parent, gone.role] if i != message_id]
    kept = {i: m for i, m in messages.items() if i not in doomed}
    leaf = _newest_leaf(kept, siblings[-1]) if siblings else gone.parent
    async with redis_errors():
        if not await broker.scripts.prune(args=[conversation_id, owner, leaf, *doomed]):
            raise NoSuchConversation
    return _tip(kept, leaf, [run for run in running if run.message not in doomed])


async def rate(broker: Broker, conversation_id: str, owner: str, message_id: str, rating: str, note: str = "") -> None:
    """Say what an answer was worth: up, down or flag, or "" for nothing. Operators read the stream `ratings`.

    Raises:
        NoSuchConversation, NotFound, BadRequest
    """
    if rating not in ("", *RATINGS):
        raise BadRequest(f"rating: one of {', '.join(RATINGS)}, or null.", param="rating")
    if len(note) > NOTE_CHARACTERS:
        raise BadRequest(f"note: at most {NOTE_CHARACTERS} characters.", param="note")
    _, messages = await load(broker, conversation_id, owner)
    message = messages.get(message_id)
    if message is None:
        raise NotFound("There is no such message in this conversation. Reload the page.")
    if message.role != "assistant":
        raise BadRequest("Only an answer can be rated.")
    rated = replace(message, rating=rating, note=note if rating else "").to_map()
    del rated["message_id"]
    facts = {"conversation": conversation_id, "message": message_id, "model": message.model}
    async with redis_errors():
        async with broker.redis.pipeline(transaction=True) as pipe:
            pipe.hset(keys.messages(conversation_id), message_id, pack(rated))
            pipe.xadd(
                keys.RATINGS, facts | {"rating": rating, "note": rated["note"]}, maxlen=KEPT_RATINGS, approximate=True
            )
            pipe.publish(
                keys.events_of(owner), pack({"type": "event", "event": "changed", "conversation": conversation_id})
            )
            await pipe.execute()


async def _load(broker: Broker, conversation_id: str, owner: str) -> tuple[Conversation, Messages, list[Run]]:
    conversation, messages = await load(broker, conversation_id, owner)
    running = await _running(broker, conversation.requests)
    if any(run.ended for run in running):  # between the two looks
        conversation, messages = await load(broker, conversation_id, owner)
    return conversation, messages, [run for run in running if not run.ended and run.request_id not in messages]


async def _running(broker: Broker, requests: Iterable[str]) -> list[Run]:
    ids = list(requests)
    async with redis_errors():
        async with broker.redis.pipeline(transaction=False) as pipe:
            for request_id in ids:
                pipe.hmget(keys.request(request_id), ["state", "parent", "model", "created", "begun"])
            found = await pipe.execute()
    return [
        Run(i, parent.decode(), model.decode(), int(created), tuple(unpack(begun) if begun else ()), state == b"ended")
        for i, (state, parent, model, created, begun) in zip(ids, found, strict=True)
        if state is not None and parent and model and created
    ]


def _tip(messages: Messages, leaf: str, running: Iterable[Run]) -> str:
    """The end of the path through a leaf, whatever state the tree is in."""
    answers = {run.request_id: run.message for run in running}
    leaf = answers.get(leaf, leaf)
    if not _reachable(messages, leaf):
        roots = [i for i, m in messages.items() if not m.parent]
        if not roots:
            return ""
        leaf = max(roots, key=lambda i: (messages[i].created, i))
    return leaf if leaf in answers.values() else _newest_leaf(messages, leaf)


def _reachable(messages: Messages, leaf: str) -> bool:
    seen: set[str] = set()
    while leaf in messages and leaf not in seen:
        seen.add(leaf)
        leaf = messages[leaf].parent
        if not leaf:
            return True
    return False


def _below(messages: Messages, message_id: str) -> dict[str, None]:
    """A message and all below it."""
    children: dict[str, list[str]] = {}
    for i, message in messages.items():
        children.setdefault(message.parent, []).append(i)
    found, left = {message_id: None}, [message_id]
    while left:
        fresh = [i for i in children.get(left.pop(), ()) if i not in found]
        found |= dict.fromkeys(fresh)
        left += fresh
    return found


def _newest_leaf(messages: Messages, message_id: str) -> str:
    """The latest of the messages below one that have nothing below them; itself if it is one."""
    found = _below(messages, message_id)
    parents = {messages[i].parent for i in found}
    return max((i for i in found if i not in parents), key=lambda i: (messages[i].created, i), default=message_id)


def _versions(messages: Messages, running: Iterable[Run]) -> dict[tuple[str, str], list[str]]:
    """The ids of the messages of a role under a parent, in the order in which they were asked for."""
    versions: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for i, message in messages.items():
        versions.setdefault((message.parent, message.role), []).append((message.created, i))
    for run in running:
        versions.setdefault((run.message, "assistant"), []).append((run.created, run.request_id))
    return {key: [i for _, i in sorted(found)] for key, found in versions.items()}
