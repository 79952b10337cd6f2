"""Real processes for tests and benchmarks: workers and web apps of a fleet, and what they cost."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp

CLOCK = os.sysconf("SC_CLK_TCK")


def environment(url: str, **settings: object) -> dict[str, str]:
    """The environment of a process of the fleet at `url`; FLEETCHAT_ comes before each setting's name."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FLEETCHAT_")}
    return (
        kept
        | {"REDIS_URL": url, "FLEETCHAT_ECHO_FAULTS": "1"}
        | {f"FLEETCHAT_{k.upper()}": str(v) for k, v in settings.items()}
    )


@contextmanager
def process(command: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process while the block runs, its output in `log`; killed if it has not ended by itself."""
    with open(log, "ab") as output:
        started = subprocess.Popen(command, env=env, stdout=output, stderr=output)
    with started as running:
        try:
            yield running
        finally:
            if running.poll() is None:
                running.kill()


@contextmanager
def worker(url: str, folder: Path, model: str = "echo", **settings: object) -> Iterator[subprocess.Popen[bytes]]:
    """`arq workers.Settings` for a model. It may still be starting."""
    command = [sys.executable, "-m", "arq", "workers.Settings"]
    with process(command, environment(url, model=model, **settings), folder / "worker.log") as running:
        yield running


@contextmanager
def web(url: str, folder: Path, port: int, **settings: object) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m webapp` on loopback. It may still be starting."""
    command = [sys.executable, "-m", "webapp"]
    with process(command, environment(url, port=port, **settings), folder / "web.log") as running:
        yield running


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def wait_for_port(port: int, seconds: float = 20) -> None:
    """Until something listens on a loopback port."""
    import socket

    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


async def until_ready(base: str) -> None:
    """Returns once the web app has a model to offer."""
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{base}/readyz") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.1)
