"""A model that two processes share answers as it does in one, and neither outlives the other."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from broker.errors import EngineFailed, ModelUnusable
from broker.messages import Sampling
from broker.sources import ModelSource
from tests.tiny_model import build, build_adapter
from tests.workers.engine.conftest import Open, options, request
from tests.workers.engine.test_torch_engine import GREEDY, PROMPTS, SEEDED, ask, reference, settled, until
from workers.engine import EngineOptions
from workers.engine.torch_engine import TorchEngine, open_engine

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(torch.accelerator.is_available(), reason="the parts of a model go to the accelerator"),
]
LONG = [f"{number} rain in the north " * 20 for number in range(4)]  # more tokens than a step has

ALONE = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.workers.engine.conftest import options
from workers.engine.torch_engine import open_engine

async def main():
    engine = await open_engine(options(Path(sys.argv[1]), slots=2, cache_mb=4, parallel=2), lambda percent: None)
    print(*(process.pid for process in engine._followers._processes), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def running(pid: int) -> bool:
    """Whether there is such a process that is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids(engine: TorchEngine) -> list[int]:
    assert engine._followers is not None
    return [process.pid for process in engine._followers._processes]


async def test_two_processes_answer_as_one(opened: Open, folder: Path) -> None:
    one, two = await opened(), await opened(parallel=2)
    prompts = [*PROMPTS, *LONG]
    greedy = await asyncio.gather(*(ask(two, text) for text in prompts))
    assert [ids for ids, _, _ in greedy] == [reference(folder, text, 40) for text in prompts]
    assert await asyncio.gather(*(ask(two, "Hello", sampling) for sampling in SEEDED)) == [
        await ask(one, "Hello", sampling) for sampling in SEEDED
    ]
    scores = []
    for engine in (one, two):
        sampling = Sampling(temperature=0, max_tokens=2, prompt_logprobs=0)
        async with engine.generate(request(LONG[0], sampling)) as answer:
            first, *_ = [piece async for piece in answer]
        scores.append([score["logprob"] for score in first.data["prompt_logprobs"][1:]])
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)
    await settled(two)


async def test_an_answer_that_is_left_disturbs_no_other_and_close_ends_all(opened: Open, folder: Path) -> None:
    engine = await opened(parallel=2)
    expected = reference(folder, "Hello", 40)
    async with engine.generate(request("go on", Sampling(max_tokens=400, ignore_eos=True))) as answer:
        other = asyncio.create_task(ask(engine, "Hello"))
        await anext(answer)
    assert (await other)[0] == expected
    await settled(engine)
    assert engine.alive
    async with asyncio.timeout(2):
        await engine.close()
    assert not engine.alive
    assert not any(map(running, pids(engine)))


async def test_the_engine_is_dead_when_a_follower_is(opened: Open) -> None:
    engine = await opened(parallel=2)
    async with engine.generate(request("go on", Sampling(max_tokens=400, ignore_eos=True))) as answer:
        await anext(answer)
        os.kill(pids(engine)[0], signal.SIGKILL)
        with pytest.raises(EngineFailed):
            [piece async for piece in answer]
    await until(lambda: not engine.alive)
    with pytest.raises(EngineFailed):
        await ask(engine, "Hello", GREEDY)


async def test_followers_end_when_the_worker_is_killed(folder: Path) -> None:
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", ALONE, str(folder), stdout=subprocess.PIPE)
    told, _ = await worker.communicate()
    assert worker.returncode == -signal.SIGKILL
    (follower,) = map(int, told.split())
    await until(lambda: not running(follower))


async def test_what_cannot_be_shared_is_refused(folder: Path, tmp_path: Path) -> None:
    odd = build(tmp_path / "odd", hidden_size=48, num_attention_heads=3, num_key_value_heads=3)
    planless = build(tmp_path / "planless")
    (planless / "config.json").write_text((planless / "config.json").read_text().replace("llama", "stablelm"))
    adapter = build_adapter(folder, tmp_path / "adapter", seed=1)
    both = (ModelSource("m", str(folder)), ModelSource("a", str(adapter)))
    for refused, why in (
        (options(odd, parallel=2), "3 attention heads"),
        (options(planless, parallel=2), "no tensor-parallel plan"),
        (options(folder, parallel=2, quantization="int8"), "int8"),
        (options(folder, parallel=2, device="cpu:0"), "FLEETCHAT_DEVICE"),
        (EngineOptions(both, device="cpu", parallel=2), "Adapters"),
    ):
        with pytest.raises(ModelUnusable, match=why):
            await open_engine(refused, lambda percent: None)
