"""A server that speaks OpenAI's protocol, well or badly: the model's name says how."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Behaviour = Callable[["BadServer", web.Request], Awaitable[web.StreamResponse]]
BEHAVIOURS: dict[str, Behaviour] = {}
DONE = b"data: [DONE]\n\n"
EMOJI = "data: " + json.dumps({"choices": [{"delta": {"content": "é😀好"}}]}, ensure_ascii=False) + "\n\n"


def behaviour(call: Behaviour) -> Behaviour:
    BEHAVIOURS[call.__name__] = call
    return call


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def delta(finish: str | None = None, logprobs: Any = None, **said: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": said, "finish_reason": finish, "logprobs": logprobs}]})


USAGE = event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
GOOD = (delta(role="assistant"), delta(content="one "), delta(content="two "), delta("stop"), USAGE, DONE)


class BadServer:
    """What has been asked, and whether the client has gone away."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.tries: Counter[str] = Counter()
        self.running = self.most = 0  # streams at once
        self.gone = asyncio.Event()
        self.connections: set[Any] = set()

    async def models(self, request: web.Request) -> web.Response:
        self.tries["models"] += 1
        entries = [{"id": "good", "max_model_len": 4096}, {"id": "tools", "meta": {"n_ctx_train": 8192}}, {"id": "cut"}]
        return web.json_response({"data": entries})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.connections.add(request.transport)
        self.tries[body["model"]] += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return await BEHAVIOURS[body["model"]](self, request)
        except asyncio.CancelledError:
            self.gone.set()
            raise
        finally:
            self.running -= 1


@asynccontextmanager
async def running() -> AsyncIterator[BadServer]:
    """A server on a free port."""
    app = web.Application()
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    server = BadServer("")
    app.router.add_get("/v1/models", server.models)
    app.router.add_post("/v1/chat/completions", server.chat)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield server
    finally:
        await runner.cleanup()


