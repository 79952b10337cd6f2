"""One line a fact, and nothing in it that is nobody's business: real processes, a password, a cookie and a marked prompt."""

import asyncio
import json
import logging
import subprocess
import sys

import aiohttp
import pytest

from broker import registry
from broker.embedded import free_port
from broker.logs import FORMATS, hide
from fleet_process import wait_for_port, web, worker
from helpers import eventually
from webclient import Page

MARKER, PASSWORD = "an-elephant-nobody-else-knows", "s3cret-of-redis"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://me:pw@host:1/0", "redis://***@host:1/0"),
        ("at redis://:p@w#x@host:1/0: it is away", "at redis://***@host:1/0: it is away"),
        ("redis://host:1/0?password=pw&db=1", "redis://host:1/0?password=***&db=1"),
        ("redis://:my pass@host:1/0", "redis://***@host:1/0"),
        ("redis://host:1/0", "redis://host:1/0"),
        ("me@example.org wrote http://x/y", "me@example.org wrote http://x/y"),
    ],
)
def test_what_an_address_hides(text, shown):
    assert hide(text) == shown


def record(**more: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "fleetchat.x", "msg": "%s of %s", "args": ("a", "redis://u:pw@h"), **more})
    made.levelname = "INFO"
    return made


def test_a_json_line_has_its_facts_as_fields_and_a_traceback_in_one():
    try:
        raise ValueError("redis://u:pw@h\nsecond line")
    except ValueError:
        line = FORMATS["json"]().format(record(request_id="r", worker="w", exc_info=sys.exc_info()))
    assert "\n" not in line
    found = json.loads(line)
    assert found.pop("exception").endswith("ValueError: redis://***@h\nsecond line")
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "INFO",
        "logger": "fleetchat.x",
        "message": "a of redis://***@h",
        "request_id": "r",
        "worker": "w",
    }


def test_every_library_speaks_through_the_same_handler():
    """In a process of its own, since it changes how the whole process logs."""
    code = (
        "import logging, logging.config, warnings, arq.logs\n"
        "logging.config.dictConfig(arq.logs.default_log_config(False))\n"
        "from broker import logs; logs.configure('json')\n"
        "for name in ('arq.worker', 'asyncio', 'fleetchat.x', 'aiohttp.server'): logging.getLogger(name).warning('%s', name)\n"
        "print('printed', file=__import__('sys').stderr)\n"
        "logging.getLogger('late').addHandler(logging.StreamHandler()); logging.getLogger('late').propagate = False\n"
        "logging.getLogger('late').warning('two\\nlines')\n"
        "logging.getLogger('fleetchat.x').info('yes'); logging.getLogger('asyncio').info('no'); warnings.warn('old')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["logger"] for line in lines] == ["arq.worker", "asyncio", "fleetchat.x", "aiohttp.server", "stderr", "stderr", "stderr", "fleetchat.x", "py.warnings"]  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("style", ["json", "text"])
async def test_no_log_has_a_prompt_a_password_or_a_cookie(broker, valkey, tmp_path, style):
    await broker.redis.execute_command("ACL", "SETUSER", "tester", "on", f">{PASSWORD}", "~*", "&*", "+@all")
    url, port = valkey.replace("redis://", f"redis://tester:{PASSWORD}@"), free_port()

    async def ready() -> bool:
        return [m.state for m in await registry.models(broker)] == ["ready"]

    with worker(url, tmp_path, log=style) as working, web(url, tmp_path, port, log=style) as site:
        await asyncio.to_thread(wait_for_port, port)
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", cookie_jar=jar) as browser:
            async with browser.get("/") as response:
                (cookie,) = response.cookies.values()
            await eventually(ready, 20)
            async with browser.ws_connect("/ws") as ws:
                page = Page(ws)
                await page.send(type="ask", model="echo", text=f"{MARKER} hello")
                accepted = await page.next()
                text, _ = await page.answer()
                assert MARKER in text
                await page.send(type="ask", model="echo", text=f"/echo 1000 20ms {MARKER}")
                stopped = await page.next()
                await page.next("frame")
                await page.send(type="stop", request_id=stopped["request_id"])
                await page.send(type="ask", model=MARKER, text=MARKER)
                assert (await page.next("error"))["code"] == "model_not_found"
            _, broken = await asyncio.open_connection("127.0.0.1", port)
            broken.write(f"GET / HTTP/1.1\r\nHost: x\r\nCookie: {cookie.key}={cookie.value}\x01\r\n\r\n".encode())
            await eventually(
                lambda: (
                    "BadHttp" in (tmp_path / "web.log").read_text() or "Invalid" in (tmp_path / "web.log").read_text()
                )
            )
            broken.close()
            await broker.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")
            logs = [tmp_path / "worker.log", tmp_path / "web.log"]
            await eventually(lambda: all("subscription lost" in log.read_text() for log in logs))
            await eventually(lambda: stopped["request_id"] in logs[0].read_text())
        for process in (working, site):
            process.terminate()
            assert await asyncio.to_thread(process.wait, 10) == 0
    texts = [log.read_text() for log in logs]
    for text in texts:
        for secret in (MARKER, PASSWORD, cookie.value, cookie.value.partition(".")[0]):
            assert secret not in text
    assert accepted["request_id"] in texts[0]
    assert accepted["request_id"] in texts[1]
    if style == "json":
        ended = [json.loads(line) for line in texts[0].splitlines()]
        facts = next(line for line in ended if line.get("request_id") == accepted["request_id"])
        assert (facts["model"], facts["outcome"], facts["tokens"]) == ("echo", "stop", 2)
        assert facts["worker"]
        assert next(line for line in ended if line.get("request_id") == stopped["request_id"])["outcome"] == "abort"
        assert all(json.loads(line)["level"] for line in texts[1].splitlines())
    await broker.redis.execute_command("ACL", "DELUSER", "tester")
