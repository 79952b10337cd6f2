"""What stands behind the screenshots: a fleet of real processes, some models that are played, and people who look at it.

A `Stage` is a web app with a worker for pocket and for each of three echoes that the models file describes, one for jobs,
and votes on models of which most are gone. A `Visit`
is somebody with a browser, a shelf of conversations and one tab.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, async_playwright, expect

from broker import arena, embedded, keys, leaderboard, queues, registry, shelf, streams, transcripts
from broker.arena import Voter
from broker.config import Config
from broker.connection import Broker
from broker.imports import Imported
from broker.leaderboard import BoardRequest
from broker.messages import Frame, ModelCard, new_id, pack
from broker.queues import Claim
from broker.rules import Rules
from broker.streams import Written
from broker.tasks import beside
from fleet_process import environment, wait_for_port, web, worker
from helpers import eventually, request
from leagues import season
from screenshots import talks
from webpage import CHROMIUM, FLAGS, Visitor, console, ready

MODELS = """
[models.pocket]
source = "pocket"
description = "A small demo model that comes with FleetChat"
licence = "Apache 2.0"

[models.large]
source = "echo"
description = "Knows much and takes its time: for long texts and hard questions"
licence = "MIT"
organisation = "Harbour Lab"
link = "https://models.example/large"

[models.coder]
source = "echo"
description = "Writes and reviews code in forty languages"
licence = "Apache 2.0"
organisation = "Harbour Lab"

