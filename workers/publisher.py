"""From pieces of text to frames in Redis.

Comes in: the pieces of every answer that this worker writes. Goes out: frames, all answers' together in one call. A
call leaves when the one before has returned and, if nothing in it is urgent, at most FLEETCHAT_COALESCE_MS after it;
what gathers meanwhile is merged. The first piece of an answer and its end are urgent. Frames may be sent again: Redis
takes each number once, and asks for the missing ones when it has come back shorter than it was.
"""

import asyncio
import logging
import time
from array import array
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from redis.exceptions import ResponseError

from broker import metrics, streams
from broker.connection import Broker, keep_trying
from broker.messages import Frame
from broker.queues import Claim
from broker.streams import Written
from broker.tasks import happens
from workers.engine import Piece

logger = logging.getLogger("fleetchat.publisher")

CALL_FRAMES = 512
RATE_SECONDS = 5.0


class Outgoing:
    """One answer on its way out."""

    def __init__(self, publisher: "Publisher", claim: Claim, seq: int, ids: int) -> None:
        self.claim = claim
        self.tokens = ids  # said so far, by earlier workers too
        self.prompt_tokens: int | None = None
        self.first: float | None = None  # time.monotonic() of the first piece
        self._thinking: float | None = None  # time.monotonic() of the first thought
        self._thought: float | None = None  # of what came behind it
        self.lost = False  # somebody else has it, or it was stopped
        self.ended = asyncio.Event()
        self._publisher = publisher
        self._start = seq
        self._written: list[Written] = []  # kept, in case Redis comes back without its last second
        self._unsent = 0  # index into _written
        self._pieces: list[Piece] = []  # of the next frame
        self._latest = 0.0  # time.monotonic() of the latest piece
        self._decode = metrics.decode(claim.model)

    def add(self, piece: Piece) -> None:
        """Queue a piece; it is merged with those before it that have not left yet."""
        if self._pieces and not (self._publisher.merges and _go_together(self._pieces[-1], piece)):
            self._seal()
        self._pieces.append(piece)
        known, now = len(piece.token_ids), time.monotonic()
        count, first = known or 1, self.first is None
        self.tokens += known
        self._decode.tokens += known
        if first:
            self.first = now
        elif known or not piece.finish:
            self._decode.gap(count, now - self._latest)
        self._latest = now
        if piece.kind == "reasoning":
            self._thinking = self._thinking or now
        elif self._thinking and not self._thought and (piece.text or piece.data is not None):
            self._thought = now
        self._publisher.push(self, urgent=first, tokens=0 if self.claim.beside else count)

    @property
    def reasoning(self) -> float | None:
        """Seconds of reasoning before anything else was said; None if it is not known that there were any."""
        if self._thinking is None or self._start:
            return None  # an earlier worker may have thought, too
        return (self._thought or time.monotonic()) - self._thinking

    def count(self, tokens: int) -> None:
        """What the server behind an engine says that the answer has so far; such pieces have no token ids."""
        self._decode.tokens += max(0, tokens - self.tokens)
        self.tokens = tokens

    async def end(self, end: Mapping[str, Any]) -> None:
        """Write the last frame, and return when Redis has it or has refused it."""
        if self._pieces and self._pieces[-1].data is not None:
            self._seal()  # by itself: scripts unpack the last frame, and data may be large
        self._seal(end)
        self._publisher.push(self, urgent=True)
        await self.ended.wait()

    def give_back(self) -> None:
        """The request goes back to its queue: what has not left yet will be said again, perhaps by this same worker."""
        self.lost = True

    def _seal(self, end: Mapping[str, Any] | None = None) -> None:
        pieces, claim = self._pieces, self.claim
        if not pieces and end is None:
            return
        seq = self._start + len(self._written)
        frame = Frame(
            claim.request_id,
            seq,
            claim.epoch,
            "".join(piece.text for piece in pieces),
            pieces[-1].kind if pieces else "text",
            [token.to_map() for piece in pieces for token in piece.logprobs or ()] or None,
            pieces[-1].data if pieces else None,
            end,
            (self.prompt_tokens or 0, self.tokens) if pieces else None,
        )
        ids = array("I", [i for piece in pieces for i in piece.token_ids]).tobytes()
        count = self.prompt_tokens if not self._written else None
        self._written.append(
            Written(claim.request_id, claim.token, seq, frame.encode(), ids, count, last=end is not None)
        )
        self._pieces = []

    def take(self) -> list[Written]:
        """What has to be sent now."""
        self._seal()
        frames = self._written[self._unsent :]
        self._unsent = len(self._written)
        return frames

    def answered(self, written: Written, result: int) -> None:
        """What Redis said to a frame."""
        if result in (streams.FENCED, streams.ENDED):
            metrics.FENCED.labels(self.claim.model).inc(result == streams.FENCED)
            self._publisher.lose(self, hand_over=False)
        elif result <= streams.GAP:
            has = streams.GAP - result
            if has < self._start:
                # What an earlier worker wrote is lost, so a new claim has to begin from what is there.
                self._publisher.lose(self, hand_over=True)
            else:
                self._unsent = min(self._unsent, has - self._start)
                self._publisher.push(self, urgent=True)
        elif written.last:
            self.ended.set()


