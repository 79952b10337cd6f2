"""Every operation of /openapi.json is asked by schemathesis: what fits the document is accepted, what does not is refused,
and whatever comes back is as described: status, type, headers, body, and each event of a stream. All checks of schemathesis
run. `--long` asks 20 000 times.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from schemathesis import engine
from schemathesis.engine import events

from broker import accounts, embedded, registry
from broker.connection import Broker
from fleet_process import wait_for_port, web, worker
from helpers import ENCODER, eventually

SERVED = {"pocket": "echo", "all-MiniLM-L6-v2": "mini"}  # in place of the document's examples
ENCODED = ("Embedding",)  # schemas of bodies that are for `mini`
MODEL = "As /v1/models has it."
DIMENSIONS = 384  # of `mini`
FORMS = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "regex", "ebnf")
ALL, SOME = 600, 15  # what each operation is asked by chance, in the long form and in the short one
LEAST_SENT = {True: 20_000, False: 300}  # requests in all, whether it is the long form


def mend(body: dict[str, Any]) -> None:
    """What goes together, as the fields' descriptions say; a schema cannot. And answers short enough for so many."""
    if body.get("n") is not None:
        body["n"] = 1 + body["n"] % 3
    if body.get("stream_options") is not None:
        body["stream"] = True
    for name in [name for name in FORMS if body.get(name) is not None][1:]:
        del body[name]
    if own := body.get("structured_outputs"):
        asked = [name for name, form in own.items() if form is not None and (name, form) != ("json_object", False)]
        for name in asked[1:]:
            del own[name]
    if "messages" in body:
        mend_chat(body)
    if body.get("best_of") is not None:
        body["best_of"] = max(body.get("n") or 1, body["best_of"] % 4)
        if body.get("stream"):
            del body["best_of"]
    for name in ("prompt", "input", "prompts"):
        if name in body:
            body[name] = shortened(body[name])
    if body.get("dimensions") is not None:
        body["dimensions"] = 1 + body["dimensions"] % DIMENSIONS


def shortened(value: Any) -> Any:
    """The beginning, without token ids that no vocabulary has."""
    if isinstance(value, list):
        return [shortened(one) for one in value[:8]]
    if isinstance(value, int | float):
        return value % 1000
    return value[:80] if isinstance(value, str) else value


