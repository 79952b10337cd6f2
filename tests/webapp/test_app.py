import asyncio
import gzip
import hashlib
import json
import re
from pathlib import Path

import aiohttp
import pytest

from broker import conversations, keys, queues, registry
from broker.messages import ModelCard, new_id
from broker.queues import Turn
from helpers import request
from webapp import statics
from webapp.session import SESSIONS
from webapp.state import BROKER
from webapp.statics import STATICS

STATIC = Path(__file__).parents[2] / "webapp" / "static"


async def test_pages_have_a_strict_policy_and_no_inline_script_or_style(browser):
    async with browser.get("/") as response:
        text, policy = await response.text(), response.headers["Content-Security-Policy"]
        assert "Server" not in response.headers
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"<script(?![^>]*\bsrc=)", text)
    assert not re.search(r"<style|\sstyle=|\son\w+=", text)


def imported(name):
    """A module's own static imports, and theirs."""
    found, left = set(), [f"{name}.js"]
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            names = re.findall(r'^import [^"]*"\./([^"]+)";', (STATIC / one).read_text(), re.M)
            left += [str(Path(one).parent / path) for path in names]
    return found


async def test_a_page_names_all_its_modules_so_that_none_waits_for_another(browser):
    async with browser.get("/") as response:
        named = re.findall(r'<link rel="modulepreload" href="/static/\w+/([\w.-]+)">', await response.text())
    assert {"chat.js", *named} == imported("chat")
    (names,) = re.findall(r"^const MARKDOWN = (\[.*?\])", (STATIC / "answer.js").read_text(), re.M)
    assert {f"{name}.js" for name in json.loads(names)} == imported("markdown") - imported("chat")


async def test_livez_and_readyz(browser, broker, worker_in):
    async with browser.get("/livez") as response:
        assert response.status == 200
    async with browser.get("/readyz") as response:
        assert (response.status, (await response.json())["model"]) == (503, False)
    async with worker_in(), browser.get("/readyz") as response:
        assert (response.status, await response.json()) == (
            200,
            {"ok": True, "redis": True, "subscription": True, "model": True},
        )


async def test_a_visitor_keeps_their_conversations_and_a_forged_cookie_is_nobody(browser, site, broker):
    async with browser.get("/") as response:
        (cookie,) = response.cookies.values()
        assert cookie["httponly"]
        assert cookie["samesite"] == "Lax"
        header = response.headers["Set-Cookie"]
    assert "HttpOnly" in header
    owner, _, signature = cookie.value.partition(".")
    turn = Turn(new_id(), new_id(), "mine", conversations.user_message("hi", "", 1))
    await registry.beat(broker, "w", "ready", {"models": "m"}, [ModelCard("m", state="ready")])
    await queues.enqueue(broker, request(owner=owner), turn)
    async with browser.get("/conversations") as response:
        assert [c["title"] for c in (await response.json())["conversations"]] == ["mine"]
    for forged in (f"{owner}.{'0' * 64}", owner, f"{'f' * 24}.{signature}", f"{owner}.", "ü.x"):
        async with aiohttp.ClientSession(site.make_url("/"), cookies={cookie.key: forged}) as stranger:
            async with stranger.get("/conversations") as response:
                assert (await response.json())["conversations"] == []


async def test_a_cookie_of_other_bytes_is_nobody(browser, site):
    async with browser.get("/") as response:
        (name,) = response.cookies
    for value in (b"\xff.x", b"x.\xff"):
        reader, writer = await asyncio.open_connection(site.host, site.port)
        lines = [b"GET / HTTP/1.1", b"Host: %s" % site.host.encode(), b"Cookie: %s=%s" % (name.encode(), value)]
        writer.write(b"\r\n".join([*lines, b"Connection: close", b"", b""]))
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        assert head.startswith(b"HTTP/1.1 200")
        assert f"Set-Cookie: {name}=".encode() in head


async def test_fleets_side_by_side_do_not_overwrite_each_others_cookies(browser, site, broker):
    async with browser.get("/") as response:
        (first,) = response.cookies
    await broker.redis.set(keys.SECRET, "another fleet's")
    site.app[SESSIONS]._secret = b""
    async with browser.get("/") as response:
        (second,) = response.cookies
    assert first != second


async def test_renaming_and_deleting(browser, broker, worker_in, page):
    async with worker_in():
        await page.send(type="ask", model="echo", text="/echo 500 10ms")
        accepted = await page.next()
        address = f"/conversations/{accepted['conversation']}"
        async with browser.patch(address, json={"title": "A title"}) as response:
            assert response.status == 204
        async with browser.get(address) as response:
            assert (await response.json())["conversation"]["title"] == "A title"
        async with browser.delete(address) as response:
            assert response.status == 204
        assert (await page.answer())[1]["reason"] == "cancelled"
        async with browser.get(address) as response:
            assert response.status == 404


