"""How near the torch engine comes to what the model alone can do on this machine.

    python tests/benchmarks/engine.py MODEL_DIR [--limit PATH/limit.py] [--only engine|path|gaps|prefix]

The measure is `whole` of ../shared/bench/limit.py, run right before each figure: one static batch, nothing but the
model. Every request has 64 prompt tokens and makes 64; a first pass warms up, then passes are repeated for some
seconds. Printed are

- the engine by itself, at concurrency 1, 8 and 32: sampled (temperature 0.7, top-p 0.9, top-k 40), sampled from the
  whole vocabulary (temperature 1), greedy, and sampled in the form of a JSON schema;
- the whole path at 32, from `ask()` to frames in this process, with a Valkey and a worker process between;
- the longest gap of 16 answers while a prompt of 1 500 tokens arrives, beside their median gap;
- the time to first token of a prompt of 1 000 tokens, and of a second one that begins with it.

The last line, `share X`, is the sampled engine at 32 over `whole`.
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from transformers import AutoTokenizer

from broker import chat, embedded, registry
from broker.config import Config
from broker.connection import Broker
from broker.messages import ChatRequest, Message, Sampling, Structure
from broker.sources import ModelSource
from tests.fleet_process import worker
from workers.engine import Engine, EngineOptions, open_engine

LIMIT = Path("shared", "bench", "limit.py")
BESIDE = (Path(__file__).resolve().parents[3], Path.cwd().parent, Path("/work"))  # where it is looked for
PROMPT = NEW = 64
SECONDS = 4.0  # of repeated passes
LONG_LIST = Structure(
    "json_schema",
    json.dumps(
        {
            "type": "array",
            "minItems": 1000,  # so that the answer fills its tokens
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "kind": {"enum": ["a", "b"]}},
                "required": ["name", "age", "kind"],
                "additionalProperties": False,
            },
        }
    ),
)
KINDS = {
    "sampled": Sampling(temperature=0.7, top_p=0.9, top_k=40, max_tokens=NEW, ignore_eos=True),
    "whole vocabulary": Sampling(temperature=1.0, max_tokens=NEW, ignore_eos=True),
    "greedy": Sampling(temperature=0.0, max_tokens=NEW, ignore_eos=True),
    "JSON of a schema": Sampling(temperature=0.7, top_p=0.9, top_k=40, max_tokens=NEW, structure=LONG_LIST),
}
Ask = Callable[[ChatRequest], Awaitable[float]]  # one request; gives the seconds to its first token


class Prompts:
    """Requests whose prompts have an exact number of tokens and differ from their first words on."""

    def __init__(self, folder: str) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._made = 0

    def request(self, tokens: int, sampling: Sampling, head: str = "") -> ChatRequest:
        """A request of that many prompt tokens that begins with `head` and goes on as no other does."""
        self._made += 1
        text = f"{head} number {self._made} of them:" if head else f"{self._made} is the number of this one:"
        while (missing := tokens - self._count(text)) > 0:
            text += " the" * missing if missing < 8 else " and so on" * (missing // 4)
        assert self._count(text) == tokens, f"no prompt of {tokens} tokens with this tokenizer"
        return ChatRequest("m", (Message("user", text),), sampling)

    def _count(self, text: str) -> int:
        turns = [{"role": "user", "content": text}]
        return len(self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))


async def alone(engine: Engine, request: ChatRequest) -> float:
    """One answer, piece by piece, from the engine in this process."""
    begun, first = time.perf_counter(), 0.0
    async with engine.generate(request) as pieces:
        async for piece in pieces:
            if not first and piece.token_ids:
                first = time.perf_counter() - begun
    return first


async def through_the_queue(broker: Broker, request: ChatRequest) -> float:
    """The same through Redis and a worker process."""
    begun, first = time.perf_counter(), 0.0
    async with chat.ask(broker, request) as frames:
        async for _ in frames:
            first = first or time.perf_counter() - begun
    return first


async def passes(prompts: Prompts, ask: Ask, n: int, sampling: Sampling) -> tuple[float, float]:
    """Tokens a second over whole requests, n at once, and the median time to first token in seconds."""
    firsts: list[float] = []
    spent = done = 0.0
    warm = False
    while spent < SECONDS:
        requests = [prompts.request(PROMPT, sampling) for _ in range(n)]
        begun = time.perf_counter()
        found = await asyncio.gather(*(ask(request) for request in requests))
        if warm:
            spent += time.perf_counter() - begun
            done += n * NEW
            firsts += found
        warm = True
    return done / spent, statistics.median(firsts)


def whole(limit: Path, folder: str, n: int) -> float:
    """What the model alone does, in tokens a second."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    shown = subprocess.run(
        [sys.executable, limit, folder, str(n)], capture_output=True, text=True, check=True, env=env
    ).stdout
    found = re.search(r"whole\s+([\d.]+)", shown)
    assert found, shown
    return float(found[1])


