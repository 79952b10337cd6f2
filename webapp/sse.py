"""A response of server-sent events.

The status line waits for the first event, so that what goes wrong before it is a plain refusal. Quiet streams are kept
alive by comments; a peer that takes nothing any more is cut off.

Source: the HTML standard, section 9.2.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiohttp import web

from webapp.openai_answers import dump

FIRST_SECONDS = 45.0  # of silence before the first event; proxies mostly wait 60
QUIET_SECONDS = 15.0  # between two events, or comments
STUCK_SECONDS = 60.0
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

    async def wait(self, take: Callable[[], Awaitable[T]]) -> T:
        """What `take` gives, which may be cancelled and called again; meanwhile comments go out."""
        while True:
            try:
                async with asyncio.timeout(QUIET_SECONDS if self.begun else FIRST_SECONDS) as silence:
                    return await take()
            except TimeoutError:
                if not silence.expired():
                    raise
            await self._write(b": still here\n\n")

    async def send(self, *documents: Any) -> None:
        """An event for each, as JSON."""
        await self._write(b"".join(b"data: " + dump(document) + b"\n\n" for document in documents))

    async def end(self) -> web.StreamResponse:
        """The last event, and the end of the response."""
        await self._write(b"data: [DONE]\n\n")
        await self.response.write_eof()
        return self.response

    async def _write(self, data: bytes) -> None:
        if not self.begun:
            await self.response.prepare(self._request)
        try:
            async with asyncio.timeout(STUCK_SECONDS):
                await self.response.write(data)
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError("the peer takes nothing") from None
