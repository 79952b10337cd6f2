"""A page in Python that survives the web process it talks to."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import aiohttp
import msgpack

from broker.messages import pack


class Visitor:
    """A page: asks, and when its connection breaks it connects again, to whichever instance, and goes on from there."""

    def __init__(self, session: aiohttp.ClientSession, ports: list[int]) -> None:
        self._session, self._ports = session, ports
        self.accepted: dict[str, str] = {}
        self.frames: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.reconnects = 0
        self.stop_at = 0  # number of frames after which it stops the answer
        self.leave_at = 0  # ... after which it breaks off, and comes back

    @property
    def end(self) -> dict[str, Any]:
        """The last frame's; empty while there is none."""
        return self.frames[-1].get("end", {}) if self.frames else {}

    @property
    def text(self) -> str:
        return "".join(frame["text"] for frame in self.frames)

    @property
    def pause(self) -> float:
        return max(b - a for a, b in pairwise(self.times))

    async def ask(self, text: str) -> None:
        """Until the answer is complete."""
        first = {"type": "ask", "model": "echo", "text": text}
        while not self.end:
            try:
                async with self._session.ws_connect(f"http://127.0.0.1:{self._ports[0]}/ws") as ws:
                    if self.accepted:
                        self.reconnects += 1
                        first = {"type": "resume", "request_id": self.accepted["request_id"], "from": len(self.frames)}
                    await ws.send_bytes(pack(first))
                    await self.hear(ws)
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
            self._ports = self._ports[1:] + self._ports[:1]

    async def hear(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        """Until the answer or the connection ends."""
        async for message in ws:
            if message.type is not aiohttp.WSMsgType.BINARY:
                return
            for one in maps(message.data):
                if one.get("type") == "accepted":
                    self.accepted = one
                assert one.get("type") != "error", one
                if "type" in one:
                    continue
                assert one["seq"] == len(self.frames), "lost or doubled"
                self.frames.append(one)
                self.times.append(time.monotonic())
                if len(self.frames) == self.stop_at:
                    await ws.send_bytes(pack({"type": "stop", "request_id": self.accepted["request_id"]}))
                if "end" in one or len(self.frames) == self.leave_at:
                    return


def maps(message: bytes) -> list[dict[str, Any]]:
    unpacker = msgpack.Unpacker()
    unpacker.feed(message)
    return list(unpacker)


@asynccontextmanager
async def browser(port: int) -> AsyncIterator[aiohttp.ClientSession]:
    """Somebody's cookies, good at every instance."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        async with session.get(f"http://127.0.0.1:{port}/"):
            yield session
