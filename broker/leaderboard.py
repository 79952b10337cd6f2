"""Leaderboards as the `jobs` worker leaves them: one look at Redis gives a whole one, by category, style control and kind.

Boards lie in the hash `boards`, and with them a version that is new whenever one of them is. What is not kept there, a
board of a span of dates, the worker computes when it is asked. Nothing here knows how ratings are made.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, ClassVar

from broker import chat, keys
from broker.connection import Broker, redis_errors
from broker.errors import BadRequest
from broker.messages import JobRequest, new_id, pack, unpack

ALL = "all"
PAIRS, VERSION = "pairs", "version"
BESIDE = frozenset({PAIRS, VERSION})  # fields of `boards` that are no boards

Board = dict[str, Any]
"""What a page shows: {category, style, named, from, to, votes, models, heat, history, ...}; workers/boards.py makes it."""


@dataclass(frozen=True, slots=True)
class BoardRequest(JobRequest):
    """Which votes make a leaderboard."""

    JOB: ClassVar[str] = "board"
    BESIDE: ClassVar[bool] = True  # many boards that are asked for at once keep no other job waiting

    category: str = ALL
    style: bool = False  # whether length and formatting are taken out of the ratings
    named: bool = False  # whether votes on named models count, too
    since: str = ""  # ISO dates, both within; "" is no limit
    until: str = ""

    @property
    def field(self) -> str:
        """Its name in `boards`, as of one without dates."""
        return ":".join([self.category, *(["style"] if self.style else []), *(["named"] if self.named else [])])

    @property
    def kept(self) -> bool:
        """Whether it is one of those in `boards`."""
        return not (self.since or self.until)

    def check(self) -> None:
        """Raises BadRequest when a date is none."""
        for name in ("since", "until"):
            text = getattr(self, name)
            try:
                if text:
                    date.fromisoformat(text)
            except (ValueError, TypeError):
                raise BadRequest(f"{name} is {text!r:.40}, which is no date like 2026-01-31.", param=name) from None


async def load(broker: Broker, request: BoardRequest) -> Board | None:
    """A leaderboard; None if there is none: no vote has that category, or no jobs worker has run yet.

    Raises:
        NoSuchModel, NoWorker: it is one that has to be computed, and nobody is there who does.
        BadRequest: a date is none.
    """
    request.check()
    if request.kept:
        return await _kept(broker, request.field)
    board: Board | None = (await chat.job(broker, request))["board"]
    return board


async def fields(broker: Broker) -> list[str]:
    """The names of the boards that are kept."""
    async with redis_errors():
        found = await broker.redis.hkeys(keys.BOARDS)
    return sorted({name.decode() for name in found} - BESIDE)


async def pairs(broker: Broker) -> dict[str, Any] | None:
    """What is known of each pair of models, for drawing the next one: {names, count, variance}, matrices by names.

    `count` is how many votes on the pair alone would tell as much of their difference as all votes do, `variance` that
    of one vote (arXiv 2403.04132, section 5). None before any jobs worker has run.
    """
    return await _kept(broker, PAIRS)


async def version(broker: Broker) -> str:
    """Another one whenever a board has changed; "" before any jobs worker has run."""
    async with redis_errors():
        found = await broker.redis.hget(keys.BOARDS, VERSION)
    return found.decode() if found else ""


async def save(broker: Broker, boards: Mapping[str, Any], gone: Iterable[str] = ()) -> None:
    """Keep boards by their fields, and forget those that are gone."""
    async with broker.redis.pipeline(transaction=True) as pipe:
        pipe.hset(keys.BOARDS, mapping={field: pack(board) for field, board in boards.items()} | {VERSION: new_id()})
        if gone := tuple(gone):
            pipe.hdel(keys.BOARDS, *gone)
        await pipe.execute()


async def _kept(broker: Broker, field: str) -> dict[str, Any] | None:
    async with redis_errors():
        found = await broker.redis.hget(keys.BOARDS, field)
    if found is None:
        return None
    board: dict[str, Any] = unpack(found)
    return board
