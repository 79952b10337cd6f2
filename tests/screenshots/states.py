"""Every page and state of the site, by name: the table behind the screenshots, and behind axe's test.

A state is a function that brings a `Visit` there, in any language and any window. `at` is one for a page that needs
nothing but its address: a new page is a line in STATES.
"""

from collections.abc import Awaitable, Callable

from playwright.async_api import expect

from broker import arena, presets, shares
from screenshots import talks
from screenshots.stage import WAITS, Visit

State = Callable[[Visit], Awaitable[None]]

DROP = """(type) => {
    const data = new DataTransfer();
    data.items.add(new File(["words"], "notes.txt"));
    document.body.dispatchEvent(new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
}"""
FILES = [
    {"name": "queue.py", "mimeType": "text/x-python", "buffer": b"class Queue:\n    ...\n" * 90},
    {"name": "notes from the meeting of Tuesday.md", "mimeType": "text/markdown", "buffer": b"- one line\n" * 20},
]


def at(path: str, shows: str = "h1") -> State:
    """A page that is there as soon as its address is opened."""

    async def state(visit: Visit) -> None:
        await visit.tab.goto(visit.url + path)
        await expect(visit.tab.locator(shows).first).to_be_visible()

    return state


async def empty(visit: Visit) -> None:
    await visit.shelve()
    await visit.home()


async def first_visit(visit: Visit) -> None:
    await visit.home("pocket")


async def no_model(visit: Visit) -> None:
    await visit.tab.goto(visit.stage.bare_url)
    await expect(visit.tab.locator("#hero-text code")).to_have_count(2)


async def loading(visit: Visit) -> None:
    await visit.home("giant")
    await expect(visit.tab.locator("#hero-progress")).to_be_visible()


async def failed(visit: Visit) -> None:
    await visit.tab.goto(f"{visit.url}/?model=broken")
    await expect(visit.tab.locator("#notice")).to_be_visible()


async def waiting(visit: Visit) -> None:
    await visit.home("giant")
    await visit.ask(talks.QUESTION)
    await expect(visit.tab.locator(".wait-text")).to_contain_text("42")
    await visit.listed()


async def streaming(visit: Visit) -> None:
    await visit.shelve()
    held = await visit.answering()
    text, _, _ = talks.ANSWER.partition("        job = await")
    await visit.write(held, 0, text)
    await expect(visit.answer.locator(".code")).to_contain_text("free.acquire")
    await expect(visit.answer.locator("code .hljs-keyword").first).to_be_visible()
    await expect(visit.answer.locator(".math[data-set]")).to_have_count(2)


async def thinking(visit: Visit) -> None:
    held = await visit.answering("Which day of the week was 1 March 2000?")
    await visit.write(held, 0, talks.REASONING[:180], "reasoning")
    await visit.tab.locator(".thoughts summary").click()
    await expect(visit.tab.locator(".thoughts-text")).to_contain_text("leap")


async def chat(visit: Visit) -> None:
    await visit.shelve()
    await visit.show(
        talks.talk("Why one slow worker makes everybody wait", talks.said(talks.QUESTION, ("text", talks.ANSWER)))
    )


async def chat_from_its_top(visit: Visit) -> None:
    await chat(visit)
    await visit.tab.locator(".scroller").evaluate("e => e.scrollTo(0, 0)")


async def whole_chat(visit: Visit) -> None:
    await chat(visit)
    await visit.stretch()


async def chinese(visit: Visit) -> None:
    await visit.shelve()
    await visit.show(talks.talk("為什麼大家都在等", talks.said(talks.CHINESE_QUESTION, ("text", talks.CHINESE))))
    await visit.stretch()


async def diagram(visit: Visit) -> None:
    await visit.show(
        talks.talk("How a question travels", talks.said("How does a question travel?", ("text", talks.DIAGRAM)))
    )
    block = visit.answer.locator(".code")
    await block.locator("[data-deed=diagram]").click()
    await expect(block.frame_locator("iframe").locator("svg")).to_contain_text("Worker", timeout=20_000)
    await expect(block.locator("pre")).to_be_hidden()


async def reasoning(visit: Visit) -> None:
    timings = {"waited": 0.1, "first": 0.4, "total": 16.0, "reasoning": 12.4}
    said = talks.said("Which day of the week was 1 March 2000?", ("reasoning", talks.REASONING), ("text", talks.THOUGHTFUL), timings=timings)  # fmt: skip
    await visit.show(talks.talk("A day of the week", said))


