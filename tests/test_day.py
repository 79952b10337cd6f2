"""A day's use in less than three minutes: what the site can do, used by two people while workers are killed under them.

One speaks English, the other 繁體中文; both follow the same script on one fleet of real processes, each with a browser of
their own. Whenever one of them asks, a worker dies, if the one that died before it has been replaced. Each keeps a
record of what was asked and answered, and in the evening all of it has to be there. No console may say a word.
"""

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from itertools import cycle
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.async_api import Browser, BrowserContext, Locator, Page, expect

from broker import embedded, keys, registry
from broker.connection import Broker
from fleet_process import environment, wait_for_port, web, worker
from helpers import eventually
from webapp.languages import LANGUAGES
from webpage import Visitor, console

pytestmark = pytest.mark.timeout(420)  # a minute on two free cores

PATIENCE_MS = 60_000  # for an answer whose worker died: the lease, and a busy machine
LEASE = 3  # seconds
NAMES = ("pocket", "echo")
MODELS = """
[models.pocket]
source = "pocket"
description = "Small, and in the box"
licence = "Apache 2.0"
defaults = { temperature = 0.2 }

[models.echo]
source = "echo"
description = "Says it again"
"""
SUMS = {"en": "What is 12 plus 7?", "zh-Hant": "12 加 7 等於多少？"}
ALL_OF_MARKDOWN = r"""# A heading

| a | b |
|---|---|
| 1 | 2 |

- [x] done
- [ ] to do

A note[^1], and $\sqrt{2}$ or \(x^2\), and

$$
\frac{1}{2}
$$

```python
def f(x):
    return x
```

```mermaid
graph TD
  A[Start] --> B[End]
```

![a box](https://pictures.example/box.svg)

[^1]: Of it.
"""
PICTURE = '<svg xmlns="http://www.w3.org/2000/svg" width="30" height="20"><rect width="30" height="20"/></svg>'
TREE = [
    {"message_id": "q", "role": "user", "parent": "", "created": 1, "parts": [{"kind": "text", "text": "Why?"}]},
    {
        "message_id": "a", "role": "assistant", "parent": "q", "created": 2, "model": "echo", "reason": "stop",
        "timings": {"first": 0.1, "total": 20.0, "reasoning": 12.2},
        "parts": [
            {"kind": "reasoning", "text": "Let me see."},
            {"kind": "tool", "name": "find", "text": '{"x": 1}'},
            {"kind": "text", "text": "Because."},
        ],
    },
]  # fmt: skip
OURS = {"fleetchat": 1, "title": "With thoughts", "created": 1, "updated": 1, "leaf": "a", "tags": [], "tree": TREE}
FASTCHAT = {
    "tstamp": 1.0, "type": "chat", "model": "vicuna",
    "state": {"template_name": "x", "roles": ["U", "A"], "messages": [["U", "From FastChat"], ["A", "Yes."]], "offset": 0},
}  # fmt: skip
CHATGPT = [
    {
        "title": "From ChatGPT", "create_time": 1.0, "update_time": 1.0, "current_node": "2",
        "mapping": {
            "1": {"id": "1", "parent": None, "children": ["2"], "message": {"author": {"role": "user"}, "create_time": 1.0, "content": {"content_type": "text", "parts": ["Hello?"]}}},
            "2": {"id": "2", "parent": "1", "children": [], "message": {"author": {"role": "assistant"}, "create_time": 2.0, "content": {"content_type": "text", "parts": ["Hello."]}}},
        },
    }
]  # fmt: skip


