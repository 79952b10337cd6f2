"""Read-only links to snapshots: what was shown of a conversation when it was shared, and nothing about its owner.

A share lives as long as its conversation does: a deleted one takes its links with it, and brings them back. That of a
battle, which itself is gone after a day, lives as long as conversations are kept. Whoever has the link may read; it
cannot be guessed (128 random bits).
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from broker import conversations, keys
from broker.connection import Broker, redis_errors
from broker.conversations import StoredMessage
from broker.errors import BadRequest, NoSuchConversation, NotFound, StorageFull
from broker.messages import pack, unpack

MOST = 200  # of one owner
SHOWN = ("role", "model", "created", "reason")  # of a message


@dataclass(frozen=True, slots=True)
class Share:
    """A link as its owner sees it."""

    share_id: str
    conversation: str  # "" for what lives by itself
    title: str
    created: int  # milliseconds since 1970

    def to_map(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What everybody sees of it."""

    title: str
    created: int
    messages: tuple[dict[str, Any], ...]  # role, parts, model, created, reason; of a battle see `Battle.snapshot`


async def create(broker: Broker, conversation_id: str, owner: str, leaf: str = "") -> Share:
    """A link to the messages from the first to `leaf`, or to the one shown last.

    Raises:
        NoSuchConversation
        BadRequest: there is nothing to share, or the owner has as many links as may be.
    """
    conversation, messages = await conversations.load(broker, conversation_id, owner)
    path = conversations.path(messages, leaf or conversation.leaf)
    if not path:
        raise BadRequest("There is nothing in this conversation yet.")
    return await keep(broker, owner, conversation.title, [public(message) for message in path], conversation_id)


async def keep(
    broker: Broker, owner: str, title: str, messages: Sequence[dict[str, Any]], conversation_id: str = ""
) -> Share:
    """A link to a snapshot; without a conversation it lives by itself.

    Raises:
        NoSuchConversation
        BadRequest: the owner has as many links as may be.
        StorageFull
    """
    if broker.nearly_full:
        raise StorageFull
    share = Share(secrets.token_urlsafe(16), conversation_id, title, int(time.time() * 1000))
    async with redis_errors():
        if await broker.redis.zcard(keys.shares(owner)) >= MOST:
            raise BadRequest(f"You have {MOST} links, which is all that may be. Revoke one first.")
        kept = await broker.scripts.share(
            args=[
                share.share_id, conversation_id, owner, broker.config.retain_ms, title, share.created, pack(list(messages))
            ]
        )  # fmt: skip
    if not kept:
        raise NoSuchConversation
    return share


async def listed(broker: Broker, owner: str) -> list[Share]:
    """An owner's links, the latest first."""
    async with redis_errors():
        ids = [one.decode() for one in await broker.redis.zrevrange(keys.shares(owner), 0, -1)]
        async with broker.redis.pipeline(transaction=False) as pipe:
            for one in ids:
                pipe.hmget(keys.share(one), "conversation", "title", "created")
            records = await pipe.execute()
        if gone := [one for one, record in zip(ids, records, strict=True) if record[0] is None]:
            await broker.redis.zrem(keys.shares(owner), *gone)  # expired; an id never comes back
    return [
        Share(one, record[0].decode(), record[1].decode(), int(record[2]))
        for one, record in zip(ids, records, strict=True)
        if record[0] is not None
    ]


async def revoke(broker: Broker, share_id: str, owner: str) -> None:
    """The link shows nothing any more. Raises NotFound if there is none of this owner's."""
    async with redis_errors():
        if not await broker.scripts.revoke(args=[share_id, owner]):
            raise NotFound("There is no such link, or it is not yours.")


async def read(broker: Broker, share_id: str) -> Snapshot:
    """What a link shows.

    Raises:
        NotFound: there never was such a link, or it was revoked, or its conversation is gone.
    """
    async with redis_errors():
        record = await broker.redis.hmget(keys.share(share_id), "conversation", "title", "created", "snapshot")
        there = record[0] == b"" or (record[0] and await broker.redis.exists(keys.conversation(record[0].decode())))
    if not there:
        raise NotFound("This link shows nothing: it was revoked, or the conversation behind it was deleted.")
    return Snapshot(record[1].decode(), int(record[2]), tuple(unpack(record[3])))


def public(message: StoredMessage) -> dict[str, Any]:
    """What others may see of a message: of a file its name alone."""
    shown = {name: value for name in SHOWN if (value := getattr(message, name))}
    return shown | {"parts": _public(message.parts)}


def _public(parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [part if part["kind"] != "file" else {"kind": "file", "text": "", "name": part["name"]} for part in parts]
