"""How fast the page is for somebody with a slow machine: Chromium with its processor slowed 4 times.

    python tests/benchmarks/page.py [FIGURE]... [--times N]       figures: load open keys stream memory; default: all

A web app, an echo worker and a Valkey run as processes. One table says what each figure is and what is asked of it; of
several times the median, and beside it the worst. What other programs take from the cores counts against the page, so the
load of the machine is printed.

- load: first contentful paint of a new chat, by the Paint Timing API, nothing cached. What is loaded before the first
  interaction, headers and all, counted by a relay between browser and web app, which also sees what the service worker
  fetches; fonts by the Resource Timing API.
- open: a click on a chat of 500 turns (as many questions and answers) in the sidebar, until its last answer has been
  painted: from the click's own timestamp to the first task behind the animation frame after the answer's Markdown was
  there. In a page that was just loaded and knows no Markdown yet; the mouse jumps there and clicks at once.
- keys: each key's duration by the Event Timing API (from the key press to the next paint, in steps of 8 ms; shorter
  than 16 ms is not reported and counts as 16), typed in a chat of 500 turns while an answer is being written in it.
- stream: 60 tokens a second of Markdown with code, for a minute, from its first seconds on until the answer is complete:
  longest task by the Long Tasks API, share of the time in which the main thread had a task (CDP Performance.getMetrics,
  TaskDuration, by the wall's clock, slowed as it is), and layout shift by the Layout Instability API, the sum of all.
- memory: a chat of 500 turns after it was scrolled from its end to its first message and back: what the page's process
  has for itself (Private_Dirty in /proc, all of the browser's own parts included) and its JavaScript heap, both after a
  garbage collection.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from playwright.async_api import Browser, CDPSession, Page, async_playwright, expect

from broker import embedded, transcripts
from broker.config import Config
from broker.connection import Broker
from broker.imports import Imported
from tests.fleet_process import until_ready, wait_for_port, web, worker
from tests.webpage import CHROMIUM, FLAGS

SLOWER = 4  # times
LOADS, OPENINGS = 7, 7
TURNS = 500
PROMPT_BYTES = 2_000_000  # more than that chat
KEYS = 200
KEY_SECONDS = 0.08  # between two keys: a fast typist
TOKENS_PER_SECOND, STREAM_SECONDS = 60, 60
QUIET_SECONDS = 1.5  # after which a page has loaded what it loads by itself
LONGEST_SECONDS = 300  # of one figure
MB = 1e6

SECTION = """## Part {i}: queues and workers