async def reasoning_open(visit: Visit) -> None:
    await reasoning(visit)
    await visit.tab.locator(".thoughts summary").click()


async def tools(visit: Visit) -> None:
    call = {"kind": "tool", "name": "find_ship", "text": '{"harbour": "Tainan", "length": {"least": 12, "unit": "m"}}'}
    other = {"kind": "tool", "name": "weather", "text": '{"place": "Tainan"}'}
    await visit.show(
        talks.talk("A ship", talks.said("Is there a ship of 12 m in Tainan?", call, other, ("text", "I am looking.")))
    )
    await visit.tab.locator(".call summary").first.click()


async def error(visit: Visit) -> None:
    held = await visit.answering()
    await visit.write(held, 0, talks.ANSWER.partition("\n\n")[0])
    await expect(visit.answer).to_contain_text("handed out")
    said = {"code": "engine_failed", "message": "The model failed while it wrote this answer. Please try again.", "status": 500}  # fmt: skip
    await visit.write(held, 1, "", end={"reason": "error", "error": said})
    await expect(visit.tab.locator(".problem")).to_be_visible()


async def refused(visit: Visit) -> None:
    await visit.crowd(8, visit.owner)
    await visit.home(WAITS)
    await visit.ask(talks.QUESTION)
    await expect(visit.tab.locator(".problem")).to_be_visible()


async def queue(visit: Visit) -> None:
    await visit.crowd(4)
    await visit.home(WAITS)
    await visit.ask(talks.QUESTION)
    await expect(visit.tab.locator(".wait-text")).to_contain_text("4")


async def stopped(visit: Visit) -> None:
    await visit.home()
    await visit.ask("/echo 3000 20ms")
    await expect(visit.answer).to_contain_text("40")
    await visit.tab.locator("#stop").click()
    await expect(visit.tab.locator(".mark")).to_be_visible()


async def editing(visit: Visit) -> None:
    await chat_from_its_top(visit)
    edit = visit.tab.locator(".question button.act").first
    await edit.focus()
    await edit.press("Enter")
    await expect(visit.tab.locator(".question-edit textarea")).to_be_focused()


async def versions(visit: Visit) -> None:
    said = talks.said(talks.QUESTION, ("text", talks.THOUGHTFUL))
    said |= {f"a{i}": said["a"] | {"created": said["a"]["created"] + i, "model": "quick", "rating": "up", "parts": [{"kind": "text", "text": text}]} for i, text in enumerate((talks.CODE, "Because they queue."), 1)}  # fmt: skip
    said |= {
        "r": said["q"]
        | {"created": said["q"]["created"] + 1, "parts": [{"kind": "text", "text": "The same question, written anew"}]}
    }
    await visit.show(talks.talk("Versions", said, leaf="a2"))
    await visit.tab.locator(".question .versions button").first.focus()


async def long_question(visit: Visit) -> None:
    await visit.show(
        talks.talk("Long", talks.said("Please correct this:\n\n" + talks.REASONING * 8, ("text", "It is correct.")))
    )


async def long_chat(visit: Visit) -> None:
    await visit.show(talks.long_talk(400))
    await visit.tab.mouse.move(300, 300)
    await visit.tab.locator(".scroller").evaluate("e => e.scrollBy(0, -900)")
    await expect(visit.tab.locator(".latest").first).to_be_visible()


def columns(count: int) -> State:
    """Several models side by side, asked one question."""

    async def state(visit: Visit) -> None:
        if count == 2:
            await visit.shelve()
        await visit.home()
        for more in range(2, count + 1):
            await visit.tab.locator("#column-add").click()
            await expect(visit.tab.locator(".column")).to_have_count(more)
        await visit.ask(talks.CODE)
        for i in range(count):
            await expect(visit.tab.locator(".column").nth(i).locator(".turn.answer.done")).to_have_count(
                1, timeout=20_000
            )
        await visit.settled()

    return state


async def picker(visit: Visit) -> None:
    await visit.home()
    await visit.tab.locator("#picker").click()
    await expect(visit.tab.locator("#models [data-name=coder]")).to_be_visible()


async def picker_search(visit: Visit) -> None:
    await picker(visit)
    await visit.tab.locator("#models-find").fill("large")
    await expect(visit.tab.locator("#models-about")).to_be_visible()


