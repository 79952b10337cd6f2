"""Full-text search over an owner's conversations: titles, what was said in them, and attached files; the archived ones, too.

There is no index: the conversations are read newest first, as many as fit into a short time, and the answer says where
to go on. Text is compared folded (case does not count, nor how an accent is written), so every script is searched alike; and
a chat's raw bytes are looked through before any of its messages is unpacked, which most of them never are.
"""

import re
import time
import unicodedata
from dataclasses import dataclass
from typing import Any

from broker import keys, shelf
from broker.connection import Broker, redis_errors
from broker.conversations import Conversation
from broker.errors import BadRequest
from broker.messages import unpack
from broker.shelf import Cursor

SECONDS = 0.4  # of looking, in one call
BATCH = 16  # conversations that are read at once
FOUND = 20  # results of one call
LONGEST = 200  # characters of a query
WINDOW = 2000  # characters of a message that are looked at more closely
BEFORE, AROUND = 40, 160  # characters of a snippet: before the first word that was found, and in all
MARKS = re.compile(r"\*\*|```\w*|^\s*#{1,6}\s|\|[-|: ]*", re.M)  # of Markdown, which say nothing in a line


@dataclass(frozen=True, slots=True)
class Result:
    """A conversation with all words of the query in it. In both texts every second piece is one of them."""

    conversation: Conversation
    title: tuple[str, ...]
    snippet: tuple[str, ...]  # of the message or a file of it; empty when the words are in the title alone
    message_id: str

    def to_map(self) -> dict[str, Any]:
        return self.conversation.to_map() | {
            "title_parts": self.title,
            "snippet": self.snippet,
            "message_id": self.message_id,
        }


@dataclass(frozen=True, slots=True)
class Found:
    """What one call found."""

    results: tuple[Result, ...]
    after: str  # to go on from; "" when all has been looked through


async def find(broker: Broker, owner: str, query: str, before: str = "", seconds: float = SECONDS) -> Found:
    """The latest conversations with all words of `query`, from a place on.

    Raises:
        BadRequest: the query is empty or too long.
    """
    words = fold(query).split()
    if not words or len(query) > LONGEST:
        raise BadRequest(f"q: one to {LONGEST} characters to look for.", param="q")
    deadline = time.monotonic() + seconds
    places, results = await shelf.every(broker, owner, before), list[Result]()
    for start in range(0, len(places), BATCH):
        batch = places[start : start + BATCH]
        results += await _look(broker, owner, [one for _, one in batch], words)
        more = start + BATCH < len(places)
        if more and (len(results) >= FOUND or time.monotonic() > deadline):
            return Found(tuple(results), str(Cursor(*batch[-1])))
    return Found(tuple(results), "")


async def _look(broker: Broker, owner: str, ids: list[str], words: list[str]) -> list[Result]:
    async with redis_errors():
        async with broker.redis.pipeline(transaction=False) as pipe:
            for one in ids:
                pipe.hgetall(keys.messages(one))
            encoded = dict(zip(ids, await pipe.execute(), strict=True))
        found = await shelf.read(broker, owner, ids)
    return [r for c in found if (r := _match(c, encoded[c.conversation_id], words)) is not None]


def _match(conversation: Conversation, encoded: dict[bytes, bytes], words: list[str]) -> Result | None:
    title = fold(conversation.title)
    missing = [word for word in words if word not in title]
    raw = fold(b"\n".join(encoded.values()).decode(errors="ignore"))
    if any(word not in raw for word in missing):
        return None
    # Now it may be here, or the words are in something that nobody reads: a field's name, or a model's.
    texts = {one.decode(): _text(unpack(value)) for one, value in encoded.items()}
    folded = {one: fold(text) for one, text in texts.items()}
    if any(not any(word in text for text in folded.values()) for word in missing):
        return None
    wanted = missing or words
    best = max(folded, key=lambda one: (sum(word in folded[one] for word in wanted), one), default="")
    here = best and any(word in folded[best] for word in words)
    snippet = _snippet(texts[best], words) if here else ()
    return Result(conversation, pieces(conversation.title, words), snippet, best if here else "")


def fold(text: str) -> str:
    """Text as it is compared."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", text).casefold()


def pieces(text: str, words: list[str]) -> tuple[str, ...]:
    """The text in pieces, where every second one is a word that was looked for: ("be", "fore", " after")."""
    folded, spans = _fold_with_spans(text)
    parts, done, at = list[str](), 0, 0
    while hits := [(found, -len(word)) for word in words if (found := folded.find(word, at)) >= 0]:
        first, length = min(hits)
        at = first - length
        start, end = spans[first][0], spans[at - 1][1]
        if start >= done:
            parts += [text[done:start], text[start:end]]
            done = end
    return (*parts, text[done:])


def _fold_with_spans(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Folded text, and where each of its characters comes from."""
    folded, spans, start = [], list[tuple[int, int]](), 0
    for end in range(1, len(text) + 1):
        if end < len(text) and unicodedata.combining(text[end]):
            continue  # a letter and its accents are folded together
        folded.append(fold(text[start:end]))
        spans += [(start, end)] * len(folded[-1])
        start = end
    return "".join(folded), spans


def _snippet(text: str, words: list[str]) -> tuple[str, ...]:
    """A line around the first word in a text."""
    for start in range(0, len(text), WINDOW):
        window = text[max(0, start - BEFORE) : start + WINDOW + LONGEST]
        if any(word in fold(window) for word in words):
            break
    first, *rest = (re.sub(r"\s+", " ", MARKS.sub(" ", part)) for part in pieces(window, words))
    if len(first) > BEFORE:
        cut = first[-BEFORE:]
        first = "…" + (cut.partition(" ")[2] if " " in cut[: BEFORE // 2] else cut)
    line, room = [first], AROUND - len(first)
    for part in rest:
        line.append(part[: max(room, 0)] + "…" * (len(part) > room))
        room -= len(part)
        if room <= 0:
            break
    return tuple(line)


def _text(message: dict[str, Any]) -> str:
    """What a message says, and behind it each of its files by name."""
    parts = message["parts"]
    said = "".join(part["text"] for part in parts if part["kind"] == "text")
    files = [f"{part['name']}: {part['text']}" for part in parts if part["kind"] == "file"]
    return "\n".join(text for text in (said, *files) if text)
