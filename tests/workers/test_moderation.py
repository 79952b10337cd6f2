"""The whole way of a check: from `broker.moderation.check` through a real jobs worker to a list, a server, or a model."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker import chat, embedded, keys, metrics, moderation, rules
from broker.connection import Broker
from broker.errors import BadRequest, EngineFailed, ShareUsed
from broker.moderation import ModerationRequest, Verdict, check
from broker.rules import Rules
from fleet_process import environment
from helpers import eventually, request
from tests.workers.engine import moderation_server
from tests.workers.engine.moderation_server import ModerationServer
from workers.engine import remote_engine
from workers.moderation import OVERLAP, pieces, read

pytestmark = pytest.mark.timeout(60)

Started = Callable[..., Any]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other tests may take long for a check."""
    monkeypatch.setattr(moderation, "SECONDS", 30.0)


@pytest.fixture
async def started(worker_in: Any, tmp_path: Path) -> AsyncIterator[Started]:
    """Starts a jobs worker with a [moderation] of these lines, and gives the rules."""
    async with AsyncExitStack() as stack:

        async def start(*lines: str) -> Rules:
            found = written(tmp_path, *lines)
            await stack.enter_async_context(worker_in(role="jobs", arena_file=tmp_path / "arena.toml"))
            return found

        yield start


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ModerationServer]:
    """A moderation endpoint, and models that judge; pauses between tries are short."""
    monkeypatch.setattr(remote_engine, "PAUSE_SECONDS", 0.01)
    async with moderation_server.running() as server:
        yield server


def written(folder: Path, *lines: str) -> Rules:
    file = folder / "arena.toml"
    file.write_text("\n".join(["[moderation]", *lines]), encoding="utf-8")
    return rules.read(file)


def words(folder: Path, *lines: str) -> str:
    (folder / "words.txt").write_text("\n".join(lines), encoding="utf-8")
    return 'words = "words.txt"'


async def test_a_word_in_any_text_flags_them_all(broker: Broker, started: Started, tmp_path: Path) -> None:
    arena = await started(words(tmp_path, "bad", "壞"))
    assert await check(broker, arena, ["good", "fine"]) == Verdict(False)
    assert await check(broker, arena, ["", "good", "a BAD one"]) == Verdict(True, "line 1 of words.txt")
    assert await check(broker, arena, ["很壞", "good"]) == Verdict(True, "line 2 of words.txt")
    assert await check(broker, arena, ["", " "]) == Verdict(False)


async def test_a_list_that_is_changed_counts_at_once_and_one_that_is_spoiled_not_at_all(
    broker: Broker, started: Started, tmp_path: Path
) -> None:
    arena = await started(words(tmp_path, "bad"))
    assert await check(broker, arena, ["good"]) == Verdict(False)
    words(tmp_path, "bad", "good")
    assert await check(broker, arena, ["good"]) == Verdict(True, "line 2 of words.txt")
    words(tmp_path, "/(/")
    assert await check(broker, arena, ["good"]) == Verdict(True, "line 2 of words.txt")
    (tmp_path / "words.txt").unlink()
    assert await check(broker, arena, ["good"]) == Verdict(True, "line 2 of words.txt")
    words(tmp_path, "worse")
    assert await check(broker, arena, ["good"]) == Verdict(False)


async def test_texts_that_are_too_long_for_one_look_are_checked_to_their_end(
    broker: Broker, started: Started, server: ModerationServer
) -> None:
    arena = await started(f'url = "{server.url}"', 'upstream = "omni"')
    assert await check(broker, arena, ["good " * 10_000 + "bad", "good"]) == Verdict(True, "harassment, violence")
    assert [len(text) for text in server.bodies[0]["input"]] == [16_000, 16_000, 16_000, 2603, 4]


async def test_an_endpoint_that_is_down_is_as_the_rules_say(
    broker: Broker, started: Started, tmp_path: Path, server: ModerationServer, caplog: pytest.LogCaptureFixture
) -> None:
    arena = await started(f'url = "http://127.0.0.1:{embedded.free_port()}/v1"')
    before = metrics.MODERATED.labels("failed")._value.get()
    assert await check(broker, arena, ["what nobody may read"]) == Verdict(True, "unavailable", failed=True)
    arena = written(tmp_path, f'url = "{server.url}"', 'fails = "open"')
    assert await check(broker, arena, ["what nobody may read"]) == Verdict(False, "unavailable", failed=True)
    assert metrics.MODERATED.labels("failed")._value.get() == before + 2
    assert "nobody" not in caplog.text
    assert [r.levelno for r in caplog.records if r.name == "fleetchat.moderation"] == [logging.WARNING] * 2


