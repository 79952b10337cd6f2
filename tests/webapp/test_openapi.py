"""The API's document and its page: that they are right, say all, and can be read. test_schemathesis.py asks by it."""

import asyncio
import json
import re
import subprocess

import jsonschema
import pytest
from openapi_spec_validator import validate

from broker import accounts
from broker.errors import BadRequest
from broker.messages import ChatRequest
from helpers import eventually
from webapp import access, openapi
from webapp.app import create_app
from webapp.docs import marked
from webapp.openai_answers import ChatForm, CompletionForm, Paper, Said
from webapp.openai_types import HARMLESS, HARMLESS_IN_MESSAGES, ChatCompletion, Completion, Embedding, check
from webapp.operations import OPERATIONS

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
PROMPT = {"model": "m", "prompt": "hi"}
INPUT = {"model": "m", "input": "hi"}


@pytest.fixture(scope="module")
def document():
    return openapi.document(OPERATIONS)


async def test_the_document_is_valid_and_served_as_json_to_everybody(browser, broker, document):
    await accounts.create(broker, "me")
    async with browser.get("/openapi.json") as response:
        assert (response.status, response.content_type) == (200, "application/json")
        found = await response.json()
    assert found == json.loads(json.dumps(document))
    validate(found)


def test_document_and_router_have_the_same_operations(config, document):
    routes = {
        (openapi.address(route.resource.canonical), route.method.lower())
        for route in create_app(config).router.routes()
        if route.method != "HEAD" and route.resource and route.resource.canonical.startswith(access.PATHS)
    }
    assert routes == {(path, method) for path, methods in document["paths"].items() for method in methods}


def test_harmless_fields_and_no_others_are_marked(document):
    found = {
        name: {field for field, about in schema.get("properties", {}).items() if "x-harmless" in about}
        for name, schema in document["components"]["schemas"].items()
    }
    marked = {name: fields for name, fields in found.items() if fields}
    assert marked.pop("ChatMessage") == set(HARMLESS_IN_MESSAGES)
    assert marked == {name: set(HARMLESS) for name in ("ChatCompletion", "Completion", "Embedding")}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (ChatCompletion, CHAT | {"n": None, "stop": None, "tools": None, "stream_options": None}),
        (ChatCompletion, CHAT | {"n": 129}),
        (ChatCompletion, CHAT | {"n": True}),
        (ChatCompletion, CHAT | {"messages": None}),
        (ChatCompletion, CHAT | {"messages": []}),
        (ChatCompletion, CHAT | {"metadata": [1, {"a": None}], "user": 7}),
        (ChatCompletion, CHAT | {"nonsense": 1}),
        (ChatCompletion, CHAT | {"messages": [{"role": "user", "content": None, "refusal": 1, "reasoning": []}]}),
        (ChatCompletion, CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        (ChatCompletion, CHAT | {"messages": [{"role": "nobody", "content": "hi"}]}),
        (ChatCompletion, CHAT | {"logit_bias": {"5": 1, "06": -1}}),
        (ChatCompletion, CHAT | {"logit_bias": {"x": 1}}),
        (ChatCompletion, CHAT | {"logit_bias": {"٣": 1}}),
        (ChatCompletion, CHAT | {"stop": ["x" * 1001]}),
        (ChatCompletion, CHAT | {"stop": ["x"] * 65}),
        (ChatCompletion, CHAT | {"max_tokens": 0}),
        (ChatCompletion, CHAT | {"tool_choice": {"type": "function", "function": {}}}),
        (Completion, PROMPT | {"max_tokens": 0}),
        (Completion, PROMPT | {"prompt": [[1, 2], "x"]}),
        (Completion, PROMPT | {"prompt": [[1, 2], [3]]}),
        (Completion, PROMPT | {"prompt": [2**32]}),
        (Completion, PROMPT | {"messages": []}),
        (Embedding, INPUT | {"input": ["x"] * 2048}),
        (Embedding, INPUT | {"input": ["x"] * 2049}),
        (Embedding, INPUT | {"dimensions": 0}),
    ],
)
def test_schema_and_check_agree(document, kind, body):
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"} | document
    fits = jsonschema.Draft202012Validator(schema).is_valid(body)
    try:
        check(kind, body)
        accepted = True
    except BadRequest:
        accepted = False
    assert fits == accepted


