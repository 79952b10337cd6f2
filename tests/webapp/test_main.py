"""`python -m webapp` by itself."""

import asyncio
import socket
import subprocess
import sys

import aiohttp
import pytest

from broker.embedded import free_port
from fleet_process import environment, wait_for_port, web

COMMAND = [sys.executable, "-m", "webapp"]


@pytest.mark.parametrize("settings", [{"port": "99999"}, {"port": "eighty"}, {"host": "256.1.1.1"}])
def test_an_address_that_cannot_be_is_one_sentence_and_exit_code_2(settings):
    done = subprocess.run(COMMAND, env=environment("redis://127.0.0.1:1", **settings), capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_one_sentence_and_exit_code_2(valkey):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(COMMAND, env=environment(valkey, port=port), capture_output=True, text=True)
    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(30)
async def test_without_redis_it_says_so_and_does_not_hang(tmp_path):
    port = free_port()
    with web("redis://127.0.0.1:1/0", tmp_path, port) as process:
        await asyncio.to_thread(wait_for_port, port)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as browser, asyncio.timeout(15):
            async with browser.get("/livez") as response:
                assert response.status == 200
            async with browser.get("/readyz") as response:
                assert (response.status, (await response.json())["redis"]) == (503, False)
            async with browser.get("/conversations") as response:
                assert (response.status, (await response.json())["error"]["code"]) == (503, "redis_away")
        process.terminate()
        assert await asyncio.to_thread(process.wait, 5) == 0
    assert "Traceback" not in (tmp_path / "web.log").read_text()


async def test_a_page_is_told_to_come_back_when_it_stops(valkey, tmp_path):
    port = free_port()
    with web(valkey, tmp_path, port) as process:
        await asyncio.to_thread(wait_for_port, port)
        async with aiohttp.ClientSession() as browser, browser.ws_connect(f"http://127.0.0.1:{port}/ws") as ws:
            await ws.receive()
            process.terminate()
            async for _ in ws:
                pass
            assert ws.close_code == 1001
        assert await asyncio.to_thread(process.wait, 5) == 0
