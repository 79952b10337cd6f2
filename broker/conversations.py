"""Saved chats: a tree of messages each, from the first day.

A conversation belongs to an owner, and every function here checks that; `broker.shelf` lists, changes and deletes them. Messages are written by the scripts: the user's
in `enqueue`, together with the request that answers it, and the answer in `end`, together with its last frame; so no
answer is ever without its question, and none is lost because nobody watched.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from broker import keys
from broker.connection import Broker, redis_errors
from broker.errors import BadRequest, NoSuchConversation
from broker.messages import Message, pack, unpack

TITLE_CHARACTERS = 60
SEEN = ("text", "file")  # kinds of parts that go into a prompt


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One message of a conversation. An answer's id is its request's id."""

    message_id: str
    role: str
    parent: str  # "" for the first
    parts: tuple[dict[str, Any], ...]  # {kind: text, reasoning, tool or file; text; name of a tool or file}
    created: int = 0  # milliseconds since 1970, Redis' clock
    model: str = ""
    request_id: str = ""
    reason: str = ""
    usage: dict[str, Any] | None = None
    timings: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    rating: str = ""  # up, down or flag
    note: str = ""  # why

    @property
    def text(self) -> str:
        """What was written, without the files that came with it and without thoughts."""
        return "".join(part["text"] for part in self.parts if part["kind"] == "text")

    @property
    def seen(self) -> str:
        """What a model gets to see of it."""
        return shown_to_model(self.parts)

    def to_map(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A saved chat without its messages."""

    conversation_id: str
    owner: str
    title: str
    created: int  # milliseconds since 1970
    updated: int
    leaf: str  # the message shown last
    requests: tuple[str, ...] = ()  # the answers that are being written
    settings: dict[str, Any] = field(default_factory=dict)  # what its last answer was asked with
    titled: str = ""  # whose title it is: "" the first words, "model", or "user"
    pinned: int = 0  # when it was, in milliseconds since 1970; 0: it is not
    archived: int = 0
    tags: tuple[str, ...] = ()
    shares: tuple[str, ...] = ()  # ids of what was shared of it

    def to_map(self) -> dict[str, Any]:
        """What its owner sees of it in a list; the settings are for who opens it."""
        shown = asdict(self)
        del shown["owner"], shown["settings"]
        return shown


def parts_of(text: str, files: Iterable[tuple[str, str]] = ()) -> list[dict[str, Any]]:
    """A user's text and the files (name, text) that come with it, as parts of a message."""
    attached = [{"kind": "file", "name": name, "text": content} for name, content in files]
    return [*attached, {"kind": "text", "text": text}] if text or not attached else attached


def user_message(text: str, parent: str, created: int, files: Iterable[tuple[str, str]] = ()) -> bytes:
    """A user's message as it is stored."""
    return pack({"role": "user", "parent": parent, "parts": parts_of(text, files), "created": created})


def shown_to_model(parts: Iterable[dict[str, Any]]) -> str:
    """What a model sees of a message: each file's name with its content in a fence, then the text."""
    return "".join(_fenced(part) if part["kind"] == "file" else part["text"] for part in parts if part["kind"] in SEEN)


def _fenced(file: dict[str, Any]) -> str:
    name, text = file["name"], file["text"]
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))  # longer than any in it
    suffix = name.rpartition(".")[2]
    language = suffix if suffix != name and re.fullmatch(r"[A-Za-z0-9+#-]{1,12}", suffix) else ""
    return f"{name}\n{fence}{language}\n{text}{'' if text.endswith(chr(10)) else chr(10)}{fence}\n\n"


def title_of(text: str) -> str:
    """The first words of a message, without Markdown's commonest marks."""
    line = " ".join(text.split())
    line = line.replace("**", "").replace("`", "").lstrip("#>*- ") or line
    if len(line) <= TITLE_CHARACTERS:
        return line
    cut = line[:TITLE_CHARACTERS]
    return (cut.rpartition(" ")[0] if " " in cut[TITLE_CHARACTERS // 2 :] else cut) + "…"


async def load(broker: Broker, conversation_id: str, owner: str) -> tuple[Conversation, dict[str, StoredMessage]]:
    """A conversation and all its messages by id.

    Raises:
        NoSuchConversation: it does not exist or belongs to somebody else; the two look the same from outside.
    """
    async with redis_errors():
        async with broker.redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(keys.conversation(conversation_id))
            pipe.hgetall(keys.messages(conversation_id))
            record, encoded = await pipe.execute()
    conversation = from_record(conversation_id, record)
    if conversation is None or conversation.owner != owner:
        raise NoSuchConversation
    return conversation, {key.decode(): _message(key.decode(), unpack(value)) for key, value in encoded.items()}


def path(messages: dict[str, StoredMessage], leaf: str) -> list[StoredMessage]:
    """The messages from the first to `leaf`.

    Raises:
        BadRequest: there is no such message, or its parents do not lead to a first one.
    """
    found: list[StoredMessage] = []
    while leaf:
        message = messages.get(leaf)
        if message is None or len(found) > len(messages):
            raise BadRequest("There is no such message in this conversation. Reload the page.")
        found.append(message)
        leaf = message.parent
    return found[::-1]


def history(messages: Sequence[StoredMessage]) -> tuple[Message, ...]:
    """What the model sees of a path: answers that came to nothing are left out, with the question before them."""
    seen: list[Message] = []
    for message in messages:
        if message.role == "assistant" and not message.text:
            if seen and seen[-1].role == "user":
                seen.pop()
        else:
            seen.append(Message(message.role, message.seen))
    return tuple(seen)


def from_record(conversation_id: str, record: dict[bytes, bytes]) -> Conversation | None:
    """The conversation in a hash as Redis gives it; None if there is none."""
    if b"owner" not in record:
        return None
    text = {key.decode(): value.decode() for key, value in record.items() if key in _RECORD_FIELDS}
    known: dict[str, Any] = {name: text.get(name, "") for name in ("owner", "title", "leaf", "titled")}
    known |= {name: int(text.get(name) or 0) for name in ("created", "updated", "pinned", "archived")}
    known |= {name: tuple(text.get(name, "").split()) for name in ("requests", "shares")}
    known |= {"tags": tuple(json.loads(text.get("tags", "[]"))), "settings": json.loads(text.get("settings", "{}"))}
    return Conversation(conversation_id, **known)


_RECORD_FIELDS = {f.name.encode() for f in fields(Conversation)} - {b"conversation_id"}
_MESSAGE_FIELDS = {f.name for f in fields(StoredMessage)} - {"message_id"}


def _message(message_id: str, raw: dict[str, Any]) -> StoredMessage:
    known = {key: value for key, value in raw.items() if key in _MESSAGE_FIELDS}
    return StoredMessage(message_id, **known | {"parts": tuple(raw.get("parts") or ())})