@pytest.mark.parametrize("body", [b"", b"[]", b'{"title": 5}', b"{", b"\xff", b"[" * 50_000, b'{"title": " "}'])
async def test_a_bad_body_is_a_400(browser, body):
    async with browser.patch(f"/conversations/{new_id()}", data=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["code"] == "bad_request"


async def test_errors_are_pages_for_people_and_json_for_programs(browser):
    async with browser.get("/nowhere", headers={"Accept": "text/html,*/*"}) as response:
        assert response.status == 404
        assert response.content_type == "text/html"
        assert "Content-Security-Policy" in response.headers
    async with browser.get("/nowhere") as response:
        assert (await response.json())["error"]["code"] == "not_found"
    async with browser.put("/") as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET,HEAD")
    async with browser.get("/conversations?before=never") as response:
        assert response.status == 400
    async with browser.patch(f"/conversations/{new_id()}", data=b"x" * 100_000) as response:
        assert response.status == 413


async def test_static_files_are_compressed_kept_for_ever_and_nothing_else_is_served(browser, site):
    prefix = site.app[STATICS].prefix
    async with browser.get(f"{prefix}/chat.js", auto_decompress=False) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        assert "immutable" in response.headers["Cache-Control"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "Content-Security-Policy" not in response.headers  # it is of documents
        assert b"\nnew ChatPage();\n" in gzip.decompress(await response.read())
    async with browser.get(f"{prefix}/favicon.svg") as response:
        assert "Content-Security-Policy" in response.headers
    async with browser.get("/static/old/chat.js", headers={"Accept-Encoding": "identity"}) as response:
        assert response.headers["Cache-Control"] == "no-cache"
    for path in ("../app.py", "%2e%2e/app.py", "..%2f..%2fpyproject.toml", "/etc/passwd", "chat.js%00", "vendor/"):
        async with browser.get(aiohttp.client.URL(f"{site.make_url(prefix)}/{path}", encoded=True)) as response:
            assert response.status == 404


def test_scripts_and_styles_go_out_without_the_lines_of_comments():
    served = statics.load({"made.js": b"// as it is"}).found
    assert served["made.js"].body == b"// as it is"
    for path in STATIC.rglob("*"):
        name, source = str(path.relative_to(STATIC)), path.read_bytes() if path.is_file() else b""
        if not name.endswith((".js", ".css")):
            continue
        lines = zip(source.split(b"\n"), served[name].body.split(b"\n"), strict=True)
        left_out = b"\n".join(line for line, kept in lines if line != kept)
        assert not (left_out and name.startswith("vendor/"))
        comment = rb"\s*(/\*([^*]|\*(?!/))*\*/|//.*)\s*"
        assert re.fullmatch(rb"(%s)*" % comment, left_out), name


def test_vendored_libraries_are_what_they_say():
    listed = json.loads((STATIC / "vendor" / "vendored.json").read_text())
    files = {}
    for library in listed["packages"]:
        assert library["version"]
        assert library["licence"]
        files |= {path: file["sha256"] for path, file in library["files"].items()}
    on_disk = {str(p.relative_to(STATIC / "vendor")) for p in (STATIC / "vendor").rglob("*") if p.is_file()} - {
        "vendored.json"
    }
    assert set(files) == on_disk
    for path, digest in files.items():
        assert hashlib.sha256((STATIC / "vendor" / path).read_bytes()).hexdigest() == digest


async def test_the_page_weighs_less_than_250_kb_compressed(site):
    total = sum(min(len(f.zipped), len(f.body)) for f in site.app[STATICS].found.values())
    seldom = re.compile("katex|mermaid|^arena|^leaderboard")  # of other pages, or only where there is something for it
    rest = sum(len(f.zipped) for p, f in site.app[STATICS].found.items() if seldom.search(p))
    assert total - rest < 250_000


@pytest.mark.parametrize("kind", ["diagram", "picture"])
async def test_a_sandbox_has_a_policy_of_its_own(browser, kind):
    policies = []
    for _ in range(2):
        async with browser.get(f"/sandbox/{kind}") as response:
            assert response.status == 200
            text, policy = await response.text(), response.headers["Content-Security-Policy"]
        policies.append(policy)
        (nonce,) = set(re.findall(r'nonce="([^"]+)"', text))
        assert f"script-src 'nonce-{nonce}';" in policy
        for part in ("default-src 'none'", "frame-ancestors 'self'", "sandbox allow-scripts"):
            assert part in policy
        assert "connect-src" not in policy
        assert ("img-src" in policy) == (kind == "picture")
    assert policies[0] != policies[1]
    async with browser.get("/sandbox/other") as response:
        assert response.status == 404


async def test_a_page_answers_while_redis_is_away(site, browser):
    """No hang and no traceback: a sentence, and 503."""
    async with browser.get("/"):
        pass
    broker = site.app[BROKER]
    async with broker.redis.client() as other:
        await other.execute_command("CLIENT", "PAUSE", "1500", "WRITE")
    async with asyncio.timeout(5), browser.get("/livez") as response:
        assert response.status == 200