async def test_a_check_that_takes_too_long_fails_and_is_taken_back(
    broker: Broker, started: Started, server: ModerationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena = await started(f'url = "{server.url}"')
    monkeypatch.setattr(moderation, "SECONDS", 1.0)
    server.free = 0
    assert await check(broker, arena, ["good"]) == Verdict(True, "it took longer than 1 s", failed=True)
    await asyncio.wait_for(server.gone.wait(), 5)
    await eventually(lambda: no_job_runs(broker))


async def no_job_runs(broker: Broker) -> bool:
    return not await broker.redis.zcard(keys.running("jobs"))


async def test_without_a_jobs_worker_the_check_fails(broker: Broker, started: Started, tmp_path: Path) -> None:
    arena = written(tmp_path, words(tmp_path, "bad"))
    assert await check(broker, arena, ["good"]) == Verdict(True, "model_not_found", failed=True)
    arena = written(tmp_path, words(tmp_path, "bad"), 'fails = "open"')
    assert await check(broker, arena, ["bad"]) == Verdict(False, "model_not_found", failed=True)


async def test_a_jobs_worker_without_the_rules_makes_no_check(broker: Broker, worker_in: Any, tmp_path: Path) -> None:
    arena = written(tmp_path, words(tmp_path, "bad"))
    async with worker_in(role="jobs"):
        assert await check(broker, arena, ["good"]) == Verdict(True, "unavailable", failed=True)


async def test_who_has_their_share_under_way_waits_with_more_and_is_not_let_pass(
    broker: Broker, worker_in: Any, started: Started, tmp_path: Path
) -> None:
    arena = await started(words(tmp_path, "bad"), 'fails = "open"')
    broker.config = replace(broker.config, user_limit=1)
    async with worker_in(model="echo"), chat.ask(broker, request("/echo 3000 20ms", model="echo", owner="anna")):
        with pytest.raises(ShareUsed):
            await check(broker, arena, ["bad"], "anna")
        assert await check(broker, arena, ["bad"], "ben") == Verdict(True, "line 1 of words.txt")


async def test_without_rules_nothing_is_asked(broker: Broker) -> None:
    assert await check(broker, Rules(), ["bad"]) == Verdict(False)


async def test_a_model_judges_each_text(
    broker: Broker, started: Started, worker_in: Any, server: ModerationServer, tmp_path: Path
) -> None:
    arena = await started('model = "judge"')
    async with worker_in(model=f"judge={server.url}"):
        assert await check(broker, arena, ["good", "fine"]) == Verdict(False)
        assert await check(broker, arena, ["good", "a bad one"]) == Verdict(True, "judge says unsafe")
        assert await check(broker, arena, ["good " * 2000 + "bad"]) == Verdict(True, "judge says unsafe")
        server.says = lambda text: "unsafe" if "bad" in text else "I would rather not say."
        assert await check(broker, arena, ["good"]) == Verdict(True, "engine_failed", failed=True)
        arena = written(tmp_path, 'model = "judge"', 'fails = "open"')
        assert await check(broker, arena, ["good"]) == Verdict(False, "engine_failed", failed=True)
        assert await check(broker, arena, ["good", "bad"]) == Verdict(True, "judge says unsafe")


async def test_a_judge_that_is_away_fails(broker: Broker, started: Started) -> None:
    assert await check(broker, await started('model = "judge"'), ["a"]) == Verdict(True, "model_not_found", failed=True)


async def test_a_judge_that_talks_fails(broker: Broker, started: Started, worker_in: Any) -> None:
    arena = await started('model = "echo"')
    async with worker_in(model="echo"):
        assert await check(broker, arena, ["is it safe?"]) == Verdict(True, "engine_failed", failed=True)


async def test_what_is_no_text_is_refused_before_the_queue(broker: Broker, started: Started, tmp_path: Path) -> None:
    await started(words(tmp_path, "bad"))
    for texts in ([1], "bad"):
        with pytest.raises(BadRequest, match="no text"):
            await chat.job(broker, ModerationRequest(texts))  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", ["safe", "Safe.", "**SAFE**", " safe\n"])
def test_a_judge_says_safe(answer: str) -> None:
    assert read(answer) == "safe"


@pytest.mark.parametrize("answer", ["unsafe", "Unsafe!", "unsafe\nS1,S10"])
def test_a_judge_says_unsafe(answer: str) -> None:
    assert read(answer) == "unsafe"


@pytest.mark.parametrize("answer", ["", "yes", "not safe", "It is safe.", "safe or unsafe", "unsafely", "safe? unsafe"])
def test_a_judge_that_says_neither_has_not_judged(answer: str) -> None:
    with pytest.raises(EngineFailed):
        read(answer)


def test_pieces_overlap_and_have_all() -> None:
    assert pieces("", 1000) == [""]
    assert pieces("x" * 1000, 1000) == ["x" * 1000]
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))
    cut = pieces(text, 1000)
    assert cut[0] + "".join(piece[OVERLAP:] for piece in cut[1:]) == text
    assert max(map(len, cut)) == 1000


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['words = "none.txt"'], "there is no file"),
        (['words = "words.txt"'], "words.txt, line 1: the pattern cannot be read"),
        (['url = "http://host/v1"', 'key_env = "NO_SUCH"'], "NO_SUCH is to hold the key"),
        (['url = "http://host/v1"', 'model = "judge"'], "name one of them"),
        (['key_env = "SOME_KEY"'], "go with url"),
    ],
)
async def test_what_cannot_be_used_ends_the_worker_with_a_sentence(lines: list[str], said: str, tmp_path: Path) -> None:
    words(tmp_path, "/(/")
    (tmp_path / "arena.toml").write_text("\n".join(["[moderation]", *lines]))
    env = environment("redis://127.0.0.1:1", role="jobs", arena_file=tmp_path / "arena.toml")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "arq", "workers.Settings", env=env, stderr=asyncio.subprocess.PIPE
    )
    _, stderr = await process.communicate()
    assert process.returncode == 2
    assert said in stderr.decode()
    assert "Traceback" not in stderr.decode()
