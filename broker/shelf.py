"""An owner's conversations as things on a shelf: listed, renamed, pinned, archived, tagged, deleted and brought back.

A conversation stands in one of two lists, the open one or the archive, by its last change; the pinned ones of the open
list come before all. What expires leaves the lists when somebody looks at them. Every change is one script, which checks
the owner and tells the owner's open pages.
"""

import json
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from broker import conversations, keys
from broker.connection import Broker, redis_errors
from broker.conversations import Conversation
from broker.errors import BadRequest, NoSuchConversation
from broker.messages import pack

logger = logging.getLogger("fleetchat.shelf")

PAGE = 60
MOST_PINNED = 100
MOST_TAGS = 20  # of one conversation
LONGEST_TAG = 40  # characters
UNDO_SECONDS = 60
BATCH = 200


@dataclass(frozen=True, slots=True)
class Shelf:
    """A page of the list."""

    conversations: tuple[Conversation, ...]
    after: str  # where the next page begins, for `listed`; "" when this is the last one


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a list by time: below it comes what is older, or as old and of a lower id."""

    at: float
    conversation_id: str = ""

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Of what a page was given as `after`, or a time in milliseconds; "" is the top. Raises BadRequest."""
        at, _, conversation_id = text.partition("-")
        if not text:
            return cls(float("inf"))
        if not at.isascii() or not at.isdigit() or len(at) > 15:
            raise BadRequest("before: a time in milliseconds since 1970, or what an earlier answer gave.")
        return cls(int(at), conversation_id)

    @classmethod
    def of(cls, conversation: Conversation) -> "Cursor":
        return cls(conversation.updated, conversation.conversation_id)

    def __str__(self) -> str:
        return f"{self.at:.0f}-{self.conversation_id}"

    def above(self, at: float, conversation_id: str) -> bool:
        """Whether it stands before something of that time."""
        return (at, conversation_id) < (self.at, self.conversation_id)


async def listed(
    broker: Broker, owner: str, before: str = "", *, tag: str = "", archived: bool = False, count: int = PAGE
) -> Shelf:
    """An owner's conversations, latest first; on the first page the pinned ones come before them all.

    Args:
        before: a time, or `after` of the page before this one.
        tag: only those that have it; then pinned ones stand among the others.
    """
    cursor = Cursor.parse(before)
    async with redis_errors():
        if tag:
            places = await _tagged(broker, owner, tag, archived)
        else:
            places = await _places(broker, owner, archived, cursor, count)
        below = [(at, one) for at, one in places if cursor.above(at, one)]
        found = await read(broker, owner, [one for _, one in below[:count]])
        after = str(Cursor(*below[count - 1])) if len(below) > count else ""
        if not tag and not archived:
            found = [c for c in found if not c.pinned]
            if not before:
                ids = await broker.redis.zrevrange(keys.pinned(owner), 0, -1)
                found = [*await read(broker, owner, [one.decode() for one in ids]), *found]
    return Shelf(tuple(found), after)


async def tags(broker: Broker, owner: str) -> list[str]:
    """All tags of an owner's conversations, the commonest first."""
    async with redis_errors():
        every = await broker.redis.hvals(keys.tagged(owner))
    counts: dict[str, int] = {}
    for one in every:
        for tag in json.loads(one):
            counts[tag] = counts.get(tag, 0) + 1
    return sorted(counts, key=lambda tag: (-counts[tag], tag.casefold()))


async def every(broker: Broker, owner: str, before: str = "") -> list[tuple[float, str]]:
    """When each conversation of an owner's was changed, and its id: the archived ones, too, latest first."""
    cursor = Cursor.parse(before)
    async with redis_errors():
        async with broker.redis.pipeline(transaction=False) as pipe:
            for key in (keys.conversations(owner), keys.archived(owner)):
                pipe.zrange(key, 0, -1, withscores=True)
            found = await pipe.execute()
    places = [(at, one.decode()) for part in found for one, at in part]
    return sorted((place for place in places if cursor.above(*place)), reverse=True)


async def rename(broker: Broker, conversation_id: str, owner: str, title: str) -> None:
    """Raises NoSuchConversation, or BadRequest for an empty title."""
    if not title.strip():
        raise BadRequest("A title needs at least one character.")
    await _change(broker, conversation_id, owner, title=conversations.title_of(title), by="user")


async def propose_title(broker: Broker, conversation_id: str, owner: str, title: str) -> bool:
    """Take a model's title, unless the user, or a model, has given one."""
    try:
        await _change(broker, conversation_id, owner, title=title, by="model")
    except NoSuchConversation:
        return False
    return True


async def pin(broker: Broker, conversation_id: str, owner: str, pinned: bool) -> None:
    """Put it before all others, where it never expires, or back among them. An archived one comes back by it.

    Raises:
        NoSuchConversation
        BadRequest: as many are pinned as may be.
    """
    await _change(broker, conversation_id, owner, pinned=int(pinned))


