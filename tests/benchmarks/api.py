"""What the API does: how many requests, how many streams, and how fast beside `transformers serve`.

    python tests/benchmarks/api.py [MODEL_DIR] [--only echo|streams|beside] [--load PATH/load.py] [--seconds N]

Each part starts its own processes on loopback and stops them; the client shares the machine.

- `echo`: requests of 16 tokens a second, plain and streamed, through one web process and one worker with the `echo` model
  (a token a piece), and the processor time that each process spends on one;
- `streams`: 500 streams at once through one web process: how many failed, the web process's memory for each, and the
  gaps between the events of one stream;
- `beside` (with a MODEL_DIR): ../shared/bench/load.py with 64 tokens at concurrency 1, 8 and 32, in turns on a fleet and
  on `transformers serve --continuous-batching`, and the ratios.
"""

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import aiohttp

from broker import embedded
from tests.fleet_process import cpu_seconds, memory_mb, process, until_ready, wait_for_port, web, worker

LOAD = Path("shared", "bench", "load.py")
BESIDE = (Path(__file__).resolve().parents[3], Path.cwd().parent, Path("/work"))  # where it is looked for
TOKENS, AT_ONCE = 16, 32  # of the echo
STREAMS, WORDS, PACE_MS = 500, 200, 50
ROUNDS, NEW = 2, 64  # of load.py
REQUESTS = {1: 6, 8: 32, 32: 96}  # by concurrency


def body(text: str, tokens: int, stream: bool) -> dict[str, Any]:
    """A chat completion."""
    return {
        "model": "echo",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "stream": stream,
    }


@contextmanager
def fleet(**settings: Any) -> Iterator[tuple[str, dict[str, int]]]:
    """A Valkey, a worker and a web app: the address, and the process ids by name."""
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), embedded.free_port()
        with (
            embedded.running(folder) as (url, server),
            worker(url, folder, **settings) as job,
            web(url, folder, port) as site,
        ):
            wait_for_port(port)
            yield f"http://127.0.0.1:{port}", {"web": site.pid, "worker": job.pid, "valkey": server.pid}


async def echo(base: str, pids: dict[str, int], seconds: float) -> None:
    """As many requests of TOKENS tokens as go, AT_ONCE at once, plain and then streamed."""
    await until_ready(base)
    pids = pids | {"client": os.getpid()}
    url = f"{base}/v1/chat/completions"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(stream: bool) -> None:
            async with session.post(url, json=body(f"/echo {TOKENS}", TOKENS, stream)) as response:
                answer = await response.read()
                assert response.status == 200, answer
                assert not stream or answer.endswith(b"data: [DONE]\n\n"), answer

        async def repeat(stream: bool, seconds: float) -> int:
            done, until = 0, time.perf_counter() + seconds
            while time.perf_counter() < until:
                await ask(stream)
                done += 1
            return done

        for kind, stream in (("plain", False), ("streamed", True)):
            for span in (1, seconds):  # the first second warms up
                cpu, begun = {name: cpu_seconds(pid) for name, pid in pids.items()}, time.perf_counter()
                done = sum(await asyncio.gather(*(repeat(stream, span) for _ in range(AT_ONCE))))
                elapsed = time.perf_counter() - begun
            used = {name: 1000 * (cpu_seconds(pid) - cpu[name]) / done for name, pid in pids.items()}
            spent = ", ".join(f"{name} {ms:.2f}" for name, ms in used.items())
            print(
                f"{kind:8s} {done / elapsed:6.0f} requests/s of {TOKENS} tokens; processor ms each: {spent}", flush=True
            )