async def settings(visit: Visit) -> None:
    await visit.home("quick")
    await visit.tab.locator("#settings-open").click()
    await visit.tab.locator(".panel.settings input[type=range]").first.fill("1.2")


async def all_settings(visit: Visit) -> None:
    await settings(visit)
    await visit.tab.locator(".settings-more summary").click()
    await visit.stretch(".settings-body")


async def preset_menu(visit: Visit) -> None:
    await _presets(visit)
    await expect(visit.tab.get_by_role("menu")).to_be_visible()


async def preset_dialog(visit: Visit) -> None:
    await _presets(visit)
    await visit.tab.get_by_role("menuitem").last.click()
    await expect(visit.tab.locator("dialog .preset-name").first).to_be_visible()


async def _presets(visit: Visit) -> None:
    kept = {"Brief": {"system": "Answer in one sentence."}, "校對": {"system": "請校對以下的文章。", "temperature": 0.2}, "Wild": {"temperature": 1.6, "top_p": 0.9}}  # fmt: skip
    for name, values in kept.items():
        await presets.save(visit.broker, visit.owner, name, values)
    await visit.home()
    if await visit.tab.locator("#presets-open").is_visible():
        await visit.tab.locator("#presets-open").click()
    else:
        await visit.tab.locator("#settings-open").click()
        await visit.tab.locator(".settings-head .text-button").click()


async def sidebar(visit: Visit) -> None:
    made = await visit.shelve()
    await visit.tab.goto(f"{visit.url}/c/{made[3]}")
    await expect(visit.tab.locator(".turn.answer .md")).to_contain_text("Gladly")
    await visit.sidebar()


async def tagged(visit: Visit) -> None:
    await sidebar(visit)
    await visit.tab.locator("#tags .tag").first.click()
    await expect(visit.tab.locator("#tags [aria-pressed=true]")).to_have_count(1)


async def archive(visit: Visit) -> None:
    await data_menu(visit)
    await visit.tab.get_by_role("menuitem").first.click()
    await expect(visit.tab.locator("#where-back")).to_be_visible()


async def found(visit: Visit) -> None:
    await sidebar(visit)
    await visit.tab.locator("#search").fill("heating")
    await expect(visit.tab.locator("#found mark").first).to_be_visible()


async def nothing_found(visit: Visit) -> None:
    await sidebar(visit)
    await visit.tab.locator("#search").fill("nowhere to be found")
    await expect(visit.tab.locator("#found-status")).not_to_be_empty()


async def conversation_menu(visit: Visit) -> None:
    await sidebar(visit)
    await visit.tab.locator(".side-menu").nth(3).click()
    await expect(visit.tab.get_by_role("menu")).to_be_visible()


async def renaming(visit: Visit) -> None:
    await conversation_menu(visit)
    await visit.tab.get_by_role("menuitem").first.click()
    await expect(visit.tab.locator(".side-input")).to_be_focused()


async def undo(visit: Visit) -> None:
    await conversation_menu(visit)
    await visit.tab.get_by_role("menuitem").last.click()
    await expect(visit.tab.locator(".toast")).to_be_visible()


async def tags_dialog(visit: Visit) -> None:
    await _from_menu(visit, "tag")
    await expect(visit.tab.locator("dialog .tag").first).to_be_visible()


async def share_dialog(visit: Visit) -> None:
    await _from_menu(visit, "link")
    await visit.tab.locator("dialog .button.primary").first.click()
    await expect(visit.tab.locator("dialog .side-field")).to_be_focused()


async def export_menu(visit: Visit) -> None:
    await _from_menu(visit, "out")
    await expect(visit.tab.get_by_role("menuitem")).to_have_count(3)


async def _from_menu(visit: Visit, icon: str) -> None:
    await conversation_menu(visit)
    await visit.tab.locator(f'[role=menuitem]:has([href="#i-{icon}"])').click()


async def data_menu(visit: Visit) -> None:
    await sidebar(visit)
    await visit.tab.locator("#data").click()
    await expect(visit.tab.get_by_role("menu")).to_be_visible()


async def links(visit: Visit) -> None:
    made = await visit.shelve()
    for one in made[:3]:
        await shares.create(visit.broker, one, visit.owner)
    await visit.home()
    await visit.sidebar()
    await visit.tab.locator("#data").click()
    await visit.tab.locator('[role=menuitem]:has([href="#i-link"])').click()
    await expect(visit.tab.locator("dialog .share")).to_have_count(3)


