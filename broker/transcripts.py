"""Conversations as files: what is exported, and what of other programs' files is understood.

Out go Markdown, and JSON that holds the whole tree beside the messages in OpenAI's form. In come that JSON, lists of
messages in OpenAI's form, ChatGPT's conversations.json and FastChat's logs. A file is understood as a whole before any of
it is kept: a mistake in it is a BadRequest that says where.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from broker import keys
from broker.connection import Broker, redis_errors
from broker.conversations import Conversation, StoredMessage
from broker.errors import StorageFull
from broker.imports import Imported
from broker.messages import new_id, pack

FORMAT = 1  # of our JSON
STORED_AT_ONCE = 50


def to_map(conversation: Conversation, messages: dict[str, StoredMessage]) -> dict[str, Any]:
    """A conversation with all its branches, for JSON. `imports.parse` reads it again."""
    return {
        "title": conversation.title,
        "created": conversation.created,
        "updated": conversation.updated,
        "archived": bool(conversation.archived),
        "tags": conversation.tags,
        "leaf": conversation.leaf,
        "tree": [
            {name: value for name, value in asdict(m).items() if value and name != "request_id"}
            for m in sorted(messages.values(), key=lambda m: (m.created, m.message_id))
        ],
    }


def to_json(conversation: Conversation, messages: dict[str, StoredMessage], path: Sequence[StoredMessage]) -> str:
    """One conversation as a file: the messages of a path in OpenAI's form, and the tree."""
    whole = {"fleetchat": FORMAT} | to_map(conversation, messages)
    return json.dumps({"messages": [_openai(message) for message in path]} | whole, ensure_ascii=False, indent=1)


def to_markdown(conversation: Conversation, path: Sequence[StoredMessage]) -> str:
    """The messages of a path, to be read."""
    day = datetime.fromtimestamp(conversation.updated / 1000, UTC).date().isoformat()
    parts = [f"# {conversation.title}", day]
    for message in path:
        parts.append("## You" if message.role == "user" else f"## {message.model or message.role}")
        parts.append(message.seen.strip("\n"))
    return "\n\n".join(part for part in parts if part) + "\n"


async def store(broker: Broker, owner: str, found: Sequence[Imported]) -> list[str]:
    """Keep conversations from a file as this owner's, with their own times; gives their ids.

    They are kept as long as if they had been changed now.
    """
    if broker.nearly_full:
        raise StorageFull
    now, stored = int(time.time() * 1000), list[str]()
    for start in range(0, len(found), STORED_AT_ONCE):
        async with redis_errors(), broker.redis.pipeline(transaction=False) as pipe:
            for one in found[start : start + STORED_AT_ONCE]:
                stored.append(new_id())
                _store(pipe, stored[-1], owner, one, now)
            await pipe.execute()
            await broker.scripts.retain(args=[broker.config.retain_ms, *stored[start:]])
    async with redis_errors():
        await broker.redis.publish(keys.events_of(owner), pack({"type": "event", "event": "changed"}))
    return stored


def _store(pipe: Any, conversation_id: str, owner: str, one: Imported, now: int) -> None:
    names = {old: new_id() for old in one.messages}
    fields: dict[str, Any] = {
        "owner": owner, "title": one.title, "titled": "user", "created": one.created, "updated": one.updated,
        "leaf": names[one.leaf], "imported": now, "tags": json.dumps(one.tags, ensure_ascii=False),
    }  # fmt: skip
    if one.archived:
        fields["archived"] = now
    if one.system:
        fields["settings"] = json.dumps({"system": one.system}, ensure_ascii=False)
    pipe.hset(keys.conversation(conversation_id), mapping=fields)
    messages = {
        names[old]: pack(message | {"parent": names.get(message["parent"], "")})
        for old, message in one.messages.items()
    }
    pipe.hset(keys.messages(conversation_id), mapping=messages)
    pipe.zadd(keys.archived(owner) if one.archived else keys.conversations(owner), {conversation_id: one.updated})
    if one.tags:
        pipe.hset(keys.tagged(owner), conversation_id, fields["tags"])


def _openai(message: StoredMessage) -> dict[str, Any]:
    reasoning = "".join(part["text"] for part in message.parts if part["kind"] == "reasoning")
    return {"role": message.role, "content": message.seen} | ({"reasoning_content": reasoning} if reasoning else {})
