"""The leaderboard beside the queue: reads the stream of votes, and keeps boards of them in Redis.

Comes in: `votes`, from their first one, then as they come. Goes out: the boards of broker/leaderboard.py. Those that most
people see follow a vote within 2 s also when there are a million; the others do while there are not very many, and
then each in its turn, as the machine has time. All can be computed from the votes again, so nothing here is kept on a
disk: a worker that starts reads them all. Numbers are crunched in threads, so leases and heartbeats go on.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from broker import keys, leaderboard
from broker.connection import Broker, keep_trying
from broker.leaderboard import Board, BoardRequest
from broker.messages import ModelCard
from broker.rules import Rules
from broker.tasks import beside, happens
from workers.ballots import Ballots, Entry, View
from workers.boards import FIRST, Boards
from workers.labels import CATEGORIES, Labels

logger = logging.getLogger("fleetchat.leaderboard")

BATCH = 5000  # entries that are read at a time
BLOCK_MS = 1000  # less than a command's time limit
LOOK_SECONDS = 1.0  # between two looks whether votes or cards have changed in another way than by a new vote
PAUSE = 0.5  # between two rounds of the first boards, and at most after another one
PAIRS_SECONDS = 5.0  # between two tables of pairs, unless there is a new model
QUICK_SECONDS = 0.1  # if it takes longer to look at all voters, they are looked at again only after REST times as long
REST = 10
IDLE_SECONDS = 30.0  # after which a board is made again whose own votes are the same, for what it shows beside them


class Leaderboard:
    """Follows the votes while `run` runs."""

    def __init__(self, broker: Broker, rules: Rules) -> None:
        self._broker = broker
        self._boards = Boards(rules)
        self._trusted = rules.ratings.trusted
        self._readings = itertools.count(1)
        self._judged = frozenset(CATEGORIES if rules.categories.judge else ())
        self._ballots = self._incoming = Ballots()  # of which boards are made; that is being read
        self._labels = Labels(broker, rules.categories.judge, self._label)
        self._cards: Mapping[str, ModelCard] = {}
        self._version = 0  # grows with whatever makes boards stale
        self._made: dict[str, tuple[int, Any, float]] = {}  # field -> of which version and votes, when
        self._took: dict[str, float] = {}  # field -> seconds, the last time
        self._kept: set[str] = set()  # fields of boards that there are to be
        self._read = asyncio.Event()  # all votes that were there have been read
        self._news = asyncio.Event()  # for the first boards
        self._more = asyncio.Event()  # for the others
        self._doubts = asyncio.Event()  # for those who vote
        self._asked = asyncio.Lock()  # boards that somebody asks for are computed one at a time

    async def run(self) -> None:
        """Until cancelled."""
        async with beside(self._follow(), self._first(), self._suspect(), self._others(), self._labels.run()):
            await asyncio.Event().wait()

    async def compute(self, request: BoardRequest) -> Board:
        """A board of any votes and models, now."""
        await self._read.wait()
        async with self._asked:
            return await self._board(self._ballots, self._ballots.view(), request, keep=False)

    async def _follow(self) -> None:
        while True:
            ballots, last = Ballots(next(self._readings), self._judged), b"0-0"
            self._incoming = ballots
            await keep_trying(self._labels.load)
            looked = 0.0
            while True:
                entries = await keep_trying(partial(self._entries, last))
                if entries:
                    last = entries[-1][0]
                    await self._take(entries)
                if len(entries) == BATCH:
                    continue  # there are more, and what they change need not be shown
                changed = bool(entries) or ballots is not self._ballots
                if time.monotonic() - looked > LOOK_SECONDS:
                    looked = time.monotonic()
                    if await keep_trying(partial(self._lost, last)):
                        logger.warning("votes have gone from Redis; the rest is read again")
                        break
                    changed |= await keep_trying(self._look_at_cards)
                self._ballots = ballots
                self._stale(changed)
                self._read.set()

    async def _entries(self, last: bytes) -> list[Entry]:
        found = await self._broker.redis.xread({keys.VOTES: last}, count=BATCH, block=BLOCK_MS)
        return found[0][1] if found else []

    async def _take(self, entries: Sequence[Entry]) -> None:
        begin = self._incoming.size
        battles = await asyncio.to_thread(self._incoming.add, entries, self._labels.known)
        if unreadable := len(entries) - len(battles):
            first, last = (entries[i][0].decode() for i in (0, -1))
            logger.warning(
                "%d entries of votes from %s to %s are no votes and are passed over", unreadable, first, last
            )
        self._labels.take(begin, battles)

    async def _lost(self, last: bytes) -> bool:
        """Whether votes that are known here are not in Redis: deleted, or lost with the last second before a power cut."""
        async with self._broker.redis.pipeline(transaction=True) as pipe:
            pipe.xlen(keys.VOTES)
            pipe.xrange(keys.VOTES, last, last)
            length, found = await pipe.execute()
        seen = self._incoming.seen
        return bool(length < seen or (seen and not found))

    async def _look_at_cards(self) -> bool:
        """Whether something has changed of what boards show of models."""
        encoded = await self._broker.redis.hgetall(keys.MODELS)
        before, self._cards = self._cards, {card.name: card for card in map(ModelCard.decode, encoded.values())}
        return any(_shown(before.get(name)) != _shown(self._cards.get(name)) for name in self._incoming.names)

    def _stale(self, changed: bool) -> None:
        if changed:
            self._version += 1
            for waiting in (self._news, self._more, self._doubts):
                waiting.set()

    def _label(self, row: int, categories: Sequence[str]) -> None:
        """A judge has said what categories a vote has."""
        self._incoming.label(row, categories)
        self._stale(self._incoming is self._ballots)

    async def _first(self) -> None:
        """The boards that most people see, after every vote, and now and then the table for drawing pairs."""
        await self._read.wait()
        models, drawn, pairs = -1, 0.0, True  # that the last table has, when it was made, and whether it has all votes
        while True:
            await happens(self._news, None if pairs else drawn + PAIRS_SECONDS - time.monotonic())
            self._news.clear()
            pairs = len(self._ballots.names) != models or time.monotonic() - drawn >= PAIRS_SECONDS
            if pairs:
                models, drawn = len(self._ballots.names), time.monotonic()
            await self._publish(FIRST, pairs=pairs)
            await asyncio.sleep(PAUSE)

    async def _suspect(self) -> None:
        """Voters who are to be set aside, after every vote, or as often as there is time to look for them."""
        await self._read.wait()
        looked = None
        while True:
            self._doubts.clear()
            view, trusted = self._ballots.view(), self._ballots.numbers(self._trusted)
            if looked == (view.reading, len(view)):
                await self._doubts.wait()
                continue
            looked = view.reading, len(view)
            changed, seconds = await asyncio.to_thread(self._look_at_voters, view, trusted)
            self._stale(changed)
            await asyncio.sleep(REST * seconds if seconds > QUICK_SECONDS else PAUSE)

    def _look_at_voters(self, view: View, trusted: set[int]) -> tuple[bool, float]:
        """Whether others are set aside now, and the processor's seconds that it took to see."""
        begun = time.thread_time()
        changed = [self._boards.suspect(view, named, trusted) for named in (False, True)]
        return any(changed), time.thread_time() - begun

    async def _others(self) -> None:
        """The boards beside the first ones, in rounds of all that are stale: those with new votes first, quick ones first."""
        await self._read.wait()
        while True:
            self._more.clear()
            version = self._version
            wanted = await asyncio.to_thread(self._boards.wanted, self._ballots.view())
            await self._forget({request.field for request in (*FIRST, *wanted)})
            now, stale = time.monotonic(), self._stale_ones(wanted)
            due = [request for request in sorted(stale, key=stale.__getitem__) if stale[request][0] <= now]
            if not due:
                await happens(self._more, min((when - now for when, _ in stale.values()), default=None))
            for request in due:
                self._took[request.field] = seconds = await self._publish([request])
                self._made[request.field] = version, wanted[request], time.monotonic()
                await asyncio.sleep(min(seconds / 2, PAUSE))  # leaves a third of a core's time to others

    def _stale_ones(self, wanted: Mapping[BoardRequest, Any]) -> dict[BoardRequest, tuple[float, float]]:
        """Boards that are to be made again, each with the time from which it may be, and the seconds that it takes."""
        found = {}
        for request, votes in wanted.items():
            version, of, at = self._made.get(request.field, (-1, None, 0.0))
            if version != self._version:  # if its votes are the same, only what it shows beside them can have changed
                found[request] = at + IDLE_SECONDS if of == votes else 0.0, self._took.get(request.field, 0.0)
        return found

    async def _forget(self, wanted: set[str]) -> None:
        """Let boards go of which there are no votes any more, also those of an earlier worker."""
        if wanted != self._kept:
            known = await keep_trying(partial(self._broker.redis.hkeys, keys.BOARDS))
            gone = {field.decode() for field in known} - wanted - leaderboard.BESIDE
            if gone:
                await keep_trying(partial(leaderboard.save, self._broker, {}, gone))
            self._kept = wanted

    async def _publish(self, requests: Sequence[BoardRequest], *, pairs: bool = False) -> float:
        """Compute boards and keep them; gives the seconds that it took."""
        begun = time.monotonic()
        ballots, view = self._ballots, self._ballots.view()
        boards: dict[str, Any] = {}
        for request in requests:
            try:
                boards[request.field] = await self._board(ballots, view, request, keep=True)
            except Exception:  # a vote that nobody thought of must not end the other boards, nor the jobs beside them
                logger.exception("the board %s cannot be computed", request.field)
        if pairs and FIRST[0].field in boards:
            boards[leaderboard.PAIRS] = await asyncio.to_thread(self._boards.pairs, view)
        await keep_trying(partial(leaderboard.save, self._broker, boards))
        return time.monotonic() - begun

    async def _board(self, ballots: Ballots, view: View, request: BoardRequest, *, keep: bool) -> Board:
        return await asyncio.to_thread(self._boards.board, view, request, self._cards, ballots.people, keep=keep)


def _shown(card: ModelCard | None) -> tuple[Any, ...]:
    """What boards show of a model."""
    return (card.organisation, card.licence, card.link, card.context) if card else ()