async def imported(visit: Visit) -> None:
    await data_menu(visit)
    async with visit.tab.expect_file_chooser() as chooser:
        await visit.tab.locator('[role=menuitem]:has([href="#i-in"])').click()
    wrong = {"name": "chats.json", "mimeType": "application/json", "buffer": b"{}"}
    await (await chooser.value).set_files([wrong])
    await expect(visit.tab.locator(".toast")).to_be_visible()


async def share_page(visit: Visit) -> None:
    (made,) = await visit.store(talks.talk("Why one slow worker makes everybody wait", talks.said(talks.QUESTION, ("text", talks.ANSWER))))  # fmt: skip
    share = await shares.create(visit.broker, made, visit.owner)
    await visit.tab.goto(f"{visit.url}/s/{share.share_id}")
    await visit.settled()
    await visit.stretch("html")


async def print_page(visit: Visit) -> None:
    said = talks.said(talks.QUESTION, ("reasoning", talks.REASONING), ("text", talks.ANSWER))
    (made,) = await visit.store(talks.talk("Why one slow worker makes everybody wait", said))
    await visit.tab.goto(f"{visit.url}/c/{made}/print")
    await visit.settled()
    await visit.stretch("html")


async def answer_menu(visit: Visit) -> None:
    await versions(visit)
    await visit.tab.locator(".answer [aria-haspopup=menu]").click()
    await expect(visit.tab.get_by_role("menu")).to_be_visible()


async def deleting(visit: Visit) -> None:
    await answer_menu(visit)
    await visit.tab.get_by_role("menuitem").last.click()
    await expect(visit.tab.locator("dialog")).to_be_visible()


async def rating(visit: Visit) -> None:
    await chat(visit)
    await visit.tab.locator("[data-rating=down]").click()
    await expect(visit.tab.locator(".panel.rating")).to_be_visible()


async def temporary(visit: Visit) -> None:
    await visit.home()
    await visit.tab.locator("#temporary").click()
    await visit.ask("Nobody may ever **read** this.")
    await expect(visit.answer).to_contain_text("Nobody")


async def attached(visit: Visit) -> None:
    await visit.home()
    await visit.tab.locator("#files").set_input_files(FILES)
    await visit.tab.locator("#prompt").fill("What is wrong in this class?\nAnd in the notes?")
    await expect(visit.tab.locator("#chips .chip")).to_have_count(2)


async def with_files(visit: Visit) -> None:
    files = ({"kind": "file", "name": f["name"], "text": f["buffer"].decode()} for f in FILES)
    said = talks.said("What is wrong?", ("text", "Nothing."))
    said["q"]["parts"] = [*files, *said["q"]["parts"]]
    await visit.show(talks.talk("Files", said))
    await visit.tab.locator(".file summary").first.click()


async def dropping(visit: Visit) -> None:
    await visit.home()
    await visit.tab.evaluate(DROP, "dragover")
    await expect(visit.tab.locator("#drop")).to_be_visible()


async def reconnecting(visit: Visit) -> None:
    await chat(visit)
    await visit.tab.context.set_offline(True)
    await visit.tab.evaluate("dispatchEvent(new Event('offline'))")
    await expect(visit.tab.locator("#connection")).to_be_visible()


async def shortcuts(visit: Visit) -> None:
    await visit.home()
    await visit.tab.locator("#picker").focus()
    await visit.tab.keyboard.press("?")
    await expect(visit.tab.locator("dialog.help")).to_be_visible()


def battled(kind: str, winner: str = "", *, void: bool = False) -> State:
    """A round of two turns; `void`: one answer of the second has failed."""

    async def state(visit: Visit) -> None:
        path = "arena" if kind == "blind" else "compare"
        await visit.tab.goto(f"{visit.url}/{path}/{await visit.battle(kind, winner, void=void)}")
        await expect(visit.tab.locator(".side .md").first).to_contain_text("handed out")
        await expect(visit.tab.locator("#verdict" if winner or void else "#votes")).to_be_visible()
        await expect(visit.tab.locator("#again")).to_be_enabled(enabled=not (winner or void))
        await visit.settled()

    return state