class Fleet:
    """A web app and two workers for each model, of which one at a time is away."""

    def __init__(self, broker: Broker, url: str, folder: Path, stack: AsyncExitStack) -> None:
        self.broker, self.redis_url, self.folder = broker, url, folder
        self.port = embedded.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.killed = 0
        self._stack = stack
        self._processes = {(model, i): self._start(model, i) for model in NAMES for i in range(2)}
        self._turns = cycle(range(2))
        self._away: dict[str, asyncio.Task[None]] = {}
        stack.enter_context(web(url, folder, self.port, lease_seconds=LEASE))

    async def complete(self) -> None:
        """Until all workers are ready."""
        for model in NAMES:
            await eventually(partial(self._there, model, 2), 90)
        await asyncio.to_thread(wait_for_port, self.port)

    def strike(self) -> None:
        """Kill a worker of each model of which none is away already: every second one without a warning."""
        for model in NAMES:
            if model not in self._away or self._away[model].done():
                self._away[model] = asyncio.create_task(self._replace(model, next(self._turns)))

    async def peace(self) -> None:
        """Nobody is killed any more, and nobody waited for."""
        for task in self._away.values():
            task.cancel()
        for ended in await asyncio.gather(*self._away.values(), return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended

    async def _replace(self, model: str, i: int) -> None:
        process = self._processes[model, i]
        process.send_signal(signal.SIGTERM if self.killed % 2 else signal.SIGKILL)
        self.killed += 1
        await asyncio.to_thread(process.wait)
        await eventually(partial(self._there, model, 1), 30)
        self._processes[model, i] = self._start(model, i)
        await eventually(partial(self._there, model, 2), 90)

    def _start(self, model: str, i: int) -> subprocess.Popen[bytes]:
        place = self.folder / f"{model}-{i}"
        place.mkdir(exist_ok=True)
        settings = {"models_file": self.folder / "models.toml", "lease_seconds": LEASE, "drain_seconds": 0.5}
        return self._stack.enter_context(worker(self.redis_url, place, model, **settings))

    async def _there(self, model: str, count: int) -> bool:
        """Whether so many workers of the model are ready."""
        ready = [w for w in await registry.workers(self.broker) if w.models == [model] and w.fields["state"] == "ready"]
        return len(ready) == count


class Person(Visitor):
    """Somebody who speaks one language, and remembers what was said."""

    def __init__(self, fleet: Fleet, tag: str, context: BrowserContext, tab: Page, clipboard: asyncio.Lock) -> None:
        super().__init__(fleet.url, tab)
        self.fleet, self.tag, self.context, self.clipboard = fleet, tag, context, clipboard
        self.catalogue = next(one for one in LANGUAGES if one.tag == tag).read()
        self.record: dict[str, str] = {}  # the answer to each question
        self.said = console(tab)
        context.on("page", lambda page: setattr(page, "said", console(page)) or self.others.append(page))
        self.others: list[Page] = []

    def say(self, sentence: str, **values: object) -> str:
        """A sentence of the page's in this person's language."""
        found = self.catalogue.get(sentence)
        return ((found and found.string) or sentence).format(**values)

    def button(self, name: str, within: Locator | None = None, **values: object) -> Locator:
        return (within or self.tab).get_by_role("button", name=self.say(name, **values), exact=True)

    async def press(self, button: Locator) -> None:
        """By keyboard, so that it need not be hovered first."""
        await button.focus()
        await button.press("Enter")

    async def choose(self, opener: Locator, *path: str, **values: object) -> None:
        """Open a menu and go through it."""
        await opener.click()
        for name in path:
            await self.tab.get_by_role("menuitem", name=self.say(name, **values), exact=True).click()

    @property
    def question(self) -> Locator:
        return self.tab.locator(".turn.question").last

    @property
    def turn(self) -> Locator:
        return self.tab.locator(".turn.answer").last

    async def fresh(self, model: str, text: str = "") -> None:
        """A new chat with a model, and a text that waits to be sent."""
        await self.tab.goto(f"{self.url}/?model={model}" + (f"&q={quote(text)}" if text else ""))
        await expect(self.tab.locator("#picker-name")).to_have_text(model)

    async def converse(self, text: str, expected: str | re.Pattern[str]) -> None:
        """Ask while a worker dies, and see the whole answer."""
        await self.ask(text)
        self.fleet.strike()
        await expect(self.answer).to_have_text(expected, timeout=PATIENCE_MS)
        await self.ended()
        self.record[text] = await self.answer.inner_text()

    async def ended(self) -> None:
        await expect(self.turn).to_have_class(re.compile("done"), timeout=PATIENCE_MS)
        await expect(self.tab.locator("#stop")).to_be_hidden()

    def row(self, title: str) -> Locator:
        return self.tab.locator("#conversations .side-item", has_text=title)

    async def menu(self, title: str, *path: str) -> None:
        await self.choose(self.row(title).locator(".side-menu"), *path)

    async def versions(self, turn: Locator, shown: str) -> None:
        await expect(turn.locator(".versions-shown:visible")).to_have_text(shown, timeout=PATIENCE_MS)


async def morning(me: Person) -> None:
    """The first question, as the browser's language has it; a title, figures, and how much of the context is used."""
    await me.tab.goto(me.url)
    await expect(me.tab.locator("#picker-name")).to_have_text("pocket")
    await expect(me.tab.locator("html")).to_have_attribute("lang", me.tag)
    await expect(me.tab.locator("#side-new")).to_have_text(me.say("New chat"))
    await me.converse(SUMS[me.tag], re.compile("19"))
    await expect(me.turn.locator(".facts")).to_contain_text("pocket ·")
    await expect(me.tab.locator("#conversations h2:visible").first).to_have_text(me.say("Today"))
    await expect(me.tab.locator("#conversations .side-item")).to_have_count(1)
    context = me.say("Context: {words}", words="").strip()
    await expect(me.tab.locator("#gauge")).to_have_attribute("aria-label", re.compile(rf"^{context}.*\d"))


async def versions(me: Person) -> None:
    """Edited, written again, by another model; arrows between what there is."""
    await me.fresh("echo")
    await me.converse("one", "one")
    await me.press(me.button("Edit this message", me.question))
    await me.question.locator("textarea").fill("two")
    await me.tab.keyboard.press("Control+Enter")
    await expect(me.answer).to_have_text("two", timeout=PATIENCE_MS)
    await me.ended()
    me.record["two"] = "two"
    await me.versions(me.question, "2 / 2")
    await me.press(me.button("Version before", me.question))
    await expect(me.answer).to_have_text("one")
    await me.press(me.button("Write the answer again", me.turn))
    await me.versions(me.turn, "2 / 2")
    await me.ended()
    await me.choose(me.button("More", me.turn), "Write again with {model}", model="pocket")
    await me.versions(me.turn, "3 / 3")
    await me.ended()
    await expect(me.turn.locator(".facts")).to_contain_text("pocket ·")


async def stopping(me: Person) -> None:
    """Stopped, and continued to the end."""
    await me.fresh("echo")
    await me.ask("/echo 120 30ms")
    await expect(me.answer).to_contain_text("5")
    await me.tab.locator("#stop").click()
    await expect(me.turn.locator(".mark")).to_have_text(me.say("Stopped"))
    await me.button("Continue", me.turn).click()
    me.fleet.strike()
    await expect(me.answer).to_contain_text("120", timeout=PATIENCE_MS)
    await me.ended()
    assert await me.words() == [str(i) for i in range(1, 121)]
    me.record["/echo 120 30ms"] = await me.answer.inner_text()


async def opinions(me: Person) -> None:
    """Up, down with a note, flagged."""
    await me.fresh("echo")
    await me.converse("rate me", "rate me")
    await me.press(me.button("Good answer", me.turn))
    await me.tab.keyboard.press("Escape")
    await me.press(me.button("Flag this answer", me.turn))
    await me.tab.keyboard.press("Escape")
    down = me.button("Bad answer", me.turn)
    await me.press(down)
    await me.tab.get_by_label(me.say("Note"), exact=True).fill(f"{me.tag}: 太短")
    await me.tab.keyboard.press("Enter")
    await expect(down).to_have_attribute("aria-pressed", "true")


async def markdown(me: Person) -> None:
    """All that an answer may consist of."""
    await me.context.route("https://pictures.example/**", lambda route: route.fulfill(body=PICTURE, content_type="image/svg+xml"))  # fmt: skip
    await me.fresh("echo")
    await me.ask(ALL_OF_MARKDOWN)
    md = me.answer
    await expect(md.locator("td")).to_have_text(["1", "2"], timeout=PATIENCE_MS)
    await me.ended()
    for task in ("Done", "To do"):
        await expect(md.get_by_role("img", name=me.say(task), exact=True)).to_have_count(1)
    await expect(md.locator(".math[data-set]")).to_have_count(3)
    await expect(md.locator(".footnote")).to_contain_text("Of it.")
    code, diagram = md.locator(".code").first, md.locator(".code").last
    await expect(code.locator(".hljs-keyword").first).to_have_text("def")
    async with me.clipboard:
        await me.button("Copy", code).click()
        await expect(me.button("Copied", code)).to_be_visible()
        assert (await me.tab.evaluate("navigator.clipboard.readText()")).startswith("def f(x):")
        await me.press(me.button("Copy the answer", me.turn))
        await eventually(
            lambda: me.tab.evaluate("navigator.clipboard.readText().then((t) => t.startsWith('# A heading'))")
        )
    await me.button("Wrap", code).click()
    await me.button("Show diagram", diagram).click()
    await expect(diagram.frame_locator("iframe").locator("svg")).to_contain_text("Start", timeout=PATIENCE_MS)
    await me.tab.get_by_role("button", name=me.say("Show picture: {label} ({host})", label="a box", host="pictures.example")).click()  # fmt: skip
    await expect(md.locator("iframe.picture")).to_be_visible()
    me.record[ALL_OF_MARKDOWN] = ""


async def deleting(me: Person) -> None:
    """A message, after a question."""
    await me.fresh("echo")
    await me.converse("stays", "stays")
    await me.ask("goes")
    await me.ended()
    await me.press(me.button("Delete from here", me.question))
    await me.button("Delete", me.tab.get_by_role("dialog")).click()
    await expect(me.tab.locator(".turn.question")).to_have_count(1)


async def temporary(me: Person) -> None:
    """A chat that is stored nowhere."""
    await me.fresh("echo")
    await me.button("Temporary chat").click()
    await me.ask(f"a secret of {me.tag}")
    await expect(me.answer).to_have_text(f"a secret of {me.tag}", timeout=PATIENCE_MS)
    await me.ended()
    assert me.tab.url.endswith("/?model=echo") or me.tab.url.endswith("/")


async def models(me: Person) -> None:
    """The picker, found by a word of its description; columns, and back to one; a link that brings a question."""
    await me.tab.goto(me.url)
    await me.tab.locator("#picker").click()
    await me.tab.locator("#models-find").fill("again")
    await expect(me.tab.get_by_role("option")).to_have_count(1)
    await me.tab.keyboard.press("Enter")
    await expect(me.tab.locator("#picker-name")).to_have_text("echo")
    await me.button("Compare with another model").click()
    columns = me.tab.locator(".column")
    await expect(columns).to_have_count(2)
    await me.ask("side by side")
    me.fleet.strike()
    for i in range(2):
        await expect(columns.nth(i).locator(".turn.answer.done")).to_have_count(1, timeout=PATIENCE_MS)
    await me.button("Keep this one", columns.first).click()
    await expect(columns).to_have_count(1)
    await expect(me.answer).to_have_text("side by side")
    me.record["side by side"] = "side by side"
    await me.fresh("echo", "by link")
    await expect(me.tab.locator("#prompt")).to_have_value("by link")
    await me.tab.locator("#prompt").press("Enter")
    await me.ended()
    me.record["by link"] = "by link"


async def settings(me: Person) -> None:
    """Sliders, a system prompt, a preset, and a model's defaults: the models file's, and one's own."""
    await me.fresh("pocket")
    panel = me.tab.get_by_role("dialog", name=me.say("Answer settings"), exact=True)
    heat = panel.get_by_role("spinbutton", name=me.say("Temperature"))
    await me.tab.locator("#settings-open").click()
    await expect(heat).to_have_value("0.2")
    await panel.locator("input[type=range]").first.fill("1.3")
    await panel.get_by_label(me.say("System prompt")).fill("Be brief.")
    await panel.locator(".settings-more summary").click()
    await panel.get_by_role("spinbutton", name=me.say("Seed")).fill("7")
    await me.button("Use these for {model} from now on", panel, model="pocket").click()
    await me.button("Done", panel).click()
    await me.choose(me.tab.locator("#presets-open"), "Save these settings…")
    dialog = me.tab.get_by_role("dialog", name=me.say("Presets"))
    await dialog.get_by_role("textbox").fill("簡短 brief")
    await me.tab.keyboard.press("Enter")
    await expect(dialog.locator(".preset-name")).to_have_text("簡短 brief")
    await me.button("Done", dialog).click()
    await me.fresh("echo")
    await me.tab.locator("#presets-open").press("Enter")
    await me.tab.get_by_role("menuitem", name="簡短 brief").press("Enter")
    await expect(me.tab.locator("#system-set")).to_have_attribute("title", "Be brief.")
    await me.converse("with a preset", "with a preset")


async def files(me: Person) -> None:
    """By button, by drop and by paste."""
    await me.fresh("echo")
    await me.tab.locator("#files").set_input_files([{"name": "a.py", "mimeType": "text/plain", "buffer": b"a = 1\n"}])
    for how in ("drop", "paste"):
        await me.tab.evaluate(GIVE, how)
    await expect(me.tab.locator("#chips .chip")).to_have_count(3)
    await me.ask("What is this?")
    await me.ended()
    await expect(me.answer).to_contain_text("a = 1")
    await expect(me.question.locator(".file")).to_have_count(3)


GIVE = """(how) => {
    const data = new DataTransfer();
    data.items.add(new File(["words"], `${how}.txt`));
    const options = { bubbles: true, cancelable: true, [how === "paste" ? "clipboardData" : "dataTransfer"]: data };
    const event = how === "paste" ? new ClipboardEvent(how, options) : new DragEvent(how, options);
    (how === "paste" ? document.getElementById("prompt") : document.body).dispatchEvent(event);
}"""


async def two_tabs(me: Person) -> None:
    """The same stream in both; and it goes on when all tabs are closed."""
    await me.fresh("echo")
    text = f"/echo 200 20ms {me.tag}"
    await me.ask(text)
    await expect(me.answer).to_contain_text("5")
    address = me.tab.url
    other = await me.context.new_page()
    await other.goto(address)
    await expect(other.locator(".turn.answer .md")).to_contain_text("20", timeout=PATIENCE_MS)
    await other.close()
    await me.tab.goto("about:blank")
    me.fleet.strike()
    await me.tab.goto(address)
    await expect(me.answer).to_contain_text("200", timeout=PATIENCE_MS)
    await me.ended()
    assert await me.words() == [str(i) for i in range(1, 201)]
    me.record[text] = await me.answer.inner_text()


async def shelf(me: Person) -> None:
    """Renamed, pinned, tagged, archived and found again, deleted and brought back."""
    await me.fresh("echo")
    await me.converse("bread with a NEEDLE in it", "bread with a NEEDLE in it")
    await me.menu("bread", "Rename")
    await me.tab.get_by_label(me.say("New name")).fill("麵包 bread")
    await me.tab.keyboard.press("Enter")
    await me.menu("麵包", "Pin")
    await expect(me.tab.locator("#conversations h2:visible").first).to_have_text(me.say("Pinned"))
    await me.menu("麵包", "Tags…")
    await me.tab.get_by_role("dialog").get_by_label(me.say("New tag")).fill("烘焙")
    await me.tab.keyboard.press("Enter")
    await me.button("Done", me.tab.get_by_role("dialog")).click()
    chip = me.tab.locator("#tags").get_by_role("button", name="烘焙")
    await chip.click()
    await expect(me.tab.locator("#conversations .side-item")).to_have_count(1)
    await chip.click()
    await expect(me.tab.locator("#conversations .side-item").nth(1)).to_be_visible()
    await me.menu("麵包", "Archive")
    await expect(me.row("麵包")).to_have_count(0)
    await me.choose(me.tab.locator("#data"), "Archive")
    await me.menu("麵包", "Take out of the archive")
    await me.tab.locator("#where-back").click()
    await me.tab.keyboard.press("Control+k")
    await me.tab.locator("#search").press_sequentially("needle")
    await expect(me.tab.locator("#found [role=option] mark").first).to_have_text("NEEDLE")
    await me.tab.locator("#search").press("Escape")
    await me.menu("麵包", "Delete")
    await expect(me.row("麵包")).to_have_count(0)
    gone = me.tab.locator(".toast", has_text=me.say("Deleted: {title}", title="麵包 bread"))
    await me.button("Undo", gone).click()
    await expect(me.row("麵包")).to_have_count(1)


async def sharing(me: Person) -> None:
    """A link, read by a stranger and revoked; on paper; out as Markdown and as JSON."""
    await me.menu("麵包", "Share…")
    dialog = me.tab.get_by_role("dialog")
    await me.button("Make a link", dialog).click()
    address = await dialog.get_by_role("textbox").input_value()
    await me.button("Done", dialog).click()
    stranger = await me.context.browser.new_context(locale=me.tag)
    page = await stranger.new_page()
    said = console(page)
    await page.goto(address)
    await expect(page.locator("h1")).to_have_text("麵包 bread")
    await expect(page.locator(".paper-turn")).to_have_count(2)
    assert said == []
    await me.choose(me.tab.locator("#data"), "Your links")
    await me.button("Revoke", dialog).click()
    await expect(dialog).to_contain_text(me.say("You have no links."))
    await me.tab.keyboard.press("Escape")
    assert (await page.reload()).status == 404
    await stranger.close()
    for form, end in (("Markdown", ".md"), ("JSON", ".json")):
        async with me.tab.expect_download() as download:
            await me.menu("麵包", "Export…", form)
        assert (await download.value).suggested_filename == f"麵包 bread{end}"
    async with me.context.expect_page() as opened:
        await me.menu("麵包", "Export…", "Print or PDF")
    paper = await opened.value
    await expect(me.button("Print", paper.locator("body"))).to_be_visible()
    await paper.close()


async def importing(me: Person) -> None:
    """Our file with thoughts and a call of a tool, FastChat's log and ChatGPT's."""
    for name, content in (("ours.json", OURS), ("chat.json", FASTCHAT), ("conversations.json", CHATGPT)):
        async with me.tab.expect_file_chooser() as chooser:
            await me.choose(me.tab.locator("#data"), "Import a file…")
        file = {"name": name, "mimeType": "application/json", "buffer": json.dumps(content).encode()}
        await (await chooser.value).set_files([file])
        await expect(me.tab.locator(".toast")).to_contain_text("1")
        await me.tab.locator(".toast .toast-close").click()
    await me.tab.locator("#conversations a", has_text="With thoughts").click()
    await expect(me.turn.locator(".thoughts summary")).to_have_text(
        me.say("Thought for {time}", time=me.say("{count} s", count=12))
    )
    await me.turn.locator(".call summary").click()
    await expect(me.turn.locator(".call pre")).to_contain_text('"x": 1')
    me.record["Why?"] = "Because."


async def looks(me: Person) -> None:
    """Themes, the sheet of keys, and the other language and back."""
    for theme in ("light", "dark", "contrast", "automatic"):
        await me.tab.locator("#theme").click()
        await expect(me.tab.locator("#theme-label")).to_have_text(me.say(f"Theme: {theme}"))
    await me.tab.locator("#picker").focus()
    await me.tab.keyboard.press("?")
    await expect(me.tab.locator("dialog.help h2")).to_have_text(me.say("Keyboard shortcuts"))
    await me.tab.keyboard.press("Escape")
    (other,) = (one for one in LANGUAGES if one.tag != me.tag)
    for tag in (other.tag, me.tag):
        await me.tab.locator(f"[data-language={tag}]").click()
        await expect(me.tab.locator("html")).to_have_attribute("lang", tag)
        await expect(me.tab.locator("#picker-dot")).to_have_attribute("data-state", "ready")
    await expect(me.tab.locator("#side-new")).to_have_text(me.say("New chat"))


async def evening(me: Person) -> None:
    """All that was asked is there, with its answers, and nothing that was to be forgotten."""
    whole = await me.tab.evaluate("fetch('/export').then((r) => r.json())")
    asked = {m["message_id"]: _text(m) for c in whole["conversations"] for m in c["tree"] if m["role"] == "user"}
    answers = [(asked[m["parent"]], m) for c in whole["conversations"] for m in c["tree"] if m["role"] == "assistant"]
    for question, answer in me.record.items():
        given = [_text(m) for q, m in answers if q == question]
        assert given, question
        assert not answer or _words(answer) in [_words(one) for one in given], question
    assert {m.get("reason", "stop") for _, m in answers} <= {"stop", "cancelled"}
    assert "secret" not in json.dumps(whole)
    assert "goes" not in asked.values()


def _text(message: dict) -> str:
    return "".join(part["text"] for part in message["parts"] if part["kind"] == "text")


def _words(text: str) -> list[str]:
    return text.split()


DAY = (
    morning, versions, stopping, opinions, markdown, deleting, temporary, models, settings, files, two_tabs, shelf,
    sharing, importing, looks, evening,
)  # fmt: skip


@pytest.fixture
async def fleet(broker: Broker, valkey: str, tmp_path: Path) -> AsyncIterator[Fleet]:
    (tmp_path / "models.toml").write_text(MODELS)
    async with AsyncExitStack() as stack:
        made = Fleet(broker, valkey, tmp_path, stack)
        await made.complete()
        yield made
        await made.peace()


async def live(fleet: Fleet, browser: Browser, tag: str, locale: str, clipboard: asyncio.Lock) -> None:
    """One person's day."""
    context = await browser.new_context(
        viewport={"width": 1280, "height": 900}, locale=locale, permissions=["clipboard-read", "clipboard-write"]
    )
    me = Person(fleet, tag, context, await context.new_page(), clipboard)
    for part in DAY:
        try:
            await part(me)
        except Exception as e:
            e.add_note(f"in the {part.__name__} of {tag}")
            raise
    await context.close()
    assert me.said + [line for page in me.others for line in page.said] == []


async def test_a_day_of_two_people_while_workers_die(fleet, chromium, broker):
    clipboard = asyncio.Lock()  # a browser has one
    async with asyncio.TaskGroup() as people:
        for tag, locale in (("en", "en-GB"), ("zh-Hant", "zh-TW")):
            people.create_task(live(fleet, chromium, tag, locale, clipboard))
    command = [str(Path(sys.executable).with_name("fleetchat")), "chat", "echo", "--plain"]
    env = environment(fleet.redis_url)
    terminal = await asyncio.create_subprocess_exec(*command, env=env, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)  # fmt: skip
    said, _ = await terminal.communicate("good night 晚安".encode())
    assert said.decode().split() == ["good", "night", "晚安"]
    assert fleet.killed >= 4
    notes = [entry[b"note"].decode() for _, entry in await broker.redis.xrange(keys.RATINGS)]
    assert {"en: 太短", "zh-Hant: 太短"} <= set(notes)