[models.quick]
source = "echo"
description = "Short answers at once"
organisation = "Lighthouse"
defaults = { temperature = 0.3, system = "Answer in one sentence." }
"""
NAMES = ("pocket", "large", "coder", "quick")
WAITS = "patient"  # the played model that answers when a state says so
PLAYED = (
    (
        "player",
        ModelCard(WAITS, state="ready", rank=9, context=32_768, description="Has one place, and others want it, too"),
    ),
    (
        "loader",
        ModelCard("giant", state="loading", rank=9, progress=42, description="Four hundred billion parameters."),
    ),
    ("wreck", ModelCard("broken", state="failed", why="The folder has no tokenizer.json.")),
)
LEASE = 60  # seconds; a played answer stands still while it is looked at
UNFINISHED = '.md .math:not([data-set]), .md code[data-language="python"]:not([data-coloured="whole"])'
PHONE = 600  # pixels; narrower windows are phones: they are touched, and nothing hovers


class Visit(Visitor):
    """Somebody who looks at the site in a window of their own."""

    def __init__(self, stage: "Stage", tab: Page, owner: str) -> None:
        super().__init__(stage.url, tab)
        self.stage, self.broker, self.owner = stage, stage.broker, owner
        self.console = console(tab)

    async def home(self, model: str = "large", path: str = "/") -> None:
        """The chat page with a model that may be asked."""
        await self.tab.goto(f"{self.url}{path}?model={model}")
        await expect(self.tab.locator("#picker-name")).to_have_text(model)
        await expect(self.tab.locator("#connection")).to_be_hidden()
        some = await self.broker.redis.exists(keys.conversations(self.owner))
        await expect(self.tab.locator("#conversations .side-item").first).to_have_count(some)

    async def store(self, *talks: Imported) -> list[str]:
        return await transcripts.store(self.broker, self.owner, talks)

    async def show(self, talk: Imported) -> str:
        """Open a conversation; gives its id."""
        (made,) = await self.store(talk)
        await self.tab.goto(f"{self.url}/c/{made}")
        await expect(self.tab.locator(".turn.answer .md").last).not_to_be_empty()
        await self.settled()
        return made

    async def shelve(self) -> list[str]:
        """Conversations of some years, two of them pinned and one archived."""
        made = await self.store(*talks.shelf())
        for one in (made[5], made[8]):
            await shelf.pin(self.broker, one, self.owner, True)
        await shelf.archive(self.broker, made[10], self.owner, True)
        return made

    async def sidebar(self) -> None:
        """On a phone it is a drawer."""
        if await self.tab.locator("#side-open").is_visible():
            await self.tab.locator("#side-open").click()
        await expect(self.tab.locator("#side-new")).to_be_in_viewport(ratio=1)

    async def listed(self) -> None:
        """Until the sidebar knows the conversation that has begun."""
        await expect(self.tab.locator("#conversations [aria-current]")).to_have_count(1)

    async def stretch(self, selector: str = ".scroller") -> None:
        """Make the window so high that all that `selector` scrolls is seen."""
        size = self.tab.viewport_size
        more = await self.tab.locator(selector).evaluate("e => e.scrollHeight - e.clientHeight")
        await self.tab.set_viewport_size(size | {"height": min(size["height"] + more + 8, 6000)})

    async def settled(self) -> None:
        """Until formulas and colours are there, which come after the text."""
        await expect(self.tab.locator(UNFINISHED)).to_have_count(0)

    async def answering(self, text: str = talks.QUESTION) -> Claim:
        """Ask the played model; gives the claim of its worker, which the caller plays."""
        await self.home(WAITS)
        await self.ask(text)
        await expect(self.tab.locator(".turn.answer")).to_have_count(1)
        await self.listed()
        return (await eventually(lambda: queues.claim(self.broker, "player", new_id(), 1, [WAITS], ())))[0]

    async def write(
        self, held: Claim, seq: int, text: str, kind: str = "text", end: dict[str, Any] | None = None
    ) -> None:
        """A frame of the answer that is played."""
        frame = Frame(held.request_id, seq, 1, text, kind, end=end)
        await streams.append(
            self.broker, [Written(held.request_id, held.token, seq, frame.encode(), last=end is not None)]
        )

    async def battle(self, kind: str, winner: str = "", *, void: bool = False) -> str:
        """A round of two turns, and perhaps its vote; of a void one the last answer has failed. Its id."""
        rules, models = Rules(), ("large", "quick")
        first = await arena.begin(self.broker, rules, self.owner, talks.QUESTION, kind=kind, models=models)
        await self._answered(first, talks.ANSWER, talks.CODE)
        more = await arena.begin(self.broker, rules, self.owner, "Shorter, please.", battle_id=first.battle_id)
        await self._answered(more, "One line for all, and each takes what it can.", "" if void else talks.THOUGHTFUL)
        if void:
            await arena.void(self.broker, first.battle_id, self.owner, "")
        if winner:
            voter = Voter.of(b"salt", self.owner, "127.0.0.1")
            await arena.vote(self.broker, rules, first.battle_id, self.owner, winner, voter)
        return first.battle_id

    async def _answered(self, started: arena.Started, *texts: str) -> None:
        usage = {"prompt_tokens": 20, "completion_tokens": 212}
        end = {"reason": "stop", "usage": usage, "timings": {"first": 0.1, "total": 4.2}}
        written = {f"{side}:{started.turn}": pack({"text": text} | end) for side, text in zip("ab", texts, strict=True)}
        await self.broker.redis.hset(keys.battle(started.battle_id), mapping=written)

    async def crowd(self, people: int, owner: str = "") -> None:
        """Others, or the visitor in other tabs, wait for the played model before whoever comes next."""
        for _ in range(people):
            asked = request("Anything else?", owner=owner or new_id(), model=WAITS)
            await queues.enqueue(self.broker, asked)

    async def leave(self) -> None:
        """Close the window; nobody waits for the played model any more."""
        await self.tab.context.close()
        redis = self.broker.redis
        for key in (keys.queue(WAITS), keys.running(WAITS)):
            for one in await redis.zrange(key, 0, -1):
                owner = await redis.hget(keys.request(one.decode()), "owner")
                await queues.cancel(self.broker, one.decode(), (owner or b"").decode())


class Stage:
    """A fleet with models of several kinds, and a second web app whose fleet has none."""

    def __init__(self, broker: Broker, browser: Browser, url: str, bare_url: str) -> None:
        self.broker, self.browser, self.url, self.bare_url = broker, browser, url, bare_url

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator["Stage"]:
        """With a browser, and a server whose second database is that of the fleet without models."""
        with tempfile.TemporaryDirectory() as data, embedded.running(Path(data)) as (redis_url, _):
            async with async_playwright() as playwright:
                browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
                async with cls._fleet(redis_url, Path(data), browser) as stage:
                    yield stage
                await browser.close()

    @classmethod
    @asynccontextmanager
    async def _fleet(cls, redis_url: str, folder: Path, browser: Browser) -> AsyncIterator["Stage"]:
        (folder / "models.toml").write_text(MODELS)
        config = Config.from_env(environment(redis_url, data=folder, lease_seconds=LEASE))
        ports = [embedded.free_port() for _ in range(2)]
        async with AsyncExitStack() as stack:
            for port, url in zip(ports, (redis_url, redis_url.removesuffix("0") + "1"), strict=True):
                stack.enter_context(web(url, folder, port))
            for name in NAMES:
                (folder / name).mkdir()
                stack.enter_context(worker(redis_url, folder / name, name, models_file=folder / "models.toml"))
            (folder / "jobs").mkdir()
            stack.enter_context(worker(redis_url, folder / "jobs", role="jobs"))
            broker = await stack.enter_async_context(Broker.open(config))
            await season(broker, talks.LEAGUE, 6000)
            await stack.enter_async_context(beside(*(_play(broker, *one) for one in PLAYED)))
            await eventually(lambda: ready(broker, *NAMES, WAITS), 60)
            await eventually(lambda: counted(broker), 60)
            for port in ports:
                await asyncio.to_thread(wait_for_port, port)
            await broker.redis.hset(keys.pace(WAITS), mapping={"seconds": "7", "first": "0.4"})
            yield cls(broker, browser, *(f"http://127.0.0.1:{port}" for port in ports))

    @asynccontextmanager
    async def visit(self, width: int, height: int, language: str = "en", **media: Any) -> AsyncIterator[Visit]:
        """Somebody new in a window of this size. `media`: what the browser prefers, as playwright names it."""
        phone = width < PHONE
        context = await self.browser.new_context(
            viewport={"width": width, "height": height}, locale=language, is_mobile=phone, has_touch=phone,
            reduced_motion="reduce", service_workers="block", **media,
        )  # fmt: skip
        await context.add_cookies([{"name": "language", "value": language, "url": self.url}])
        await context.request.get(self.url)
        (cookie,) = [c for c in await context.cookies() if c["name"].startswith("fleetchat")]
        visit = Visit(self, await context.new_page(), cookie["value"].partition(".")[0])
        try:
            yield visit
        finally:
            await visit.leave()


async def counted(broker: Broker) -> bool:
    """Whether the jobs worker has counted all votes, with and without style control."""
    boards = [await leaderboard.load(broker, BoardRequest(style=style)) for style in (False, True)]
    cast = await broker.redis.xlen(keys.VOTES)
    aside = ("late", "leaks", "over_cap", "votes_of_voters")
    return all(one and one["votes"] + sum(one["aside"][why] for why in aside) == cast for one in boards)


async def _play(broker: Broker, worker_id: str, card: ModelCard) -> None:
    """The heart of a played worker beats."""
    while True:
        await registry.beat(
            broker, worker_id, card.state, {"models": card.name, "slots": 1, "tokens_per_s": 38.2}, [card]
        )
        await asyncio.sleep(0.7)
