"""What programs hear when the web process is stopped in the middle of their calls."""

import asyncio
import json
import time

import aiohttp
import pytest

from broker import keys, registry
from broker.embedded import free_port
from broker.messages import ModelCard
from fleet_process import wait_for_port, web
from helpers import eventually
from webapp.calls import CALLS

CHAT = "/v1/chat/completions"
SLOW = {"model": "echo", "messages": [{"role": "user", "content": "/echo 5000 10ms"}]}
HALVES = [
    b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50\r\n\r\n{" % path
    for path in (b"/v1/completions", b"/tokenize", b"/api/v1/token_check")
]


@pytest.mark.timeout(30)
async def test_when_the_process_ends_streams_end_with_an_event_and_all_else_with_a_503(
    broker, valkey, tmp_path, worker_in
):
    port = free_port()
    await registry.beat(broker, "w", "ready", {"models": "v"}, [ModelCard("v", state="ready", kind="embedding")])
    with web(valkey, tmp_path, port) as process:
        await asyncio.to_thread(wait_for_port, port)
        async with worker_in() as worker, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            streams = [await session.post(CHAT, json=SLOW | {"stream": True, "n": n}) for n in (1, 2)]
            await asyncio.gather(*(stream.content.readline() for stream in streams))
            plain = [asyncio.create_task(session.post(CHAT, json=SLOW | {"n": n})) for n in (1, 2)]
            plain.append(asyncio.create_task(session.post("/v1/embeddings", json={"model": "v", "input": "x"})))
            await eventually(lambda: len(worker.claims) == 6)
            await eventually(lambda: broker.redis.zcard(keys.queue("v")))
            halves = [await asyncio.open_connection("127.0.0.1", port) for _ in HALVES]
            for (_, writer), half in zip(halves, HALVES, strict=True):
                writer.write(half)
            async with session.get("/livez") as response:
                assert response.status == 200, "so the halves are there, too"
            process.terminate()
            stopped = time.monotonic()
            for stream in streams:
                *_, last, done, end = (await stream.text()).split("\n\n")
                assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
                assert (done, end) == ("data: [DONE]", "")
            for response in await asyncio.gather(*plain):
                assert response.status == 503
                assert int(response.headers["Retry-After"]) >= 1
                error = (await response.json())["error"]
                assert (error["code"], error["type"]) == ("shutting_down", "server_error")
            for reader, writer in halves:
                assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
                writer.close()
            assert time.monotonic() - stopped < 1, "before the connections are cut"
            await eventually(lambda: not worker.claims)
            assert not await broker.redis.zcard(keys.queue("v"))
        assert await asyncio.to_thread(process.wait, 5) == 0
    assert "Traceback" not in (tmp_path / "web.log").read_text()


async def test_what_comes_behind_the_end_is_refused(site, browser, worker_in):
    async with worker_in() as worker:
        site.app[CALLS].close()
        async with browser.post(CHAT, json=SLOW) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (503, "shutting_down")
        assert not worker.claims
