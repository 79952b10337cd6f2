"""Categories that a judge gives: a model of the fleet is asked what each vote's prompts are, when nobody else needs it.

Comes in: votes as they are read. Goes out: what the judge said, kept in the hash `labels`, so it is asked once. A judge
that is away, or says something that is no answer, is asked again later: until then a vote has the categories of the
written rules, of which the judge's word takes the place where it has one.
"""

import asyncio
import heapq
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from redis.exceptions import RedisError

from broker import chat, keys, votes
from broker.connection import Broker
from broker.errors import EngineFailed, FleetError
from broker.messages import ChatRequest, Message, Sampling
from broker.tasks import happens

logger = logging.getLogger("fleetchat.labels")

CATEGORIES = {
    "coding": "it asks for a program, a query or a script, or about one",
    "math": "it needs calculation, proof or formal reasoning",
    "hard": "it needs several steps or much knowledge, and has one right kind of answer that an expert can tell",
    "creative": "it asks for a story, a poem, a slogan or another text out of imagination",
    "instruction": "it sets several rules that the answer has to keep, as of form, length or words",
}
ASKED = (
    "You sort the messages that people send to a chat assistant. You do not answer them. Say for each category whether "
    "the message belongs to it:\n"
    + "\n".join(f"{name}: {about}" for name, about in CATEGORIES.items())
    + "\nWrite one line for each, and nothing else, like this:\n"
    + "\n".join(f"{name}: yes or no" for name in CATEGORIES)
)
LINE = re.compile(r"^\W*(\w+)\W*[:=]\W*(yes|no)\b", re.I | re.M)
CLIPPED = 6000  # characters of a battle's prompts that the judge sees
MOST_TOKENS = 200
BATCH = 5000  # labels that are read at a time
AT_ONCE = 4  # votes that a judge is asked about at a time
PAUSES = (5.0, 30.0, 120.0, 600.0, 3600.0)  # seconds until a vote is asked about again
AWAY_SECONDS = 5.0  # until anything is asked again when nothing was answered


@dataclass(order=True, frozen=True, slots=True)
class _Waiting:
    """A vote that the judge is to be asked about. The smallest comes first."""

    due: float  # on the loop's clock; 0: at once
    newness: int  # minus its row: the latest vote first
    battle: str
    reading: int
    tries: int = 0


class Labels:
    """What a judge said, and the votes that it has to be asked about; idle without a judge."""

    def __init__(self, broker: Broker, judge: str, found: Callable[[int, Sequence[str]], None]) -> None:
        """`found` is told the categories of a vote, by its row."""
        self._broker = broker
        self._judge = judge
        self._found = found
        self.known: dict[str, tuple[str, ...] | None] = {}  # by battle; None: its text is not there any more
        self._waiting: list[_Waiting] = []  # a heap
        self._some = asyncio.Event()
        self._reading = 0
        self._away = False

    async def load(self) -> None:
        """Read what is known; the votes come from the first one again. Without a judge nothing is."""
        self._reading += 1
        self._waiting.clear()
        self.known = {}
        if self._judge:
            async for battle, labels in self._broker.redis.hscan_iter(keys.LABELS, count=BATCH):
                self.known[battle.decode()] = tuple(json.loads(labels))

    def take(self, begin: int, battles: Sequence[str]) -> None:
        """Votes have come, from a row on."""
        if self._judge:
            for row, battle in enumerate(battles, begin):
                if battle not in self.known:
                    self._wait(_Waiting(0, -row, battle, self._reading))

    async def run(self) -> None:
        """Ask, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            pause = self._waiting[0].due - loop.time() if self._waiting else None
            if pause is None or pause > 0:
                await happens(self._some, pause)
                self._some.clear()
                continue
            count = min(AT_ONCE, len(self._waiting))
            answered = await asyncio.gather(*(self._label(heapq.heappop(self._waiting)) for _ in range(count)))
            self._away = not any(answered)
            if self._away:
                await asyncio.sleep(AWAY_SECONDS)

    def _wait(self, vote: _Waiting) -> None:
        heapq.heappush(self._waiting, vote)
        self._some.set()

    async def _label(self, vote: _Waiting) -> bool:
        """Ask about a vote, if it is time to; False when the judge does not answer."""
        loop = asyncio.get_running_loop()
        if vote.due > loop.time():
            self._wait(vote)
            return True
        try:
            labels = await self._ask(vote.battle)
            if labels is not None:
                await self._broker.redis.hset(keys.LABELS, vote.battle, json.dumps(labels))
        except (FleetError, RedisError, OSError) as error:
            pause = PAUSES[min(vote.tries, len(PAUSES) - 1)]
            level = logging.DEBUG if self._away or vote.tries else logging.WARNING
            told = "the judge %s gave battle %s no categories, it is asked again in %g s: %s"
            logger.log(level, told, self._judge, vote.battle, pause, error)
            if vote.reading == self._reading:
                self._wait(replace(vote, due=loop.time() + pause, tries=vote.tries + 1))
            return False
        self.known[vote.battle] = None if labels is None else tuple(labels)
        if labels is not None and vote.reading == self._reading:
            self._found(-vote.newness, labels)
        return True

    async def _ask(self, battle: str) -> list[str] | None:
        """What the judge says; None where the text is not in Redis any more, or is no conversation."""
        try:
            (said,) = await votes.said(self._broker, [battle])
            prompts = "\n\n".join(str(turn["text"]) for turn in said["turns"])[:CLIPPED]
        except (ValueError, TypeError, KeyError):
            return None
        if not prompts:  # a vote from a file without conversations
            return None
        sampling = Sampling(temperature=0, max_tokens=MOST_TOKENS)
        messages = (Message("system", ASKED), Message("user", prompts))
        request = ChatRequest(self._judge, messages, sampling, template_kwargs={"enable_thinking": False})
        return read(str((await chat.answer(self._broker, request, low_priority=True)).text))


def read(answer: str) -> list[str]:
    """The categories in a judge's answer.

    Raises:
        EngineFailed: it does not say yes or no to each of them.
    """
    found = {name.lower(): verdict.lower() == "yes" for name, verdict in LINE.findall(answer)}
    if not CATEGORIES.keys() <= found.keys():
        raise EngineFailed(f"It was to say yes or no to each category, and said {answer[:200]!r}.")
    return [name for name in CATEGORIES if found[name]]
