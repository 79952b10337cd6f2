"""What a page does with its websocket, in Python."""

import asyncio
from collections import deque
from typing import Any

import aiohttp
import msgpack

from broker.messages import pack


class Page:
    """Sends maps, and gives those that come back one by one; models and events only when asked for."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self._maps: deque[dict[str, Any]] = deque()
        self._models: dict[str, Any] = {}

    async def send(self, **message: Any) -> None:
        await self.ws.send_bytes(pack(message))

    async def next(self, kind: str | None = None) -> dict[str, Any]:
        """The next map of a type; `frame` for what has none; None skips only models, events and places."""
        return await self.next_of(*([kind] if kind else ["frame", "accepted", "error"]))

    async def next_of(self, *kinds: str) -> dict[str, Any]:
        """The next map of one of these types."""
        async with asyncio.timeout(8):
            while True:
                while self._maps:
                    one = self._whole(self._maps.popleft())
                    if one.get("type", "frame") in kinds:
                        return one
                received = await self.ws.receive()
                assert received.type is aiohttp.WSMsgType.BINARY, received
                unpacker = msgpack.Unpacker()
                unpacker.feed(received.data)
                self._maps.extend(unpacker)

    def _whole(self, one: dict[str, Any]) -> dict[str, Any]:
        """News of some models as news of all."""
        if not one.get("type", "").startswith("models"):
            return one
        known = self._models if one["type"] == "models_changed" else {}
        known = known | {model["name"]: model for model in one["models"]}
        self._models = {name: known[name] for name in one.get("order", known)}
        return {"type": "models", "models": list(self._models.values())}

    async def answer(self) -> tuple[str, dict[str, Any]]:
        """All text of the answer whose frames come next, and its end; their numbers must be without a gap."""
        text, seq = "", None
        while True:
            frame = await self.next("frame")
            assert seq is None or frame["seq"] == seq + 1
            seq, text = frame["seq"], text + frame["text"]
            if "end" in frame:
                return text, frame["end"]

    async def closed(self) -> int | None:
        """The code with which the server closes."""
        while True:
            message = await self.ws.receive(5)
            if message.type is not aiohttp.WSMsgType.BINARY:
                return self.ws.close_code
