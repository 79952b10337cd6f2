"""How long a vote takes to a leaderboard, and what votes cost a jobs worker that starts.

    python tests/benchmarks/leaderboard.py [VOTES] [MODELS]

Fills an embedded Valkey with votes of 200 days in five categories, starts one jobs worker, and prints the seconds until it
has read them and shows its first board, then, for ten more votes of two categories each, the seconds until a board has them.
"""

import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from broker import embedded, keys, leaderboard
from broker.config import Config
from broker.connection import Broker
from broker.leaderboard import BoardRequest
from broker.votes import Vote
from tests.fleet_process import cpu_seconds, memory_mb, worker

DAYS = 200
CATEGORIES = ("coding", "math", "creative", "en", "zh")
BATCH = 5000
MORE = 10
STILL_SECONDS = 15
SHOWN = (
    BoardRequest(),
    BoardRequest(named=True),
    BoardRequest(style=True),
    BoardRequest(category="math"),
    BoardRequest(category="math", style=True),
)


def vote(rng: random.Random, models: int, at: int, categories: tuple[str, ...]) -> dict[str, str]:
    a, b = rng.sample(range(models), 2)
    won = rng.random() < 1 / (1 + 10 ** ((a - b) / models))  # the lower its number, the stronger a model is
    winner = "tie" if rng.random() < 0.2 else "a" if won else "b"
    styles = [(rng.randrange(20, 600), rng.randrange(4), rng.randrange(12), rng.randrange(9)) for _ in range(2)]
    flat = Vote(
        f"{rng.getrandbits(100):025x}", "named" if rng.random() < 0.2 else "blind", winner, f"model-{a}", f"model-{b}",
        1 / models, 1, f"{rng.randrange(100_000):016x}", at, categories, *styles,
    ).encode()  # fmt: skip
    return dict(zip(flat[::2], flat[1::2], strict=True))


async def fill(broker: Broker, votes: int, models: int, rng: random.Random) -> int:
    """Write the votes; gives the time of the last one."""
    begin = 1_750_000_000_000
    step = DAYS * 86_400_000 // votes
    for done in range(0, votes, BATCH):
        async with broker.redis.pipeline(transaction=False) as pipe:
            for i in range(done, min(done + BATCH, votes)):
                pipe.xadd(keys.VOTES, vote(rng, models, begin + i * step, tuple(rng.sample(CATEGORIES, 2))))  # type: ignore[arg-type]
            await pipe.execute()
    return begin + votes * step


async def until(broker: Broker, request: BoardRequest, votes: int) -> None:
    """Returns once the board has at least so many."""
    version = None
    while True:
        latest = await leaderboard.version(broker)
        if latest != version:
            version, board = latest, await leaderboard.load(broker, request)
            if board is not None and board["votes"] >= votes:
                return
        await asyncio.sleep(0.02)


async def settled(broker: Broker) -> dict[str, int]:
    """How many votes the boards have, once they are still: by then voters who look odd have been set aside, too."""
    version = None
    while version != (version := await leaderboard.version(broker)):
        await asyncio.sleep(STILL_SECONDS)
    boards = {request.field: await leaderboard.load(broker, request) for request in SHOWN}
    return {field: board["votes"] for field, board in boards.items() if board is not None}


async def measure(url: str, folder: Path, votes: int, models: int) -> None:
    rng = random.Random(0)
    async with Broker.open(Config.from_env({"REDIS_URL": url})) as broker:
        last = await fill(broker, votes, models, rng)
        size = (await broker.redis.execute_command("MEMORY", "USAGE", keys.VOTES)) / votes
        print(f"{votes} votes on {models} models, {size:.0f} bytes each in Redis")
        begun = time.monotonic()
        with worker(url, folder, role="jobs") as process:
            await until(broker, SHOWN[0], 1)
            print(f"a worker that starts shows them after {time.monotonic() - begun:.1f} s, ", end="")
            for request in SHOWN:
                await until(broker, request, 1)
            print(
                f"all boards after {time.monotonic() - begun:.1f} s, of which the processor {cpu_seconds(process.pid):.1f} s"
            )
            print(f"{memory_mb(process.pid):.0f} MB")
            known = await settled(broker)
            cpu, began = cpu_seconds(process.pid), time.monotonic()
            seconds: dict[str, list[float]] = {request.field: [] for request in SHOWN}
            for i in range(1, MORE + 1):
                cast = vote(rng, models, last + i, ("coding", "math")) | {"kind": "blind"}
                begun = time.monotonic()
                await broker.redis.xadd(keys.VOTES, cast)  # type: ignore[arg-type]

                async def wait(request: BoardRequest, i: int = i, begun: float = begun) -> None:
                    await until(broker, request, known[request.field] + i)
                    seconds[request.field].append(time.monotonic() - begun)

                await asyncio.gather(*map(wait, SHOWN))
            share = (cpu_seconds(process.pid) - cpu) / (time.monotonic() - began)
        for field, took in seconds.items():
            print(f"one more vote is in {field:12} after {sorted(took)[MORE // 2]:.2f} s, at most {max(took):.2f} s")
        print(f"meanwhile the worker takes {share:.0%} of a core")


def main() -> None:
    votes = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    models = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    with tempfile.TemporaryDirectory() as name:
        with embedded.running(Path(name)) as (url, _):
            asyncio.run(measure(url, Path(name), votes, models))


if __name__ == "__main__":
    main()
