"""A server with OpenAI's moderation endpoint, and a model that judges: to both a text with the word "bad" in it is bad."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


def as_openai(texts: Sequence[str]) -> Any:
    def result(bad: bool) -> dict[str, Any]:
        categories = {"harassment": bad, "self-harm": False, "violence": bad}
        return {"flagged": bad, "categories": categories, "category_scores": dict.fromkeys(categories, 0.5)}

    return {"id": "modr-1", "model": "omni", "results": [result("bad" in text) for text in texts]}


def as_mistral(texts: Sequence[str]) -> Any:
    return {"results": [{"categories": {"pii": False, "violence": "bad" in text}} for text in texts]}


class ModerationServer:
    """What has been asked, and how it answers."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[Sequence[str]], Any] = as_openai
        self.says: Callable[[str], str] = lambda text: "unsafe" if "bad" in text else "safe"
        self.failures: list[int] = []  # the status of each of the next answers
        self.free = math.inf  # so many checks get their answer at once, the others when `open` is set
        self.open = asyncio.Event()
        self.thinks = ""
        self.gone = asyncio.Event()

    async def moderations(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        try:
            if len(self.bodies) > self.free:
                await self.open.wait()
        except asyncio.CancelledError:
            self.gone.set()
            raise
        if self.failures:
            return web.json_response({"error": {"message": "no"}}, status=self.failures.pop(0))
        return web.json_response(self.answer(body["input"]))

    async def judge(self, request: web.Request) -> web.Response:
        body = await request.json()
        content = self.says(body["messages"][-1]["content"])
        message = {"role": "assistant", "content": content, "reasoning_content": self.thinks}
        return web.json_response({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


@asynccontextmanager
async def running() -> AsyncIterator[ModerationServer]:
    """A server on a free port."""
    server, app = ModerationServer(), web.Application()
    app.router.add_post("/v1/moderations", server.moderations)
    app.router.add_post("/v1/chat/completions", server.judge)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield server
    finally:
        await runner.cleanup()