async def streams(base: str, pids: dict[str, int], count: int, pace_ms: float) -> None:
    """Many streams at once: failures, memory, gaps."""
    await until_ready(base)
    failures: list[str] = []
    gaps: list[float] = []
    most = 0.0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def follow(words: int, number: int = 0) -> None:
            text = f"/echo {words} {pace_ms}ms"
            try:
                async with session.post(f"{base}/v1/chat/completions", json=body(text, words, True)) as response:
                    answer, last = bytearray(), 0.0
                    async for chunk in response.content.iter_any():
                        now = time.perf_counter()
                        if last:
                            gaps.append(now - last)
                        answer += chunk
                        last = now
                whole = "".join(
                    json.loads(line[6:])["choices"][0]["delta"].get("content", "")
                    for line in answer.splitlines()
                    if line.startswith(b"data: {")
                )
                if whole.split() != [str(i + 1) for i in range(words)] or not answer.endswith(b"data: [DONE]\n\n"):
                    failures.append(f"{response.status}: {answer[-200:]!r}")
            except aiohttp.ClientError as error:
                failures.append(repr(error))

        await asyncio.gather(*(follow(16) for _ in range(8)))  # what the first ones load is not their cost
        gaps.clear()
        before, cpu, begun = memory_mb(pids["web"]), {n: cpu_seconds(p) for n, p in pids.items()}, time.perf_counter()
        tasks = [asyncio.create_task(follow(WORDS)) for _ in range(count)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0.2)
            most = max(most, memory_mb(pids["web"]))
        elapsed = time.perf_counter() - begun
    used = ", ".join(f"{name} {(cpu_seconds(pid) - cpu[name]) / elapsed:.2f}" for name, pid in pids.items())
    gaps.sort()
    p50, p99 = 1000 * gaps[len(gaps) // 2], 1000 * gaps[int(0.99 * len(gaps))]
    print(
        f"{count} streams of {WORDS} tokens, one each {pace_ms:g} ms: {len(failures)} failed; "
        f"{1000 * (most - before) / count:.0f} KB each; gap p50 {p50:.1f} ms, p99 {p99:.1f} ms, {p99 / p50:.2f} times; "
        f"{elapsed:.1f} s; cores used: {used}",
        flush=True,
    )
    if failures:
        print("first failure:", failures[0])


@contextmanager
def transformers_serve(folder: str) -> Iterator[str]:
    """`transformers serve --continuous-batching`: its address."""
    port = embedded.free_port()
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", folder]
    options = [
        "--continuous-batching",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--port",
        str(port),
        "--log-level",
        "error",
    ]
    with tempfile.TemporaryDirectory() as name:
        with process([*command, *options], {**os.environ, "HF_HUB_OFFLINE": "1"}, Path(name) / "serve.log"):
            wait_for_port(port, 120)
            base, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
            while True:
                try:
                    with urllib.request.urlopen(f"{base}/health", timeout=5):
                        break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.2)
            yield base


def load(path: Path, base: str, model: str, at_once: int, **env: str) -> dict[str, Any]:
    """load.py's figures."""
    command = [sys.executable, path, base, model, at_once, REQUESTS[at_once], NEW]
    shown = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=True, env={**os.environ, **env}, timeout=600
    )
    found: dict[str, Any] = json.loads(shown.stdout.splitlines()[-1])
    assert not found["bad"], found
    return found


def beside(folder: str, path: Path) -> None:
    """The fleet and `transformers serve` in turns, the median of each figure, and the ratios."""
    print("concurrency   tokens/s: fleet  serve  ratio   first token, p50 ms: fleet  serve  ratio", flush=True)
    with (
        transformers_serve(folder) as serve,
        fleet(model=f"m={folder}", device="cpu", dtype="float32") as (ours, _),
    ):
        asyncio.run(until_ready(ours))
        for at_once in REQUESTS:
            rounds = [
                (load(path, ours, "m", at_once), load(path, serve, folder, at_once, PLAIN="1")) for _ in range(ROUNDS)
            ]

            def median(which: int, figure: str, rounds: list[Any] = rounds) -> float:
                return statistics.median(pair[which][figure] for pair in rounds)

            rates = [median(i, "tokens_per_s") for i in (0, 1)]
            firsts = [median(i, "ttft_p50") for i in (0, 1)]
            print(
                f"{at_once:11d}   {rates[0]:15.1f} {rates[1]:6.1f} {rates[0] / rates[1]:6.2f}"
                f"   {firsts[0]:26.1f} {firsts[1]:6.1f} {firsts[0] / firsts[1]:6.2f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder of the model for `beside`")
    found = next((folder / LOAD for folder in BESIDE if (folder / LOAD).is_file()), None)
    parser.add_argument("--load", type=Path, default=found, help="default: %(default)s")
    parser.add_argument("--only", choices=("echo", "streams", "beside"))
    parser.add_argument("--seconds", type=float, default=8, help="of each kind of requests; default: %(default)s")
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
    if given.only in (None, "echo"):
        with fleet() as (base, pids):
            asyncio.run(echo(base, pids, given.seconds))
    if given.only in (None, "streams"):
        with fleet(slots=512) as (base, pids):
            asyncio.run(streams(base, pids, STREAMS, PACE_MS))
    if given.only == "beside" or (given.only is None and given.model):
        if not given.model or given.load is None:
            parser.error("`beside` needs MODEL_DIR and --load")
        beside(given.model, given.load)


if __name__ == "__main__":
    main()