def within_64_bits(value: Any) -> Any:
    """Without whole numbers that are larger."""
    if isinstance(value, dict):
        return {name: within_64_bits(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [within_64_bits(inner) for inner in value]
    return value % 2**63 if isinstance(value, int) and not -(2**63) <= value < 2**64 else value


def mend_chat(body: dict[str, Any]) -> None:
    """The same for chats."""
    last = body["messages"][-1]
    content = last.get("content") or ""
    if not (content if isinstance(content, str) else "".join(part["text"] for part in content)).strip():
        last["content"] = "something"
    if body.get("top_logprobs") is not None:
        body["logprobs"] = True
    if body.get("add_generation_prompt") is False:
        body["continue_final_message"] = True
    form = body.get("response_format")
    if form and form["type"] == "json_schema":
        form["json_schema"] = form.get("json_schema") or {"schema": {}}
    wanted = body.get("tool_choice")
    if (form and form["type"] != "text") or wanted not in (None, "none", "auto"):
        for name in FORMS:
            body.pop(name, None)
    if wanted not in (None, "none", "auto"):
        body.pop("response_format", None)
        name = wanted["function"]["name"] if isinstance(wanted, dict) else "f"
        body["tools"] = [{"type": "function", "function": {"name": "f"}}]
        if name != "f":
            wanted["function"]["name"] = "f"


def ask_all(base: str, key: str, long: bool) -> tuple[Counter[str], list[str]]:
    """Ask every operation.

    Returns:
        How many requests were sent, by phase and operation; and what was wrong.
    """
    schema = schemathesis.openapi.from_dict(served(f"{base}/openapi.json"), config=settings(base, key, long))

    @schema.hook
    def map_case(context: Any, case: Any) -> Any:
        if case.meta.generation.mode.is_positive and isinstance(case.body, dict):
            case.body = within_64_bits(case.body)
            mend(case.body)
        return case

    sent: Counter[str] = Counter()
    wrong: list[str] = []
    for event in engine.from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            sent[f"{event.phase.value} {event.label}"] += len(event.recorder.interactions)
            wrong += failures(event)
        elif isinstance(event, events.NonFatalError | events.FatalError):
            wrong.append(repr(event))
    return sent, wrong


def served(url: str) -> dict[str, Any]:
    """The document, with models that are there."""
    text = requests.get(url, timeout=5).text
    for example, model in SERVED.items():
        text = text.replace(f'"{example}"', f'"{model}"')
    raw: dict[str, Any] = json.loads(text)
    for name, schema in raw["components"]["schemas"].items():
        if schema.get("properties", {}).get("model", {}).get("description") == MODEL:
            may_be_absent = "model" not in schema.get("required", ())
            schema["properties"]["model"] = {
                "enum": ["mini" if name in ENCODED else "echo", *([None] if may_be_absent else [])]
            }
    for path in raw["paths"].values():
        for parameter in path.get("get", {}).get("parameters", ()):
            if parameter.get("name") == "model":
                parameter["schema"] = {"enum": ["echo"]}
    return raw


def settings(base: str, key: str, long: bool) -> schemathesis.Config:
    """All phases in the long form; in the short one, those that list every border of a schema only with a key."""
    return schemathesis.Config.from_dict(
        {
            "base-url": base,
            "continue-on-failure": True,
            "request-timeout": 20,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "generation": {"max-examples": ALL if long else SOME, "database": "none"},
            "phases": {"coverage": {"enabled": long or bool(key)}, "stateful": {"enabled": long}},
            # While the fleet has no key, the API is open on loopback, as the document says in words.
            "checks": {"ignored_auth": {"enabled": bool(key)}},
        }
    )


def failures(event: events.ScenarioFinished) -> list[str]:
    """What was wrong, with the answer and a line for curl."""
    found = []
    for case_id, checks in event.recorder.checks.items():
        for check in checks:
            if (failed := check.failure_info) is not None:
                answer = event.recorder.interactions[case_id].response
                said = answer.content[:500] if answer else b""
                found.append(f"{check.name} {event.label}: {failed.failure}\n{said!r}\n{failed.code_sample}")
    return found


@pytest.fixture
async def base(broker: Broker, valkey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """The address of a real web app, with a model that answers and an encoder behind it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a text's vector is little work
    with ExitStack() as stack:
        for name, model in (("echo", "echo"), ("mini", f"mini={ENCODER}")):
            (tmp_path / name).mkdir()
            stack.enter_context(worker(valkey, tmp_path / name, model, device="cpu"))
        port = embedded.free_port()
        stack.enter_context(web(valkey, tmp_path, port))

        async def ready() -> bool:
            return {m.card.name for m in await registry.models(broker) if m.state == "ready"} == {"echo", "mini"}

        await eventually(ready, 60)
        await asyncio.to_thread(wait_for_port, port)
        yield f"http://127.0.0.1:{port}"


@pytest.mark.timeout(3600)
async def test_every_operation_keeps_its_word_without_a_key_and_with_one(base, broker, long):
    total = 0
    for keyed in (False, True):
        key = (await accounts.create(broker, "me", rpm=10**6, tpm=10**9))[0] if keyed else ""
        sent, wrong = await asyncio.to_thread(ask_all, base, key, long)
        print(f"{'with' if keyed else 'without'} a key: {sum(sent.values())} requests, {dict(sent)}")
        total += sum(sent.values())
        assert not wrong, f"{len(wrong)} findings, the first ones:\n\n" + "\n\n".join(wrong[:5])
    assert total >= LEAST_SENT[long]
