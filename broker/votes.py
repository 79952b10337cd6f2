"""Votes as they are kept: one entry each in the stream `votes`, all of it text that `redis-cli` shows.

An entry has all that ratings need, so a leaderboard can be computed from the stream alone, now and again; what was said
lies apart, compressed, in the hash `voted` under the battle's id. Nothing here knows how votes are rated.
"""

import zlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from broker import keys
from broker.connection import Broker, redis_errors
from broker.messages import pack, unpack

WINNERS = ("a", "b", "tie", "bad")
KINDS = ("blind", "named", "late")  # late: after the names were known, so it counts nowhere
BATCH = 5000
LEVEL = 9  # of zlib: a vote is written once and its text is seldom read

Style = tuple[int, int, int, int]
"""Of an answer: its length in words (a Chinese character is one), and its headers, list items and bold passages."""


@dataclass(frozen=True, slots=True)
class Vote:
    """Which of two models gave the better answer, as one person sees it."""

    battle: str
    kind: str
    winner: str
    a: str  # the models' names
    b: str
    p: float = 0.0  # the probability with which this pair, in either order, was drawn; 0: it was not drawn
    turns: int = 1
    voter: str = ""  # a salted hash
    at: int = 0  # milliseconds since 1970
    categories: tuple[str, ...] = ()
    style_a: Style = (0, 0, 0, 0)  # of all its answers together
    style_b: Style = (0, 0, 0, 0)
    leak: bool = False  # an answer says whose it is

    def encode(self) -> list[str]:
        """Names and values in turn, as XADD takes them."""
        return [part for name in NAMES for part in (name, _write(getattr(self, name)))]

    @classmethod
    def decode(cls, entry: dict[bytes, bytes]) -> Self:
        """From an entry of the stream; what is not known is ignored.

        Raises:
            ValueError, KeyError: it is no vote.
        """
        text = {key.decode(): value.decode() for key, value in entry.items()}
        known: dict[str, Any] = {name: text[name] for name in ("battle", "kind", "winner", "a", "b")}
        if known["winner"] not in WINNERS or known["kind"] not in KINDS:
            raise ValueError("no vote")
        known |= {"p": float(text.get("p", 0)), "turns": int(text.get("turns", 1)), "at": int(text.get("at", 0))}
        known |= {"voter": text.get("voter", ""), "categories": tuple(text.get("categories", "").split())}
        known |= {name: _style(text.get(name, "")) for name in ("style_a", "style_b")}
        return cls(**known, leak=text.get("leak") == "1")


NAMES = tuple(f.name for f in fields(Vote))


def _write(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return str(int(value)) if isinstance(value, bool) else str(value)


def _style(text: str) -> Style:
    length, headers, lists, bold = map(int, text.split() or (0, 0, 0, 0))
    return length, headers, lists, bold


async def read(broker: Broker, after: str = "-", batch: int = BATCH) -> AsyncIterator[list[tuple[str, Vote]]]:
    """All votes with their entry's id, in the order in which they came, some thousands at a time.

    Args:
        after: an entry's id; only what comes behind it.
    """
    start = after if after == "-" else f"({after}"
    while True:
        async with redis_errors():
            entries = await broker.redis.xrange(keys.VOTES, start, "+", count=batch)
        if not entries:
            return
        yield decode(entries)
        start = f"({entries[-1][0].decode()}"


def decode(entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> list[tuple[str, Vote]]:
    """The votes in a stream's entries; what is none, which only a person can have put there, is left out."""
    found = []
    for entry_id, entry in entries:
        try:
            found.append((entry_id.decode(), Vote.decode(entry)))
        except (ValueError, KeyError):
            continue
    return found


def compress(said: Any) -> bytes:
    """What was said in a battle, as it lies in `voted`."""
    return zlib.compress(pack(said), LEVEL)


def decompress(blob: bytes) -> Any:
    """What `compress` was given.

    Raises:
        ValueError: these bytes are something else.
    """
    try:
        return unpack(zlib.decompress(blob))
    except zlib.error as error:
        raise ValueError(f"not compressed: {error}") from None


async def said(broker: Broker, battles: Sequence[str]) -> list[Any]:
    """What was said in each of these battles; None where it is not here (any more)."""
    if not battles:
        return []
    async with redis_errors():
        blobs = await broker.redis.hmget(keys.VOTED, list(battles))
    return [decompress(blob) if blob else None for blob in blobs]