def test_calls_thoughts_and_scores_are_as_described(document):
    """What an echo never says."""
    token = {"token": b"a", "token_id": 1, "logprob": -0.5, "top": [{"token": b"\xe4", "token_id": 2, "logprob": -1e9}]}
    first = {"token": b"b", "token_id": 3, "logprob": None}
    begun = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": "{}"}}
    said = Said("text", "thought", [begun, more], [token], [first, token], "tool_calls", (2, 1))
    requests = [ChatRequest("m", (), prompt="b")]
    completion = CompletionForm(requests, echo=True, logprobs=1)
    for form, whole, chunk in (
        (ChatForm(True), "ChatAnswer", "ChatChunk"),
        (completion, "CompletionAnswer", "CompletionChunk"),
    ):
        paper = Paper(form, requests, 1, 1)
        fits(document, whole, paper.whole([said]))
        chunks = paper.chunks(0, said)
        for one in (*chunks, chunks[0] | {"usage": None}, paper.last()):
            fits(document, chunk, one)


def fits(document, name, found):
    jsonschema.validate(found, {"$ref": f"#/components/schemas/{name}"} | document, jsonschema.Draft202012Validator)


def test_code_in_a_text_is_shown_as_such_and_nothing_else_is_markup():
    assert marked("a `<b>` & <i>") == "a <code>&lt;b&gt;</code> &amp; &lt;i&gt;"


async def test_the_page_is_open_strict_and_knows_its_own_address(browser, broker, site):
    await accounts.create(broker, "me")
    async with browser.get("/docs/api") as response:
        text, policy = await response.text(), response.headers["Content-Security-Policy"]
        assert response.status == 200
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", text)
    assert f'curl "{site.make_url("/")}v1/models" ' in text
    for name in ("top_logprobs", "structured_outputs", "max_completion_tokens", "prompt_cache_key", "queue_full"):
        assert name in text


async def test_the_pages_curl_lines_work_as_printed(tab, site, broker, worker_in):
    key, _ = await accounts.create(broker, "me")
    await tab.goto(str(site.make_url("/docs/api")))
    commands = await tab.locator("pre", has_text="curl").all_inner_texts()
    assert len(commands) == len(OPERATIONS)
    async with worker_in(model="pocket=echo"):
        for command in commands:
            if "/v1/embeddings" not in command:  # which takes another model
                line = ["bash", "-c", command.replace("curl", "curl -sS --fail-with-body")]
                done = await asyncio.to_thread(
                    subprocess.run, line, env={"KEY": key, "PATH": "/usr/bin:/bin"}, capture_output=True, check=False
                )
                assert done.returncode == 0, command + (done.stdout + done.stderr).decode()
                assert "error" not in json.loads(done.stdout)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
async def test_the_page_fits_reads_and_is_walked_by_keyboard(tab, site, scheme, width):
    await tab.emulate_media(color_scheme=scheme)
    await tab.set_viewport_size({"width": width, "height": 800})
    await tab.goto(str(site.make_url("/docs/api")))
    lightness = await tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert (int(lightness) > 200) == (scheme == "light")
    for details in await tab.locator("details").all():
        await details.evaluate("one => one.open = true")
    assert await tab.evaluate("document.documentElement.scrollWidth") == width
    wide = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth).length"
    assert await tab.evaluate(wide) == 0
    await tab.evaluate("scrollTo(0, 0)")
    await tab.keyboard.press("Tab")
    assert await tab.evaluate("document.activeElement.className") == "skip"
    await tab.keyboard.press("Enter")
    assert await tab.evaluate("document.activeElement.id") == "main"
    await tab.keyboard.press("PageDown")
    await eventually(lambda: tab.evaluate("scrollY > 200"))
    names = set(await tab.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
    anchors = await tab.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.getAttribute('href').slice(1))"
    )
    assert set(anchors) <= names
