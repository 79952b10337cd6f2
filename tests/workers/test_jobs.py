import asyncio
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest

from broker import chat, keys, leaderboard, registry
from broker.errors import BadRequest, NoSuchModel, NoWorker
from broker.leaderboard import BoardRequest
from broker.messages import JobRequest
from fleet_process import environment, worker
from helpers import cast, eventually, request

pytestmark = pytest.mark.timeout(90)


@dataclass(frozen=True, slots=True)
class OtherRequest(JobRequest):
    """A job that nobody knows."""

    JOB: ClassVar[str] = "other"


async def test_a_job_is_answered_and_its_worker_is_no_model(broker, worker_in):
    async with worker_in(role="jobs", model="echo"), worker_in(model="echo"):
        board = await leaderboard.load(broker, BoardRequest(since="2026-01-01"))
        assert (board["from"], board["votes"], board["models"]) == ("2026-01-01", 0, [])
        assert [state.card.name for state in await registry.models(broker)] == ["echo"]
        assert {w.fields["models"] for w in await registry.workers(broker)} == {"jobs", "echo"}
        assert await broker.redis.zcard(keys.running(keys.beside("jobs"))) == 0
        with pytest.raises(BadRequest, match="jobs is no model"):
            await chat.answer(broker, request(model="jobs"))


async def test_without_a_jobs_worker_it_is_said_who_is_missing(broker, worker_in):
    with pytest.raises(NoSuchModel, match="FLEETCHAT_ROLE=jobs"):
        await leaderboard.load(broker, BoardRequest(since="2026-01-01"))
    async with worker_in(role="jobs"):
        pass
    with pytest.raises(NoWorker, match="FLEETCHAT_ROLE=jobs"):
        await leaderboard.load(broker, BoardRequest(since="2026-01-01"))


async def test_a_value_that_cannot_be_is_refused_before_the_queue(broker, worker_in):
    async with worker_in(role="jobs"):
        with pytest.raises(BadRequest, match="no date") as caught:
            await leaderboard.load(broker, BoardRequest(until="yesterday"))
        assert caught.value.param == "until"


async def test_a_job_that_the_worker_does_not_know_ends_with_an_error(broker, worker_in):
    async with worker_in(role="jobs"):
        async with chat.ask(broker, OtherRequest()) as frames:
            *_, last = [received.decode() async for received in frames]
        assert last.end["reason"] == "error"
        assert (await leaderboard.load(broker, BoardRequest(since="2026-01-01")))["votes"] == 0


async def test_a_job_goes_on_elsewhere_when_its_worker_is_killed(broker, config, tmp_path):
    await cast(broker, 40_000)  # so that the first worker is still reading when it has claimed the job
    settings = {"role": "jobs", "lease_seconds": 2}
    with worker(config.redis_url, tmp_path, **settings) as first:
        await eventually(lambda: broker.redis.zcard(keys.serving("jobs")), 20)
        asked = asyncio.create_task(leaderboard.load(broker, BoardRequest(since="2026-01-01")))
        await eventually(lambda: broker.redis.zcard(keys.running(keys.beside("jobs"))))
        first.kill()
        assert not asked.done()
        with worker(config.redis_url, tmp_path, **settings) as second:
            assert (await asyncio.wait_for(asked, 20))["votes"] == 40_000
            second.terminate()
            assert second.wait(10) == 0


def test_rules_that_cannot_be_read_are_one_sentence_and_exit_code_2(tmp_path):
    arena = tmp_path / "arena.toml"
    arena.write_text("[ratings]\ntable = 'nowhere.csv'\n")
    env = environment("redis://127.0.0.1:1", role="jobs", arena_file=arena)
    done = subprocess.run([sys.executable, "-m", "arq", "workers.Settings"], env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "nowhere.csv" in done.stderr
    assert "Traceback" not in done.stderr
