"""The boards that this web process has read: decoded once, and read again only when the jobs worker has written.

Boards of a span of days are not published: the worker computes one when somebody asks, and it is kept here for a while.
"""

import asyncio
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from broker import keys, leaderboard
from broker.connection import Broker, redis_errors
from broker.leaderboard import BoardRequest
from broker.messages import JOBS, pack, unpack
from webapp.leaderboard_filters import Filters

OLD_SECONDS = 30  # a computed board may be so old when votes have come since
COMPUTED = 32  # that are kept


@dataclass(frozen=True, slots=True)
class Board:
    """A board as it was computed, and a name for this state of it."""

    content: Mapping[str, Any]
    tag: str


class Boards:
    """Those of one process."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._version: bytes | None = None
        self._kept: dict[str, Board | None] = {}  # of this version
        self._reading = asyncio.Lock()
        self._computed: dict[
            tuple[str, str, str], tuple[bytes | None, float, Board | None]
        ] = {}  # with version and time
        self._computing = asyncio.Lock()

    async def running(self) -> bool:
        """Whether a jobs worker is there; what was read before it wrote last is forgotten."""
        async with redis_errors():
            async with self._broker.redis.pipeline(transaction=False) as pipe:
                pipe.hget(keys.BOARDS, leaderboard.VERSION)
                pipe.zcard(keys.serving(JOBS))
                version, workers = await pipe.execute()
        if version != self._version or version is None:
            self._version, self._kept = version, {}
        return bool(workers)

    async def find(self, filters: Filters, owner: str) -> Board | None:
        """The board of these filters; None where there are no votes for one.

        Raises:
            FleetError: it has to be computed, and cannot be, as where no jobs worker runs.
        """
        request = BoardRequest(
            category=filters.category,
            style=filters.style,
            named=filters.named,
            since=filters.since,
            until=filters.until,
            owner=owner,
        )
        return await (self._compute(request) if filters.dated else self._read(request.field))

    async def several(self, fields: Sequence[str]) -> list[Board | None]:
        """Boards of no span of days by their fields, read in one step and decoded beside the event loop.

        None where there is none, which is remembered: these are fields that another board has told of.
        """
        async with self._reading:
            kept = self._kept
            new = [field for field in fields if field not in kept and field not in leaderboard.BESIDE]
            if new:
                async with redis_errors():
                    packed = await self._broker.redis.hmget(keys.BOARDS, new)
                found = await asyncio.to_thread(lambda: [one and _board(one) for one in packed])
                kept |= zip(new, found, strict=True)
        return [kept.get(field) for field in fields]

    async def _read(self, field: str) -> Board | None:
        kept = self._kept
        if field not in kept and field not in leaderboard.BESIDE:
            async with redis_errors():
                packed = await self._broker.redis.hget(keys.BOARDS, field)
            if packed:  # a category of which there is nothing is not remembered: there is no end of such names
                kept[field] = _board(packed)
        return kept.get(field)

    async def _compute(self, request: BoardRequest) -> Board | None:
        """One after the other: many pages may wait for the same."""
        key = (request.field, request.since, request.until)
        async with self._computing:
            version, begun, board = self._computed.get(key, (b"", -math.inf, None))
            if version != self._version and time.monotonic() - begun > OLD_SECONDS:
                version, begun = self._version, time.monotonic()
                found = await leaderboard.load(self._broker, request)
                board = _board(pack(found)) if found and found["models"] else None
                self._computed.pop(key, None)
                self._computed[key] = version, begun, board
                while len(self._computed) > COMPUTED:
                    del self._computed[next(iter(self._computed))]
        return board


def _board(packed: bytes) -> Board:
    return Board(unpack(packed), hashlib.blake2b(packed, digest_size=12).hexdigest())


BOARDS = web.AppKey("boards", Boards)
