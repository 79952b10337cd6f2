"""The API's calls that this process is answering: when it stops, each ends with an error that says so.

aiohttp waits a moment for what is being answered and then cuts the connection, which a program could take for the end
of its answer. So the calls are told first, and have that moment to say what they have to.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from broker.errors import ShuttingDown
from webapp.body import read_json
from webapp.state import BROKER


class OpenCalls:
    """All of this process."""

    def __init__(self) -> None:
        self._open: set[asyncio.Timeout] = set()
        self._closed = False

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """A call is answered in this block, which cannot hold another one of these.

        Raises:
            ShuttingDown: the app stops, or had begun to.
        """
        if self._closed:
            raise ShuttingDown
        until = asyncio.timeout(None)
        try:
            async with until:
                self._open.add(until)
                yield
        except TimeoutError:
            if not until.expired():
                raise
            raise ShuttingDown from None
        finally:
            self._open.discard(until)

    def close(self) -> None:
        """End all calls, and let no new one begin."""
        self._closed = True
        now = asyncio.get_running_loop().time()
        for until in self._open:
            until.reschedule(now)


CALLS = web.AppKey("open_calls", OpenCalls)


async def read_body(request: web.Request, room: int = 1) -> dict[str, Any]:
    """The body of a call whose prompt may have `room` times FLEETCHAT_PROMPT_BYTES; for the errors see `body.read_json`."""
    # JSON may write a character in six, and a token id in eleven; the prompt itself is measured by `ask`.
    async with request.app[CALLS].open():
        return await read_json(request, 2 * room * request.app[BROKER].config.prompt_bytes + 65_536)


async def close_all(app: web.Application) -> None:
    """For `on_shutdown`."""
    app[CALLS].close()
