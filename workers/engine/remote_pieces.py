"""One answer of another server as it arrives: bytes, cut anywhere and at any time, into pieces or an error.

Comes in: a response whose status was 200. Knows the time limits behind the first piece; those before it, and trying
again, are the engine's.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable

from aiohttp import ClientError, ClientResponse, StreamReader

from broker.errors import FleetError, Unavailable, UpstreamFailed
from workers.engine import Piece, remote_wire
from workers.engine.remote_model import RemoteModel
from workers.engine.remote_refusal import Complaint

logger = logging.getLogger("fleetchat.remote")

SILENCE_SECONDS = 120.0  # between two arrivals behind the first piece; a comment that keeps the connection alive is one
TAIL_SECONDS = 2.0  # for the usage and the end of the stream, when the reason of the end is there
DOCUMENT_BYTES = 1 << 24  # a list of models, or an answer that is not streamed
GONE = (ClientError, OSError, RuntimeError)  # aiohttp raises the last for a connection that is just being closed


class RemotePieces:
    """One answer as it arrives."""

    def __init__(self, model: RemoteModel, response: ClientResponse, arrived: Callable[[], None]) -> None:
        self.prompt_tokens = 0
        self.completion_tokens: int | None = None  # as the server counts; None while it has not said
        self._model = model
        self._response = response
        self._arrived = arrived
        self._events = remote_wire.Events()
        self._reader = remote_wire.Reader()
        self._ready: deque[Piece] = deque()
        self._begun = False  # the first piece is there: nothing is tried again
        self._done = False  # [DONE] was there
        self._until: float | None = None  # the loop's time when waiting for the end of the stream ends
        self._ended = False
        self._failure: FleetError | None = None  # comes behind what is ready

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        await self._fill()
        if not self._ready:
            raise StopAsyncIteration
        return self._ready.popleft()

    async def begin(self) -> None:
        """Wait for the first piece; raises what has gone wrong before it."""
        if self._response.content_type == "application/json":
            await self._whole()
        elif self._response.content_type == "text/html":
            raise UpstreamFailed(
                f"The server behind {self._name} answered with a web page. Its operator has to look at the address."
            )
        await self._fill()
        self._begun = True

    def close(self) -> None:
        """Close the connection, unless the answer has been read to its end."""
        self._response.close()

    @property
    def _name(self) -> str:
        return self._model.card.name

    async def _fill(self) -> None:
        while not (self._ready or self._ended):
            if self._failure:
                raise self._failure
            try:
                await self._more()
            except FleetError as error:
                logger.warning("%s: an answer of %s ended: %s", self._model.card.name, self._model.base, error.code)
                self._failure = error
        self.prompt_tokens = self._reader.prompt_tokens
        self.completion_tokens = self._reader.completion_tokens

    async def _more(self) -> None:
        """Read what has arrived, or wait for it."""
        now = asyncio.get_running_loop().time()
        if self._finished and self._until is None:
            self._until = now + TAIL_SECONDS
        limit = self._until or (now + SILENCE_SECONDS if self._begun else None)
        try:
            async with asyncio.timeout_at(limit):
                chunk = await self._response.content.readany()
        except TimeoutError:
            if not self._finished:
                raise UpstreamFailed(
                    f"The server behind {self._name} fell silent in the middle of the answer. Please try again."
                ) from None
            chunk = b""
        except GONE:
            chunk = b""
        if not chunk:
            return self._end()
        self._arrived()
        try:
            events = self._events.feed(chunk)
        except ValueError as error:
            raise UpstreamFailed(f"The server behind {self._name} sent {error}, so the answer was ended.") from None
        for event in events:
            self._take(event)

    async def _whole(self) -> None:
        """The answer of a server that does not stream: one document."""
        try:
            document = await read(self._response.content, DOCUMENT_BYTES)
        except GONE:
            raise self._broken() from None
        self._take(document.decode(errors="replace"))
        if not (self._ready or self._reader.finish):
            raise UpstreamFailed(f"The server behind {self._name} sent something that is no chat completion.")
        self._done = True
        self._end()

    def _take(self, event: str) -> None:
        if self._done or event.strip() == "[DONE]":
            self._done = True
            return
        try:
            document = remote_wire.parse(event)
            if complaint := Complaint.of(document):
                raise self._model.refusal(self._response, complaint, {})
            self._ready.extend(self._reader.read(document))
        except remote_wire.WRONG:
            raise UpstreamFailed(f"The server behind {self._name} sent something that is no chat completion.") from None

    def _end(self) -> None:
        if not self._finished:
            raise self._broken()
        self._ready += [*self._reader.rest(), Piece("", finish=self._reader.finish or "stop")]
        self._ended = True

    @property
    def _finished(self) -> bool:
        return self._done or self._reader.finish is not None

    def _broken(self) -> FleetError:
        if self._begun or self._ready:
            return UpstreamFailed(
                f"The server behind {self._name} broke off in the middle of the answer. Please try again."
            )
        return Unavailable(
            f"The server behind {self._name} broke off before it said anything. Please try again in a moment."
        )


async def read(content: StreamReader, most: int) -> bytes:
    """All that comes, up to `most` bytes."""
    found = bytearray()
    while len(found) < most and (chunk := await content.readany()):
        found += chunk
    return bytes(found[:most])
