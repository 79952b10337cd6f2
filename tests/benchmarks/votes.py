"""What votes cost: bytes a battle in Redis and in a file, votes a second in and out, and a leaderboard from a long file.

    python tests/benchmarks/votes.py [BATTLES] [ROWS]        default: 20 000 battles, 1 000 000 rows

The battles are as long as Chatbot Arena's are on average (arXiv 2309.11998: 1.2 turns, prompts of 52 tokens and answers of
189, here of four characters each); their texts are passages of Python's manual, with a fifth in Chinese from the demo
model's dialogues. They are imported from a log in FastChat's format into a Valkey of its own; what Valkey needs is the
difference of its used memory. The rows are arena-rank's, without conversations, as JSON lines.
"""

import asyncio
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from broker import embedded, keys, votelogs
from broker.config import Config
from broker.connection import Broker
from tests import battles

ROOT = Path(__file__).parents[2]
ENGLISH = "\n".join(topics.values())
CHINESE = (ROOT / "workers" / "pocket" / "dialogues" / "zh.txt").read_text()
PROMPT, ANSWER = 4 * 52, 4 * 189  # characters, on average
MODELS = 100
GB = 10**9


def passage(dice: random.Random, chinese: bool, mean: float) -> str:
    """A passage about so long; of Chinese a third as many characters say as much."""
    text = CHINESE if chinese else ENGLISH
    length = int(dice.lognormvariate(0, 1) * mean / 1.65 / (3 if chinese else 1)) + 10
    start = dice.randrange(max(1, len(text) - length))
    return text[start : start + length]


def battle(number: int) -> dict[str, Any]:
    """A record of FastChat's log."""
    dice = random.Random(number)
    chinese = dice.random() < 0.2
    prompts = [passage(dice, chinese, PROMPT) for _ in range(2 if dice.random() < 0.2 else 1)]
    states = [
        battles.state(
            f"model-{model}",
            f"{dice.getrandbits(128):032x}",
            [(text, passage(dice, chinese, ANSWER)) for text in prompts],
        )
        for model in dice.sample(range(MODELS), 2)
    ]
    return battles.vote(number, models=["", ""], states=states, ip=f"10.0.{dice.randrange(256)}.{dice.randrange(256)}")


def rows(count: int) -> Iterator[str]:
    """Lines with what arena-rank reads, of models whose strength grows with their number."""
    dice = random.Random(0)
    for number in range(count):
        a, b = dice.sample(range(MODELS), 2)
        odds = 1 / (1 + 10 ** ((b - a) / 25))
        winner = (
            dice.choice(("tie", "both_bad"))
            if dice.random() < 0.25
            else "model_a"
            if dice.random() < odds
            else "model_b"
        )
        row = {"id": f"{number:020x}", "model_a": f"model-{a}", "model_b": f"model-{b}", "winner": winner}
        yield json.dumps(row | {"timestamp": 1_680_000_000 + 20 * number, "voter": f"{number % 50_000:018x}"}) + "\n"


def write_log(log: Path, count: int) -> None:
    with open(log, "w") as stream:
        stream.writelines(json.dumps(battle(number)) + "\n" for number in range(count))


async def redis_costs(folder: Path, count: int) -> None:
    log = folder / "log.jsonl"
    write_log(log, count)
    with embedded.running(folder) as (url, _):
        async with Broker.open(Config.from_env({"REDIS_URL": url})) as broker:

            async def used() -> int:
                return int((await broker.redis.info("memory"))["used_memory"])

            empty, begun, cpu = await used(), time.monotonic(), time.process_time()
            report = await votelogs.bring(broker, log, votelogs.Complaints(log), lambda _: None)
            cpu, seconds = 1000 * (time.process_time() - cpu) / report.new, time.monotonic() - begun
            full, texts = await used(), sum(map(len, await broker.redis.hvals(keys.VOTED)))
            print(
                f"import             {report.new / seconds:7.0f} votes/s of FastChat's log, {cpu:.1f} ms of a core each, {log.stat().st_size / report.new:.0f} bytes a line"
            )
            begun = time.monotonic()
            exported = votelogs.Exported()
            async for _ in votelogs.texts(broker, "fastchat", exported):
                pass
            print(f"export             {exported.votes / (time.monotonic() - begun):7.0f} votes/s to the same")
            a_battle = (full - empty) / report.new
            print(
                f"Redis              {a_battle:7.0f} bytes a battle, {texts / report.new:.0f} of them what was said: {GB / a_battle:,.0f} battles in a GB"
            )
            archived = await votelogs.archive(broker, folder, 4 * 10**12, lambda _: None)
            left = (await used() - empty) / report.new
            print(f"Redis, archived    {left:7.0f} bytes a battle: {GB / left:,.0f} votes in a GB")
            print(f"file               {archived.bytes_in_file / archived.votes:7.0f} bytes a battle")


def leaderboard(folder: Path, count: int) -> None:
    file = folder / "rows.jsonl"
    with open(file, "w") as stream:
        stream.writelines(rows(count))
    for name, options in (("leaderboard", []), ("... with style", ["--style"])):
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        command = [sys.executable, "-m", "workers.leaderboard_file", *options, str(file)]
        board = json.loads(subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, check=True).stdout)
        seconds, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"{name:18} {seconds:7.1f} s, {after.ru_utime - before.ru_utime:.1f} s of a core, for {board['votes']:,} votes "
            f"in {file.stat().st_size / 1e6:.0f} MB, {after.ru_maxrss / 1024:.0f} MB of memory at most"
        )


def main() -> None:
    counts = [int(word) for word in sys.argv[1:]] + [20_000, 1_000_000][len(sys.argv) - 1 :]
    works: list[Callable[[Path], Any]] = [
        lambda f: asyncio.run(redis_costs(f, counts[0])),
        lambda f: leaderboard(f, counts[1]),
    ]
    for work in works:
        with tempfile.TemporaryDirectory() as folder:
            work(Path(folder))


if __name__ == "__main__":
    main()