def _go_together(one: Piece, other: Piece) -> bool:
    """Whether two neighbouring pieces may be one frame."""
    return one.kind == other.kind and one.data is None and other.data is None


class Publisher:
    """All answers of one worker. `run` is its loop, `on_lost` is told of answers to stop, and whether to hand them over."""

    def __init__(self, broker: Broker, on_lost: Callable[[str, bool], None]) -> None:
        self._broker = broker
        self._on_lost = on_lost
        self._coalesce = broker.config.coalesce_ms / 1000
        self.merges = self._coalesce > 0
        self._waiting: dict[Outgoing, None] = {}  # in order of arrival
        self._some = asyncio.Event()
        self._urgent = asyncio.Event()
        self._counts: deque[tuple[float, int]] = deque()
        self.tokens = 0  # written since the start; a piece without ids counts as one

    def push(self, outgoing: Outgoing, *, urgent: bool, tokens: int = 0) -> None:
        """Note that an answer has something to send."""
        self._waiting[outgoing] = None
        self.tokens += tokens
        self._some.set()
        if urgent:
            self._urgent.set()

    def tokens_per_s(self) -> float:
        """Mean rate over the last seconds; to be called about once a second."""
        now = time.monotonic()
        self._counts.append((now, self.tokens))
        while now - self._counts[0][0] > RATE_SECONDS and len(self._counts) > 2:
            self._counts.popleft()
        then, before = self._counts[0]
        elapsed = now - then
        return (self.tokens - before) / elapsed if elapsed > 0 else 0.0

    async def run(self) -> None:
        """Send until cancelled."""
        left = 0.0
        while True:
            await self._some.wait()
            pause = left + self._coalesce - time.monotonic()
            if pause > 0 and not self._urgent.is_set():
                await happens(self._urgent, pause)
            self._some.clear()
            self._urgent.clear()
            waiting, self._waiting = self._waiting, {}
            left = time.monotonic()
            batch = [(outgoing, frame) for outgoing in waiting if not outgoing.lost for frame in outgoing.take()]
            for i in range(0, len(batch), CALL_FRAMES):
                await self._send(batch[i : i + CALL_FRAMES])

    async def _send(self, batch: list[tuple[Outgoing, Written]]) -> None:
        try:
            results = await keep_trying(lambda: streams.append(self._broker, [frame for _, frame in batch]))
        except ResponseError as error:  # Redis will never take this: find out whose it is, the others go on
            if len(batch) == 1:
                outgoing, frame = batch[0]
                logger.error("Redis refuses a frame of %s: %s", frame.request_id, error)
                self.lose(outgoing, hand_over=False)
            else:
                for one in batch:
                    await self._send([one])
            return
        for (outgoing, frame), result in zip(batch, results, strict=True):
            outgoing.answered(frame, result)

    def lose(self, outgoing: Outgoing, *, hand_over: bool) -> None:
        """An answer is not this worker's any more, or is not to be: whoever waits for its end goes on."""
        if not outgoing.lost:
            outgoing.lost = True
            outgoing.ended.set()
            self._on_lost(outgoing.claim.request_id, hand_over)