async def archive(broker: Broker, conversation_id: str, owner: str, archived: bool) -> None:
    """Put it away, or back; a new message in it brings it back, too. Raises NoSuchConversation."""
    await _change(broker, conversation_id, owner, archived=int(archived))


async def tag(broker: Broker, conversation_id: str, owner: str, names: Sequence[str]) -> None:
    """Give it these tags and no others. Raises NoSuchConversation, or BadRequest for too many or too long ones."""
    cleaned = list(dict.fromkeys(filter(None, (" ".join(name.split()).lstrip("#") for name in names))))
    if len(cleaned) > MOST_TAGS or any(len(name) > LONGEST_TAG for name in cleaned):
        raise BadRequest(f"A conversation has up to {MOST_TAGS} tags of up to {LONGEST_TAG} characters.", param="tags")
    await _change(broker, conversation_id, owner, tags=json.dumps(cleaned, ensure_ascii=False))


async def delete(broker: Broker, conversation_id: str, owner: str) -> None:
    """Take it away with all that was shared of it; its answers stop. `restore` brings it back for UNDO_SECONDS."""
    async with redis_errors():
        if not await broker.scripts.delete(args=[conversation_id, owner, UNDO_SECONDS * 1000]):
            raise NoSuchConversation


async def restore(broker: Broker, conversation_id: str, owner: str) -> None:
    """Bring a deleted one back, as it was. Raises NoSuchConversation when it is really gone."""
    async with redis_errors():
        if not await broker.scripts.restore(args=[conversation_id, owner, broker.config.retain_ms]):
            raise NoSuchConversation("This conversation is gone: it was deleted more than a minute ago.")


async def retain(broker: Broker) -> None:
    """Give every conversation the time that FLEETCHAT_KEEP_DAYS says, if it said something else before."""
    days, batch = f"{broker.config.keep_days:g}", []
    if await broker.redis.get(keys.RETAINED) == days.encode():
        return
    async for key in broker.redis.scan_iter(keys.conversation("*"), count=BATCH):
        batch.append(key.decode().partition(":")[2])
        if len(batch) == BATCH:
            await broker.scripts.retain(args=[broker.config.retain_ms, *batch])
            batch.clear()
    await broker.scripts.retain(args=[broker.config.retain_ms, *batch])
    await broker.redis.set(keys.RETAINED, days)
    logger.info("conversations are kept for %s days (0: for ever)", days)


async def read(broker: Broker, owner: str, ids: Sequence[str]) -> list[Conversation]:
    """Those of these conversations that are there and the owner's, in this order; expired ones leave the lists."""
    async with broker.redis.pipeline(transaction=False) as pipe:
        for one in ids:
            pipe.hgetall(keys.conversation(one))
        records = await pipe.execute()
    found = [conversations.from_record(one, record) for one, record in zip(ids, records, strict=True)]
    if gone := [one for one, conversation in zip(ids, found, strict=True) if conversation is None]:
        await broker.scripts.forget(args=[owner, *gone])
    return [c for c in found if c is not None and c.owner == owner]


async def _places(broker: Broker, owner: str, archived: bool, cursor: Cursor, count: int) -> list[tuple[float, str]]:
    """At least one more than `count` places below the cursor, if there are so many."""
    key = keys.archived(owner) if archived else keys.conversations(owner)
    upper = "+inf" if cursor.at == float("inf") else f"{cursor.at:.0f}"
    places: list[tuple[float, str]] = []
    async for batch in _batches(broker, key, upper, count + 1):
        places += [(at, one.decode()) for one, at in batch if cursor.above(at, one.decode())]
        if len(places) > count:
            break
    return places


async def _batches(broker: Broker, key: str, upper: str, count: int) -> AsyncIterator[list[tuple[bytes, float]]]:
    start = 0
    while batch := await broker.redis.zrevrangebyscore(key, upper, "-inf", start=start, num=count, withscores=True):
        yield batch
        start += count


async def _tagged(broker: Broker, owner: str, tag: str, archived: bool) -> list[tuple[float, str]]:
    every = await broker.redis.hgetall(keys.tagged(owner))
    ids = [one.decode() for one, names in every.items() if tag in json.loads(names)]
    if not ids:
        return []
    scores = await broker.redis.zmscore(keys.archived(owner) if archived else keys.conversations(owner), ids)
    return sorted(((at, one) for at, one in zip(scores, ids, strict=True) if at is not None), reverse=True)


async def _change(broker: Broker, conversation_id: str, owner: str, **changes: Any) -> None:
    async with redis_errors():
        status = await broker.scripts.change(
            args=[conversation_id, owner, broker.config.retain_ms, MOST_PINNED, pack(changes)]
        )
    if status == -1:
        raise BadRequest(f"{MOST_PINNED} conversations are pinned, which is all that may be. Unpin one first.")
    if status in (0, -2):
        raise NoSuchConversation