A queue holds what *waits*, and a worker takes from it **as soon as** it has a place; see `claim()` and the
[documentation](https://example.org/queues). Nothing is lost: what a worker leaves behind goes to the next one, with
what it had already written.

1. The question comes in and is checked.
2. It waits, {i} of 32 places being taken.
   - a fair share for everybody
   - first come, first served otherwise
3. A worker answers.

```python
def claim(queue, places, lease=4.0):
    \"\"\"Take as many jobs as there are places.\"\"\"
    taken = []
    for job in queue.waiting(limit=places):
        if job.expired():  # nobody waits for it any more
            continue
        taken.append(job.lease(lease, token=f"worker-{i}"))
    return taken
```

> What is measured is known; what is *not* measured is believed.

| queue | waiting | running | seconds |
|-------|--------:|--------:|---------|
| small | {i} | 4 | 0.3 |
| a much longer name than before | 17 | 32 | 12.75 |
| large | 1 | 2 | about a minute, sometimes more |

"""

WATCH = """
  globalThis.seen = { tasks: [], shifts: [], keys: [] };
  const watch = (type, options, take) => new PerformanceObserver((list) => list.getEntries().forEach(take)).observe({ type, ...options });
  watch("longtask", {}, ({ duration }) => seen.tasks.push(duration));
  watch("layout-shift", {}, ({ value, sources }) => seen.shifts.push([value, sources.map(({ node }) => node?.nodeName)]));
  watch("event", { durationThreshold: 16 }, ({ name, duration }) => name === "keydown" && seen.keys.push(duration));
"""

PAINTED = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
FONTS = "performance.getEntriesByType('resource').filter(({ name }) => /[.](woff2?|ttf|otf)$/.test(name)).length"

ENDED = """new Promise((resolve) => {
  const answer = document.querySelector(".turn.answer");
  new MutationObserver(() => answer.matches(".done") && resolve()).observe(answer, { attributeFilter: ["class"] });
})"""

SCROLLED = """async (count) => {
  const scroller = document.querySelector(".scroller");
  while (document.querySelectorAll(".turn").length < count) {
    scroller.scrollTop = 0;
    await new Promise(requestAnimationFrame);
  }
  scroller.scrollTop = scroller.scrollHeight;
}"""

OPENED = """
  globalThis.opened = new Promise((resolve) => {
    let begun = 0;
    addEventListener("click", ({ timeStamp }) => (begun = timeStamp), { capture: true, once: true });
    const observer = new MutationObserver(() => {
      if (!document.querySelector(".turn.answer.last .md > :not(.raw)")) return;
      observer.disconnect();
      requestAnimationFrame(() => {
        const painted = new MessageChannel();
        painted.port1.onmessage = () => resolve(performance.now() - begun);
        painted.port2.postMessage(null);
      });
    });
    observer.observe(document, { childList: true, subtree: true, attributes: true, attributeFilter: ["class"] });
  });
"""


@dataclass(frozen=True)
class Asked:
    """What is asked of a figure."""

    most: float
    unit: str
    digits: int = 0

    def show(self, value: float) -> str:
        return f"{value:.{self.digits}f} {self.unit}".strip()


ASKED = {
    "first contentful paint": Asked(1, "s", 2),
    "before the first interaction": Asked(95, "KB"),
    "the same in Chinese": Asked(95, "KB"),
    "fonts": Asked(0, ""),
    f"opening a chat of {TURNS} turns": Asked(400, "ms"),
    "key press to paint, p95": Asked(50, "ms"),
    "longest task": Asked(120, "ms"),
    "main thread busy": Asked(35, "%"),
    "layout shift": Asked(0, "", 2),
    f"memory of a chat of {TURNS} turns": Asked(120, "MB"),
}


class Table:
    """The figures, each as often as it was measured."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._more: dict[str, str] = {}

    def say(self, what: str, value: float, more: str = "") -> None:
        self._values.setdefault(what, []).append(value)
        self._more[what] = more

    def print(self) -> None:
        print(f"{'figure':<32} {'median':>9} {'worst':>9} {'asked':>9}  ok   of the last")
        for what, asked in ASKED.items():
            if values := self._values.get(what):
                median = statistics.median(values)
                ok = "yes" if round(median, asked.digits) <= asked.most else "NO"
                shown = " ".join(f"{asked.show(value):>9}" for value in (median, max(values), asked.most))
                print(f"{what:<32} {shown}  {ok:<4} {self._more[what]}")


class Relay:
    """A port in front of another one, which counts the bytes that come back."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.bytes = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(self._pass(reader, to), self._pass(there, writer, counted=True))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counted: bool = False) -> None:
        while data := await reader.read(65_536):
            self.bytes += len(data) * counted
            writer.write(data)
            await writer.drain()
        writer.close()


class Bench:
    """A browser before a web app at `port`."""

    def __init__(self, browser: Browser, broker: Broker, port: int, table: Table) -> None:
        self._browser, self._broker, self._port, self._table = browser, broker, port, table

    @asynccontextmanager
    async def visit(
        self, *scripts: str, port: int = 0, chat: bool = False, locale: str = "en-GB"
    ) -> AsyncIterator[tuple[Page, CDPSession]]:
        """Somebody new on a slow machine, with a chat of 500 turns if it is wanted; the page is loaded."""
        base = f"http://127.0.0.1:{port or self._port}"
        context = await self._browser.new_context(viewport={"width": 1280, "height": 800}, locale=locale)
        page = await context.new_page()
        if chat:
            await context.request.get(base)
            (cookie,) = await context.cookies()
            await transcripts.store(self._broker, cookie["value"].partition(".")[0], [long_chat()])
        for script in scripts:
            await page.add_init_script(f"{{{script}}}")
        cdp = await context.new_cdp_session(page)
        await cdp.send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
        await cdp.send("Performance.enable")
        await page.goto(base)
        await expect(page.locator("#picker-name")).to_have_text("echo")
        yield page, cdp
        await context.close()

    async def load(self) -> None:
        for _ in range(LOADS):
            for locale, what in ("en-GB", "before the first interaction"), ("zh-TW", "the same in Chinese"):
                relay = Relay(self._port)
                async with relay.listening() as port, self.visit(port=port, locale=locale) as (page, _):
                    await asyncio.sleep(QUIET_SECONDS)
                    self._table.say("first contentful paint", await page.evaluate(PAINTED) / 1000)
                    self._table.say(what, relay.bytes / 1000)
                    self._table.say("fonts", await page.evaluate(FONTS))

    async def open(self) -> None:
        for _ in range(OPENINGS):
            async with self.visit(OPENED, chat=True) as (page, _):
                await page.locator(".side-item a").click()
                time = await page.evaluate("opened")
                await page.locator("#side-new").click()
                await page.evaluate(f"() => {{{OPENED}}}")
                await page.locator(".side-item a").click()
                again = await page.evaluate("opened")
            self._table.say(f"opening a chat of {TURNS} turns", time, f"opened again {again:.0f} ms")

    async def keys(self) -> None:
        async with self.visit(WATCH, chat=True) as (page, cdp):
            await open_chat(page)
            await self._begin(page, cdp, int(2 * KEYS * KEY_SECONDS) + 5)
            for i in range(KEYS):
                await page.keyboard.press("abcdefgh "[i % 9])
                await asyncio.sleep(KEY_SECONDS)
            await expect(page.locator("#stop")).to_be_visible()
            seen = await page.evaluate("new Promise(requestAnimationFrame).then(() => seen.keys)")
        durations = sorted(seen + [16] * (KEYS - len(seen)))[-KEYS:]
        more = f"p50 {durations[KEYS // 2]:.0f} ms, longest {durations[-1]:.0f} ms"
        self._table.say("key press to paint, p95", durations[int(0.95 * KEYS)], more)

    async def stream(self) -> None:
        async with self.visit(WATCH) as (page, cdp):
            await self._begin(page, cdp, STREAM_SECONDS)
            before = await metrics(cdp)
            await page.evaluate(ENDED)  # asking again and again would be work for the page
            after = await metrics(cdp)
            seen = await page.evaluate("seen")
        seconds = after["Timestamp"] - before["Timestamp"]
        share = {k: 100 * (after[k] - before[k]) / seconds for k in after if k.endswith("Duration")}
        parts = ("ScriptDuration", "LayoutDuration", "RecalcStyleDuration")
        more = ", ".join(f"{name.removesuffix('Duration')} {share[name]:.0f}" for name in parts)
        self._table.say("longest task", max(seen["tasks"], default=0), f"{len(seen['tasks'])} over 50 ms")
        self._table.say("main thread busy", share["TaskDuration"], f"{more}; for {seconds:.0f} s")
        moved = sorted({str(nodes) for _, nodes in seen["shifts"]})
        self._table.say("layout shift", sum(value for value, _ in seen["shifts"]), " ".join(moved))

    async def _begin(self, page: Page, cdp: CDPSession, seconds: int) -> None:
        """An answer is being written, and what it took to ask for it is over and forgotten."""
        await asyncio.sleep(QUIET_SECONDS)
        await cdp.send("Emulation.setCPUThrottlingRate", {"rate": 1})  # such a long message is the benchmark's own
        await page.locator("#prompt").fill(streamed(seconds * TOKENS_PER_SECOND))
        await page.locator("#prompt").press("Enter")
        await expect(page.locator(".turn.answer.growing .md > p")).to_be_visible()
        await cdp.send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
        await asyncio.sleep(QUIET_SECONDS)
        await page.evaluate(
            "new Promise(requestAnimationFrame).then(() => Object.assign(seen, { tasks: [], shifts: [], keys: [] }))"
        )

    async def memory(self) -> None:
        async with self.visit(chat=True) as (page, cdp):
            await open_chat(page)
            opened = await self._memory(cdp)
            await page.evaluate(f"({SCROLLED})({2 * TURNS})")
            private, heap = await self._memory(cdp)
        more = f"JavaScript {heap:.0f} MB; when just opened {opened[0]:.0f} and {opened[1]:.0f} MB"
        self._table.say(f"memory of a chat of {TURNS} turns", private, more)

    async def _memory(self, cdp: CDPSession) -> tuple[float, float]:
        """MB of the page's process, and of its JavaScript heap."""
        for _ in range(3):
            await cdp.send("HeapProfiler.collectGarbage")
            await asyncio.sleep(QUIET_SECONDS)
        whole = await self._browser.new_browser_cdp_session()
        processes = (await whole.send("SystemInfo.getProcessInfo"))["processInfo"]
        private = max(private_mb(one["id"]) for one in processes if one["type"] == "renderer")
        return private, (await metrics(cdp))["JSHeapUsedSize"] / MB


async def metrics(cdp: CDPSession) -> dict[str, float]:
    """What the browser has counted of the page so far."""
    return {one["name"]: one["value"] for one in (await cdp.send("Performance.getMetrics"))["metrics"]}


async def open_chat(page: Page) -> None:
    await page.locator(".side-item a").click()
    await expect(page.locator(".turn.answer.last .md > *").first).to_be_visible()


def streamed(words: int) -> str:
    """What makes an echo write so many words of Markdown at the pace that is asked for."""
    text, i = "", 0
    while len(text.split()) < words:
        text, i = text + SECTION.replace("{i}", str(i + 1)), i + 1
    return f"/echo {1000 / TOKENS_PER_SECOND:.2f}ms\n{text}"


def long_chat() -> Imported:
    """500 questions and their answers."""
    messages: dict[str, dict[str, Any]] = {}
    parent = ""
    for i in range(TURNS):
        for role, text in (("user", f"What about part {i}?"), ("assistant", SECTION.replace("{i}", str(i)))):
            at = f"{role}{i}"
            parts = [{"kind": "text", "text": text}]
            messages[at] = {"role": role, "parent": parent, "created": len(messages), "parts": parts, "model": "echo"}
            parent = at
    return Imported("A long talk", 1, 1, parent, messages)


def private_mb(pid: int) -> float:
    """Memory that a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) * 1024 / MB


async def measure(url: str, port: int, figures: list[str], times: int) -> None:
    table = Table()
    await until_ready(f"http://127.0.0.1:{port}")
    async with async_playwright() as playwright, Broker.open(Config.from_env({"REDIS_URL": url})) as broker:
        for figure in figures * times:
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            async with asyncio.timeout(LONGEST_SECONDS):
                await getattr(Bench(browser, broker, port, table), figure)()
            print(f"{figure}: measured at a load of {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
            await browser.close()
    table.print()


def main() -> None:
    names = ["load", "open", "keys", "stream", "memory"]
    parser = argparse.ArgumentParser()
    parser.add_argument("figures", metavar="FIGURE", nargs="*", choices=[*names, []], help=", ".join(names))
    parser.add_argument("--times", metavar="N", type=int, default=1, help="measure each N times")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), embedded.free_port()
        with (
            embedded.running(folder) as (url, _),
            worker(url, folder),
            web(url, folder, port, prompt_bytes=PROMPT_BYTES),
        ):
            wait_for_port(port)
            asyncio.run(measure(url, port, asked.figures or names, asked.times))


if __name__ == "__main__":
    main()
