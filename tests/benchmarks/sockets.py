"""What one web process carries, with the `echo` model behind it.

    python tests/benchmarks/sockets.py [SECONDS]

Three figures, each with a fresh worker and web app on an embedded Valkey:
- `ask` on a websocket to the first frame in the client;
- frames a second to 32 sockets, one token a frame (FLEETCHAT_COALESCE_MS=0), counted in Valkey as PUBLISH calls, and
  the processor time per frame of the web process beside that of Valkey and the worker;
- memory of the web process for 1 000 idle websockets.
"""

import asyncio
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import aiohttp
import msgpack

from broker import embedded
from broker.config import Config
from broker.connection import Broker
from broker.messages import pack
from tests.fleet_process import cpu_seconds, memory_mb, until_ready, wait_for_port, web, worker

ASKS, SOCKETS, IDLE = 300, 32, 1000


def maps(message: bytes) -> list[dict]:  # type: ignore[type-arg]
    unpacker = msgpack.Unpacker()
    unpacker.feed(message)
    return list(unpacker)


async def first_frames(port: int) -> None:
    times = []
    async with aiohttp.ClientSession() as session, session.ws_connect(f"http://127.0.0.1:{port}/ws") as ws:
        for i in range(ASKS):
            begun = time.perf_counter()
            await ws.send_bytes(pack({"type": "ask", "ref": str(i), "model": "echo", "text": "hello"}))
            first, ended = 0.0, False
            while not ended:
                for one in maps((await ws.receive()).data):
                    if "seq" in one:
                        first = first or time.perf_counter() - begun
                        ended = "end" in one
            times.append(1000 * first)
    times.sort()
    print(
        f"ask to first frame: p50 {times[ASKS // 2]:.1f} ms, p99 {times[int(0.99 * ASKS)]:.1f} ms ({ASKS})", flush=True
    )


async def frames(port: int, broker: Broker, pids: dict[str, int], seconds: float) -> None:
    """Each socket asks for far more words than can come, and counts the bytes; Valkey counts the frames."""
    words = 200_000

    async def drain(session: aiohttp.ClientSession) -> None:
        async with session.ws_connect(f"http://127.0.0.1:{port}/ws", max_msg_size=0) as ws:
            await ws.send_bytes(pack({"type": "ask", "model": "echo", "text": f"/echo {words} 1ms"}))
            async for _ in ws:
                pass

    async with aiohttp.ClientSession() as session:
        tasks = [asyncio.create_task(drain(session)) for _ in range(SOCKETS)]
        await asyncio.sleep(2)

        async def published() -> int:
            return int((await broker.redis.info("commandstats"))["cmdstat_publish"]["calls"])

        before, cpu, begun = await published(), {k: cpu_seconds(p) for k, p in pids.items()}, time.monotonic()
        await asyncio.sleep(seconds)
        count, elapsed = await published() - before, time.monotonic() - begun
        used = {k: (cpu_seconds(p) - cpu[k]) for k, p in pids.items()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    each = {k: 1e6 * v / count for k, v in used.items()}
    print(
        f"{count / elapsed:.0f} frames/s to {SOCKETS} sockets; processor time per frame: "
        + ", ".join(f"{k} {v:.0f} us" for k, v in each.items())
        + f"; web / (worker + Valkey) = {each['web'] / (each['worker'] + each['valkey']):.2f}",
        flush=True,
    )


async def idle(port: int, pid: int) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        async with session.ws_connect(
            f"http://127.0.0.1:{port}/ws"
        ) as ws:  # what the first socket loads is not its cost
            await ws.receive()
        before = memory_mb(pid)
        sockets = [await session.ws_connect(f"http://127.0.0.1:{port}/ws") for _ in range(IDLE)]
        for ws in sockets:
            await ws.receive()
        print(f"{IDLE} idle websockets: {memory_mb(pid) - before:.1f} MB", flush=True)
        await asyncio.gather(*(ws.close() for ws in sockets))


async def measure(part: str, port: int, url: str, pids: dict[str, int], seconds: float) -> None:
    await until_ready(f"http://127.0.0.1:{port}")
    if part == "first":
        await first_frames(port)
    elif part == "idle":
        await idle(port, pids["web"])
    else:
        async with Broker.open(Config.from_env({"REDIS_URL": url})) as broker:
            await frames(port, broker, pids, seconds)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, coalesce in (("first", 25), ("frames", 0), ("idle", 25)):
            port = embedded.free_port()
            (folder / part).mkdir()
            with (
                embedded.running(folder / part) as (url, server),
                worker(url, folder, coalesce_ms=coalesce, slots=64) as job,
                web(url, folder, port) as site,
            ):
                wait_for_port(port)

                pids = {"web": site.pid, "worker": job.pid, "valkey": server.pid}
                asyncio.run(measure(part, port, url, pids, seconds))


if __name__ == "__main__":
    main()
