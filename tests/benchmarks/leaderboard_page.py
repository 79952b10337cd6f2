"""How fast the leaderboard's page opens: 200 models and a million votes, in Chromium with nothing cached.

    python tests/benchmarks/leaderboard_page.py [VOTES] [MODELS]

A Valkey, a jobs worker that has counted the votes, and a web app run as processes. Of several times the median, and beside
it the worst:

- server: from a request until the whole answer, by a client in this process: the first one of a board that the web app has
  not decoded yet, the same again, and to an open page whose numbers are still right (304);
- open: from the navigation until the first contentful paint, until the whole page is there with its rows (the load event),
  and until the last of its figures is drawn, by the browser's own clocks; each time in a context of its own;
- what of it travels, compressed.

What other programs take from the cores counts against it, so the load of the machine is printed.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import aiohttp
from playwright.async_api import Browser, async_playwright

from broker import embedded, leaderboard
from broker.config import Config
from broker.connection import Broker
from tests.benchmarks.leaderboard import SHOWN, fill, random, until
from tests.fleet_process import wait_for_port, web, worker
from tests.webpage import CHROMIUM, FLAGS

ASKED, OPENED = 15, 15
FIGURES = 5
DRAWN = """async (figures) => {
    while (document.querySelectorAll(".figure-plot > *:first-child").length < figures) await new Promise(requestAnimationFrame);
    const [navigation] = performance.getEntriesByType("navigation");
    const [paint] = performance.getEntriesByName("first-contentful-paint");
    return [paint.startTime, navigation.loadEventEnd, performance.now()];
}"""


def told(what: str, times: list[float]) -> None:
    print(f"{what:38} {statistics.median(times):6.0f} ms, at most {max(times):.0f}", flush=True)


async def served(broker: Broker, page: str) -> None:
    first, again, right = [], [], []
    async with aiohttp.ClientSession() as session:

        async def get(**headers: str) -> tuple[float, str, int]:
            begun = time.perf_counter()
            async with session.get(
                page, headers={"Accept-Encoding": "gzip", **headers}, auto_decompress=False
            ) as answer:
                size = len(await answer.read())
            return 1000 * (time.perf_counter() - begun), answer.headers["ETag"], size

        for i in range(ASKED):
            board = await leaderboard.load(broker, SHOWN[0])
            assert board is not None
            await leaderboard.save(broker, {SHOWN[0].field: board | {"updated": board["updated"] + i + 1}})
            taken, tag, size = await get()
            first.append(taken)
            again.append((await get())[0])
            right.append((await get(**{"If-None-Match": tag}))[0])
    print(f"{size / 1000:.0f} KB of HTML, compressed")
    told("server, board not decoded yet", first)
    told("server, again", again)
    told("server, numbers still right (304)", right)


async def opened(browser: Browser, page: str) -> None:
    times: list[list[float]] = []
    for _ in range(OPENED):
        context = await browser.new_context(viewport={"width": 1280, "height": 800})
        tab = await context.new_page()
        await tab.goto(page)
        times.append(await tab.evaluate(DRAWN, FIGURES))
        rows = await tab.locator("tbody tr[data-name]").count()
        await context.close()
    print(f"{rows} rows")
    for what, found in zip(("first paint", "load", "last figure"), zip(*times, strict=True), strict=True):
        told(f"Chromium, {what}", list(found))


async def measure(url: str, folder: Path, votes: int, models: int) -> None:
    port = embedded.free_port()
    page = f"http://127.0.0.1:{port}/leaderboard"
    async with Broker.open(Config.from_env({"REDIS_URL": url})) as broker:
        await fill(broker, votes, models, random.Random(0))
        with worker(url, folder, role="jobs"):
            for request in SHOWN:
                await until(broker, request, 1)
        with web(url, folder, port):
            await asyncio.to_thread(wait_for_port, port)
            print(f"{votes} votes on {models} models; the machine's load is {os.getloadavg()[0]:.1f}")
            await served(broker, page)
            async with async_playwright() as playwright:
                browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
                await opened(browser, page)
                await browser.close()


def main() -> None:
    votes = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    models = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    with tempfile.TemporaryDirectory() as name:
        with embedded.running(Path(name)) as (url, _):
            asyncio.run(measure(url, Path(name), votes, models))


if __name__ == "__main__":
    main()
