"""A response of server-sent events.

The status line waits for the first event, so that what goes wrong before it is a plain refusal. Quiet streams are kept
alive by comments; a peer that takes nothing any more is cut off.

Source: the HTML standard, section 9.2.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from aiohttp import web

from webapp.openai_answers import dump

FIRST_SECONDS = 45.0  # of silence before the first event; proxies mostly wait 60
QUIET_SECONDS = 15.0  # between two events, or comments
STUCK_SECONDS = 60.0
SMALL_BYTES = 16_384  # a connection of which everything has left takes so many at once
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx passes events on as they come
}

T = TypeVar("T")


class Events:
    """The events of one response."""

    def __init__(self, request: web.Request) -> None:
        self.response = web.StreamResponse(headers=HEADERS)
        self._request = request

    @property
    def begun(self) -> bool:
        """Whether the status line has left."""
        return self.response.prepared

    async def wait(self, take: Callable[[float], Awaitable[list[T]]]) -> list[T]:
        """What `take` gives, which is nothing after so many seconds of silence; then comments go out."""
        while not (found := await take(QUIET_SECONDS if self.begun else FIRST_SECONDS)):
            await self._write(b": still here\n\n")
        return found

    async def send(self, *documents: Any) -> None:
        """An event for each, as JSON."""
        await self._write(_events(documents))

    async def end(self, *documents: Any) -> None:
        """The last events, and the end of the response, in one write."""
        await self._write(_events(documents) + b"data: [DONE]\n\n", last=True)

    async def _write(self, data: bytes, last: bool = False) -> None:
        if not self.begun:
            await self.response.prepare(self._request)
        write, transport = self.response.write_eof if last else self.response.write, self._request.transport
        if transport is not None and not transport.get_write_buffer_size() and len(data) < SMALL_BYTES:
            await write(data)  # it has room, so there is nothing to wait for
            return
        try:
            async with asyncio.timeout(STUCK_SECONDS):
                await write(data)
        except TimeoutError:
            if transport is not None:
                transport.abort()
            raise ConnectionResetError("the peer takes nothing") from None


def _events(documents: Iterable[Any]) -> bytes:
    return b"".join(b"data: " + dump(document) + b"\n\n" for document in documents)
