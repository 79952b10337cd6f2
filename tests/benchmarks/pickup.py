"""How fast an idle worker picks a job up, and what it costs to be idle.

    python tests/benchmarks/pickup.py [REQUESTS]

Starts an embedded Valkey and one worker process whose job notes the time of its first line (the machine's monotonic
clock is one for all processes). Prints milliseconds from before `enqueue` to that line, then commands a second that an
idle worker sends (a script as one) and its share of a core, over 20 s.
"""

import asyncio
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from arq.worker import func

from broker import embedded, queues, registry
from broker.config import Config
from broker.connection import Broker
from broker.messages import ChatRequest, Message
from tests.fleet_process import cpu_seconds, environment, process

IDLE_SECONDS = 20


async def probe(ctx: dict[str, Any], request_id: str) -> None:
    """In place of the chat job: the time of its first line."""
    now = time.monotonic()
    await ctx["broker"].redis.publish("probe", struct.pack("d", now))


def serve() -> None:
    """The worker process."""
    import arq.worker

    from workers.settings import make_settings

    settings = make_settings()
    settings.functions = [func(probe, name="chat")]  # type: ignore[attr-defined]
    arq.worker.run_worker(settings)


async def measure(url: str, pid: int, requests: int) -> None:
    async with Broker.open(Config.from_env({"REDIS_URL": url})) as broker:
        while not await registry.workers(broker) or (await registry.models(broker))[0].state != "ready":
            await asyncio.sleep(0.1)
        times = []
        async with broker.listener.subscribe("probe") as mailbox:
            for _ in range(requests):
                await asyncio.sleep(0.02)  # idle again, sweeps and heartbeats in between
                begun = time.monotonic()
                await queues.enqueue(broker, ChatRequest("echo", (Message("user", "hi"),), keep=True))
                (stamp,), _gap = await mailbox.take(5)
                times.append(1000 * (struct.unpack("d", stamp)[0] - begun))
        times.sort()
        p50, p99 = times[len(times) // 2], times[int(0.99 * len(times))]
        print(
            f"enqueue to the job's first line: p50 {p50:.2f} ms, p99 {p99:.2f} ms, worst {times[-1]:.2f} ms ({requests})"
        )

        cpu = cpu_seconds(pid)
        sent = await _commands(broker, pid) / IDLE_SECONDS
        share = 100 * (cpu_seconds(pid) - cpu) / IDLE_SECONDS
        print(f"an idle worker: {sent:.1f} commands/s, {share:.2f} % of a core")


async def _commands(broker: Broker, pid: int) -> int:
    """Commands that the worker's connections send in IDLE_SECONDS, as MONITOR shows them; what a script calls is not sent."""
    count, ports = 0, _ports(pid)
    async with broker.redis.monitor() as monitor:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                while True:
                    command = await monitor.next_command()
                    count += command["client_type"] == "tcp" and int(command["client_port"]) in ports
        except TimeoutError:
            return count


def _ports(pid: int) -> set[int]:
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = str(link.readlink()) if link.is_symlink() else ""
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[9] in inodes}


def main() -> None:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with embedded.running(folder) as (url, _):
            command = [sys.executable, __file__, "serve"]
            with process(command, environment(url, model="echo"), folder / "worker.log") as worker:
                asyncio.run(measure(url, worker.pid, requests))


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else main()