async def arena_menu(visit: Visit) -> None:
    await battled("blind")(visit)
    await visit.tab.locator("#more").click()
    await expect(visit.tab.get_by_role("menu")).to_be_visible()


async def arena_shared(visit: Visit) -> None:
    found = await arena.load(visit.broker, await visit.battle("blind", "a"), visit.owner)
    share = await shares.keep(visit.broker, visit.owner, talks.QUESTION, found.snapshot())
    await at(f"/s/{share.share_id}", ".paper-pair .md strong")(visit)
    await visit.settled()


def board(query: str = "", *, foot: str = "") -> State:
    """The leaderboard with its figures; `foot`: what is to be seen of it, if not its top."""

    async def state(visit: Visit) -> None:
        await visit.tab.goto(f"{visit.url}/leaderboard{query}")
        for name in ("intervals", "average", "win", "count", "history"):
            await expect(visit.tab.locator(f"#figure-{name} .figure-plot > *").first).to_be_attached()
        if foot:
            await visit.tab.locator(foot).evaluate("e => e.scrollIntoView({ block: 'start' })")

    return state


async def method(visit: Visit) -> None:
    await board("?style=1")(visit)
    await visit.tab.locator("[popovertarget=how-style]").first.click()
    await expect(visit.tab.locator("#how-style")).to_be_visible()


async def set_aside(visit: Visit) -> None:
    await board()(visit)
    await visit.tab.locator("[popovertarget=how-aside]").first.click()
    await expect(visit.tab.locator("#how-aside")).to_be_visible()


async def nobody_voted(visit: Visit) -> None:
    await visit.tab.goto(f"{visit.stage.bare_url}/leaderboard")
    await expect(visit.tab.locator(".board-empty")).to_be_visible()


STATES: dict[str, State] = {
    "empty": empty,
    "first-visit": first_visit,
    "no-model": no_model,
    "loading": loading,
    "failed": failed,
    "waiting": waiting,
    "queue": queue,
    "streaming": streaming,
    "thinking": thinking,
    "chat": chat,
    "chat-top": chat_from_its_top,
    "chat-whole": whole_chat,
    "chat-chinese": chinese,
    "diagram": diagram,
    "reasoning": reasoning,
    "reasoning-open": reasoning_open,
    "tools": tools,
    "error": error,
    "refused": refused,
    "stopped": stopped,
    "editing": editing,
    "versions": versions,
    "long-question": long_question,
    "long-chat": long_chat,
    "columns-2": columns(2),
    "columns-3": columns(3),
    "columns-4": columns(4),
    "picker": picker,
    "picker-search": picker_search,
    "settings": settings,
    "settings-all": all_settings,
    "preset-menu": preset_menu,
    "presets": preset_dialog,
    "sidebar": sidebar,
    "sidebar-tag": tagged,
    "archive": archive,
    "search": found,
    "search-nothing": nothing_found,
    "conversation-menu": conversation_menu,
    "renaming": renaming,
    "undo": undo,
    "tags": tags_dialog,
    "share": share_dialog,
    "links": links,
    "export": export_menu,
    "data-menu": data_menu,
    "import-refused": imported,
    "answer-menu": answer_menu,
    "deleting": deleting,
    "rating": rating,
    "temporary": temporary,
    "files": attached,
    "files-sent": with_files,
    "dropping": dropping,
    "reconnecting": reconnecting,
    "help": shortcuts,
    "arena": at("/arena", "#starters"),
    "arena-vote": battled("blind"),
    "arena-voted": battled("blind", "a"),
    "arena-void": battled("blind", void=True),
    "arena-menu": arena_menu,
    "arena-shared": arena_shared,
    "compare": at("/compare", "#model-a:has(option)"),
    "compare-vote": battled("named"),
    "share-page": share_page,
    "print-page": print_page,
    "share-revoked": at("/s/AAAAAAAAAAAAAAAAAAAAAA"),
    "not-found": at("/nowhere"),
    "offline": at("/offline"),
    "leaderboard": board(),
    "leaderboard-style": board("?style=1&sort=score"),
    "leaderboard-win": board(foot="#figure-win"),
    "leaderboard-history": board(foot="#figure-history"),
    "leaderboard-method": method,
    "leaderboard-aside": set_aside,
    "leaderboard-empty": nobody_voted,
    "leaderboard-categories": at("/leaderboard/categories", ".overview tbody tr"),
    "docs-api": at("/docs/api"),
}
