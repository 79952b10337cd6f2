"""Writing an answer's frames, and reading them without a gap.

The list `frames:{R}` is the truth and its length the next number; the channel `stream:{R}` brings each frame at once.
A reader subscribes, waits for the confirmation, reads the list (unless its request is accepted only then, see
`broker.chat`), then takes live frames and drops what it has. A gap, a renewed subscription, an overflowing mailbox or
silence all mean the same: read the list from the next number. So late, again, or on another web process are no special
cases.
"""

import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from broker import keys
from broker.connection import Broker
from broker.errors import WorkerLost
from broker.listener import Mailbox
from broker.messages import Frame, unpack

SILENCE_SECONDS = 5.0
READ_FRAMES = 500  # of the list at a time

FENCED, ENDED, GAP = -1, -2, -3


@dataclass(frozen=True, slots=True)
class Written:
    """A frame as it goes to Redis: encoded, with the ids it was made of."""

    request_id: str
    claim: str
    seq: int
    encoded: bytes
    token_ids: bytes = b""  # uint32, in the machine's order
    prompt_tokens: int | None = None  # once, with the first
    last: bool = False


async def append(broker: Broker, frames: Sequence[Written]) -> list[int]:
    """Write and publish frames of one or many requests, in order; may be repeated.

    Returns:
        For each: how many listeners it reached, or FENCED (another worker has the request now), ENDED (it was stopped),
        or GAP - n when the list has only n frames and wants the missing ones first.
    """
    flat: list[Any] = [int(broker.config.lease_seconds * 1000)]
    for f in frames:
        count = "" if f.prompt_tokens is None else f.prompt_tokens
        flat += [f.request_id, f.claim, f.seq, int(f.last), count, f.token_ids, f.encoded]
    result: list[int] = await broker.scripts.append(args=flat)
    return result


@dataclass(frozen=True, slots=True)
class Received:
    """A frame as it was published, with what a relay needs to know of it."""

    seq: int
    epoch: int
    last: bool
    encoded: bytes
    content: Mapping[str, Any]  # decoded

    def decode(self) -> Frame:
        return Frame.of(self.content)


class Reader:
    """One answer, frame by frame, each number once and in order. Ends after the last frame."""

    def __init__(self, broker: Broker, request_id: str, mailbox: Mailbox, start: int, epoch: int) -> None:
        self.request_id = request_id
        self.next = start  # number of the next frame
        self.ended = False
        self.place: int | None = None  # requests before this one when it was accepted
        self._broker = broker
        self._mailbox = mailbox
        self._epoch = epoch
        self.behind = True  # the list may hold frames that the mailbox will not bring

    def __aiter__(self) -> AsyncIterator[Received]:
        return self._frames()

    async def _frames(self) -> AsyncIterator[Received]:
        while batch := await self.take():
            for frame in batch:
                yield frame

    async def take(self, patience: float = math.inf) -> list[Received]:
        """The next frames, as many as are there. Empty once the last one has been given, or when none comes for so long.

        Args:
            patience: seconds; beyond SILENCE_SECONDS it is rounded up to a multiple of them.

        Raises:
            WorkerLost: nothing is known of the request any more: Redis has lost or forgotten it.
        """
        begun = time.monotonic()
        while not self.ended:
            if self.behind:
                batch = self._accept(await self._read_list())
            else:
                messages, gap = await self._mailbox.take(min(SILENCE_SECONDS, patience))
                self.behind = gap or not messages
                batch = [] if gap else self._accept(messages)
            if batch or time.monotonic() - begun >= patience:
                return batch
        return []

    async def _read_list(self) -> list[bytes]:
        since = max(0, self.next - 1)  # with the last one that we have, to see whether it is still that one
        frames = keys.frames(self.request_id)
        try:
            async with self._broker.redis.pipeline(transaction=False) as pipe:
                pipe.lrange(frames, since, since + READ_FRAMES)
                pipe.exists(keys.request(self.request_id))
                encoded, known = await pipe.execute()
            epoch = unpack(encoded[0])["epoch"] if encoded else 0
            lost = self.next > 0 and (not encoded or epoch > self._epoch > 0)
            if lost:  # Redis came back without what we have: what was written in its place has a higher epoch
                encoded = await self._broker.redis.lrange(frames, 0, -1)
        except (RedisError, OSError):
            await self._mailbox.take(1.0)  # Redis is away; a renewed subscription ends the wait early
            return []
        if not encoded and not known:
            raise WorkerLost("The answer is no longer there: it is too old, or the server lost it in a restart.")
        self.behind = not lost and len(encoded) > READ_FRAMES
        if self.next and not lost:
            self._epoch = max(self._epoch, epoch)  # older frames that are still under way are not news
        return list(encoded)

    def _accept(self, messages: list[bytes]) -> list[Received]:
        batch = []
        for encoded in messages:
            frame = unpack(encoded)
            seq, epoch = frame["seq"], frame["epoch"]
            if seq > self.next:
                self.behind = True
                break
            if seq < self.next and epoch <= self._epoch:
                continue
            # A higher epoch below the next number: Redis came back without its last second, and another worker went
            # on from there. Readers drop what they have from this number on.
            self.next, self._epoch, self.ended = seq + 1, max(epoch, self._epoch), "end" in frame
            batch.append(Received(seq, epoch, self.ended, encoded, frame))
        return batch


@asynccontextmanager
async def read(
    broker: Broker, request_id: str, start: int = 0, epoch: int = 0, *, limit: int = 1024
) -> AsyncIterator[Reader]:
    """A reader of an answer from frame `start` on. Entering returns once the subscription is confirmed.

    Args:
        epoch: of the frame before `start`; so it shows when Redis has lost that one. 0 when it is not known.
    """
    async with broker.listener.subscribe(keys.stream(request_id), limit) as mailbox:
        yield Reader(broker, request_id, mailbox, start, epoch)