async def measure_engine(engine: Engine, prompts: Prompts, limit: Path, folder: str) -> float:
    share = 0.0
    for n in (1, 8, 32):
        ceiling = whole(limit, folder, n)
        print(f"{n:2d} at once   the model alone {ceiling:7.1f} tokens/s")
        for kind, sampling in KINDS.items():
            rate, first = await passes(prompts, lambda request: alone(engine, request), n, sampling)
            print(f"     {kind:17s} {rate:10.1f} tokens/s   {rate / ceiling:.3f}   first token {1000 * first:.0f} ms")
            share = rate / ceiling if kind == "sampled" else share
    return share


async def measure_path(prompts: Prompts, limit: Path, folder: str) -> None:
    ceiling = whole(limit, folder, 32)
    with tempfile.TemporaryDirectory() as name, embedded.running(Path(name)) as (url, _):
        with worker(url, Path(name), model=f"m={folder}", device="cpu", dtype="float32"):
            async with Broker.open(Config.from_env({"REDIS_URL": url})) as broker:
                await _ready(broker)
                rate, first = await passes(
                    prompts, lambda request: through_the_queue(broker, request), 32, KINDS["sampled"]
                )
    print(f"whole path, 32 at once: {rate:.1f} of {ceiling:.1f} tokens/s   {rate / ceiling:.3f}   ", end="")
    print(f"first token {1000 * first:.0f} ms")


async def _ready(broker: Broker) -> None:
    while not any(m.state == "ready" for m in await registry.models(broker)):
        await asyncio.sleep(0.1)


async def measure_gaps(engine: Engine, prompts: Prompts) -> None:
    """Gaps between the tokens of 16 answers, while another prompt is read."""
    steady, during = [], []
    began, ended = asyncio.Event(), asyncio.Event()

    async def decode(request: ChatRequest) -> None:
        last = None
        async with engine.generate(request) as pieces:
            async for _ in pieces:
                now = time.perf_counter()
                if last is not None and not ended.is_set():
                    (during if began.is_set() else steady).append(now - last)
                last = now
                if len(steady) > 16 * 40:
                    arrive.set()

    arrive = asyncio.Event()
    long = Sampling(temperature=0.7, top_k=40, max_tokens=300, ignore_eos=True)
    requests = [prompts.request(PROMPT, long) for _ in range(16)]
    late = prompts.request(1500, Sampling(temperature=0, max_tokens=1, ignore_eos=True))
    async with asyncio.TaskGroup() as tasks:
        for request in requests:
            tasks.create_task(decode(request))
        await arrive.wait()
        began.set()
        first = await alone(engine, late)
        ended.set()
    step = statistics.median(steady)
    print(f"a prompt of 1500 tokens among 16 answers: read in {1000 * first:.0f} ms; their median gap ", end="")
    print(f"{1000 * step:.1f} ms, the longest {1000 * max(during):.1f} ms, {max(during) / step:.2f} times that")


async def measure_prefix(engine: Engine, prompts: Prompts) -> None:
    one = Sampling(temperature=0, max_tokens=1, ignore_eos=True)
    await alone(engine, prompts.request(1000, one))  # warms up
    shares = []
    for _ in range(5):
        request = prompts.request(1000, one)
        first = await alone(engine, request)
        second = await alone(engine, prompts.request(1040, one, head=request.messages[0].content))
        shares.append(second / first)
    print(
        f"a prompt that begins with 1000 known tokens: {statistics.median(shares):.3f} of the first one's time ", end=""
    )
    print(f"({1000 * second:.0f} of {1000 * first:.0f} ms)")


async def measure(folder: str, limit: Path, only: str | None) -> None:
    prompts = Prompts(folder)
    share = None
    if only != "path":
        options = EngineOptions((ModelSource("m", folder),), device="cpu", dtype="float32")
        engine = await open_engine(options, lambda percent: None)
        if only in (None, "engine"):
            share = await measure_engine(engine, prompts, limit, folder)
        if only in (None, "gaps"):
            await measure_gaps(engine, prompts)
        if only in (None, "prefix"):
            await measure_prefix(engine, prompts)
        await engine.close()
    if only in (None, "path"):
        await measure_path(prompts, limit, folder)
    if share is not None:
        print(f"share {share:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of the model")
    found = next((folder / LIMIT for folder in BESIDE if (folder / LIMIT).is_file()), None)
    parser.add_argument("--limit", type=Path, default=found, required=found is None, help="default: %(default)s")
    parser.add_argument("--only", choices=("engine", "path", "gaps", "prefix"))
    given = parser.parse_args()

    asyncio.run(measure(given.model, given.limit, given.only))


if __name__ == "__main__":
    main()