async def stream(request: web.Request, *parts: bytes, pause: float = 0) -> web.StreamResponse:
    """The parts, each sent by itself."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    for part in parts:
        await response.write(part)
        await asyncio.sleep(pause)
    return response


async def hang_up(request: web.Request, *parts: bytes) -> web.StreamResponse:
    response = await stream(request, *parts)
    assert request.transport
    request.transport.abort()
    return response


def refuse(status: int, headers: dict[str, str] | None = None, **error: Any) -> web.Response:
    return web.json_response({"error": error}, status=status, headers=headers)


@behaviour
async def good(server: BadServer, request: web.Request) -> web.StreamResponse:
    return await stream(request, *GOOD)


@behaviour
async def tools(server: BadServer, request: web.Request) -> web.StreamResponse:
    first = {"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": ""}}
    second = {"index": 0, "function": {"arguments": '{"a": 1}'}}
    return await stream(request, delta(tool_calls=[first]), delta(tool_calls=[second]), delta("tool_calls"), DONE)


@behaviour
async def reasoning(server: BadServer, request: web.Request) -> web.StreamResponse:
    parts = (delta(reasoning_content="so "), delta(reasoning="hm"), delta(content="yes"), delta("length"), DONE)
    return await stream(request, *parts)


@behaviour
async def logprobs(server: BadServer, request: web.Request) -> web.StreamResponse:
    other = {"token": "b", "logprob": float("-inf"), "bytes": None}
    first = {"token": "\ufffd", "logprob": -0.5, "bytes": [0xF0, 0x9F], "top_logprobs": [other]}
    second = {"token": "c", "id": 9, "logprob": -1.5}
    parts = (delta(logprobs={"content": [first]}, content=""), delta(logprobs={"content": [second]}, content="c"))
    return await stream(request, *parts, delta("stop"), DONE)


@behaviour
async def document(server: BadServer, request: web.Request) -> web.StreamResponse:
    choice = {"index": 0, "message": {"role": "assistant", "content": "all at once"}, "finish_reason": "stop"}
    return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 4}})


@behaviour
async def gather(server: BadServer, request: web.Request) -> web.StreamResponse:
    return await stream(request, *GOOD, pause=0.02)


@behaviour
async def slow(server: BadServer, request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


@behaviour
async def silent(server: BadServer, request: web.Request) -> web.StreamResponse:
    response = await stream(request, *GOOD[:2])
    await asyncio.Event().wait()
    return response


@behaviour
async def cut(server: BadServer, request: web.Request) -> web.StreamResponse:
    return await hang_up(request, *GOOD[:3], GOOD[3][:20])


@behaviour
async def cut_early(server: BadServer, request: web.Request) -> web.StreamResponse:
    return await hang_up(request, GOOD[0]) if server.tries["cut_early"] < 3 else await stream(request, *GOOD)


@behaviour
async def no_answer(server: BadServer, request: web.Request) -> web.StreamResponse:
    assert request.transport
    request.transport.abort()
    return web.Response()


@behaviour
async def unfinished(server: BadServer, request: web.Request) -> web.StreamResponse:
    return await stream(request, *GOOD[:3])


@behaviour
async def half_characters(server: BadServer, request: web.Request) -> web.StreamResponse:
    raw = EMOJI.encode()
    halves = (b'data: {"choices": [{"delta": {"content": "\\ud83d"}}]}\n\n', delta(content="\ude00!"))
    broken = b'data: {"choices": [{"delta": {"content": "\xf0\x9f"}}]}\n\n'
    lone = b'data: {"choices": [{"delta": {"content": "\\ud83d"}}]}\n\n'
    return await stream(request, *(raw[i : i + 1] for i in range(len(raw))), *halves, broken, lone, delta("stop"), DONE)


@behaviour
async def odd_events(server: BadServer, request: web.Request) -> web.StreamResponse:
    odd = b'\xef\xbb\xbfdata: {"choices":\r\ndata:[{"delta": {"content": "odd"}}]}\r'
    rest = (b"\n\r\n", b": ping\r\n\r\n", b"event: message\rid: 1\rdata\r\r", delta("eos"))
    return await stream(request, odd, *rest, DONE)


@behaviour
async def keep_alive(server: BadServer, request: web.Request) -> web.StreamResponse:
    return await stream(request, *GOOD[:2], *[b": still here\n\n"] * 10, *GOOD[2:], pause=0.04)


@behaviour
async def lingering(server: BadServer, request: web.Request) -> web.StreamResponse:
    response = await stream(request, *GOOD)
    while True:
        await response.write(b": bye\n\n")
        await asyncio.sleep(0.02)


@behaviour
async def only_done(server: BadServer, request: web.Request) -> web.StreamResponse:
    return await stream(request, delta(content="end"), DONE, b"data: nonsense\n\n")


@behaviour
async def bad_json(server: BadServer, request: web.Request) -> web.StreamResponse:
    return await stream(request, delta(content="so far "), b'data: {"choices": [\n\n', DONE)


@behaviour
async def flood(server: BadServer, request: web.Request) -> web.StreamResponse:
    return await stream(request, delta(content="so far "), b"data: ", *[b"x" * 65_536] * 20)


@behaviour
async def error_inside(server: BadServer, request: web.Request) -> web.StreamResponse:
    return await stream(request, delta(content="so far "), event({"error": {"message": "out of memory", "code": 500}}))


@behaviour
async def gives_up(server: BadServer, request: web.Request) -> web.StreamResponse:
    return await stream(request, delta(content="so far "), delta("abort"), DONE)


@behaviour
async def page(server: BadServer, request: web.Request) -> web.StreamResponse:
    return web.Response(text="<h1>Welcome</h1>", content_type="text/html")


@behaviour
async def other_document(server: BadServer, request: web.Request) -> web.StreamResponse:
    return web.json_response({"status": "ok"})


@behaviour
async def error_document(server: BadServer, request: web.Request) -> web.StreamResponse:
    return web.json_response({"error": {"message": "Rate limited", "code": 429}}, headers={"Retry-After": "77"})


@behaviour
async def redirect(server: BadServer, request: web.Request) -> web.StreamResponse:
    raise web.HTTPTemporaryRedirect(server.url.replace("127.0.0.1", "localhost") + "/chat/completions")


@behaviour
async def rate_limit(server: BadServer, request: web.Request) -> web.StreamResponse:
    return refuse(429, {"Retry-After": "30"}, message="slow down")


@behaviour
async def short_rate_limit(server: BadServer, request: web.Request) -> web.StreamResponse:
    return refuse(429, {"Retry-After": "0"}) if server.tries["short_rate_limit"] < 2 else await stream(request, *GOOD)


@behaviour
async def no_money(server: BadServer, request: web.Request) -> web.StreamResponse:
    return refuse(429, message="You exceeded your current quota.", code="insufficient_quota")


@behaviour
async def fails(server: BadServer, request: web.Request) -> web.StreamResponse:
    return refuse(500, message="CUDA error: out of memory")


@behaviour
async def overloaded(server: BadServer, request: web.Request) -> web.StreamResponse:
    if server.tries["overloaded"] < 3:
        return web.Response(status=503, text="<html>Service Unavailable</html>", content_type="text/html")
    return await stream(request, *GOOD)


@behaviour
async def refuses_key(server: BadServer, request: web.Request) -> web.StreamResponse:
    return refuse(401, message=f"Incorrect API key provided: {request.headers.get('Authorization')}")


@behaviour
async def tells_key(server: BadServer, request: web.Request) -> web.StreamResponse:
    key = request.headers["Authorization"]
    return refuse(400, message=f"Not with {key}, {key.split()[1]}\n or http://me:pass@host/ " + "and so on " * 50)


@behaviour
async def unknown_model(server: BadServer, request: web.Request) -> web.StreamResponse:
    return refuse(404, message="The model `unknown_model` does not exist.", code="model_not_found")


@behaviour
async def too_long(server: BadServer, request: web.Request) -> web.StreamResponse:
    sentence = "This model's maximum context length is 4096 tokens. However, your messages resulted in 5000 tokens."
    return refuse(400, message=sentence, code="context_length_exceeded", param="messages")


@behaviour
async def strict(server: BadServer, request: web.Request) -> web.StreamResponse:
    """FastAPI's form, as of `transformers serve` and others."""
    body = await request.json()
    if "top_k" in body:
        detail = [{"type": "extra_forbidden", "loc": ["body", "top_k"], "msg": "Extra inputs are not permitted"}]
        return web.json_response({"detail": detail}, status=422)
    return await stream(request, *GOOD)


@behaviour
async def newer(server: BadServer, request: web.Request) -> web.StreamResponse:
    """As OpenAI's reasoning models, and older vendors, are with names that they do not take."""
    body = await request.json()
    if "max_tokens" in body:
        sentence = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
        return refuse(400, message=sentence, param="max_tokens", code="unsupported_parameter")
    if name := next((name for name in ("stream_options", "seed") if name in body), None):
        return refuse(400, message=f"Unknown field {name}.")
    if body["temperature"] != 1:
        return refuse(400, message="Only the default (1) value is supported.", param="temperature")
    return await stream(request, *GOOD)
