"""What a page does with its websocket, in Python."""

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import msgpack
from yarl import URL

from broker.messages import new_id, pack

REF = new_id()
"""Of what a page sends, where a test does not care."""


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


class Contender:
    """Somebody with a page of the arena: its cookies, its websocket, and the token that stands in it."""

    def __init__(self, session: aiohttp.ClientSession, page: Page, token: str) -> None:
        self.session, self.page, self.token = session, page, token

    async def say(self, text: str, battle: str = "", **more: object) -> dict[str, Any]:
        """The turn that was accepted."""
        await self.page.send(type="battle", ref=REF, token=self.token, text=text, battle=battle, **more)
        return await self.page.next_of("bout", "error")

    async def hear(self) -> tuple[dict[str, str], list[dict[str, Any]]]:
        """The text of both sides, and all maps up to the turn's end."""
        texts: dict[str, str] = {"a": "", "b": ""}
        maps: list[dict[str, Any]] = []
        while not maps or maps[-1]["type"] != "bout-end":
            one = await self.page.next_of("side", "void", "bout-end", "error")
            maps.append(one)
            if one["type"] == "side":
                texts[one["side"]] = one["text"] if one["seq"] == 0 else texts[one["side"]] + one["text"]
        return texts, maps

    async def round(self, text: str = "hello there", **more: object) -> str:
        """One turn, answered; the round's id."""
        bout = await self.say(text, **more)
        assert bout["type"] == "bout", bout
        await self.hear()
        return bout["battle"]

    async def get(self, battle: str) -> dict[str, Any]:
        async with self.session.get(f"/battles/{battle}") as response:
            assert response.status == 200
            return await response.json()

    async def post(self, path: str, status: int = 200, **body: object) -> dict[str, Any]:
        async with self.session.post(f"/battles/{path}", json={"token": self.token} | body) as response:
            found = await response.json()
            assert response.status == status, found
            return found


@asynccontextmanager
async def contender(url: str | URL, path: str = "/arena") -> AsyncIterator[Contender]:
    """Somebody who opens this page."""
    async with AsyncExitStack() as stack:
        jar = aiohttp.CookieJar(unsafe=True)
        session = await stack.enter_async_context(aiohttp.ClientSession(url, cookie_jar=jar))
        async with session.get(path) as response:
            token = re.search(r'data-token="(\w+)"', await response.text())[1]
        ws = await stack.enter_async_context(session.ws_connect("/ws" + ("?blind" if path == "/arena" else "")))
        yield Contender(session, Page(ws), token)
