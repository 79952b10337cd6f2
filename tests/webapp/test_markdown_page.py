"""What a model writes, as it is shown, in a real Chromium: an echo says what the test wants said."""

import re

import pytest
from playwright.async_api import expect

from helpers import eventually

pytestmark = pytest.mark.timeout(60)


async def show(tab, text: str) -> str:
    """Render `text` as an answer's; gives its HTML. For what needs no conversation."""
    return await tab.evaluate(
        """async (text) => {
          const base = document.querySelector('script[src$="chat.js"]').src;
          const { LiveMarkdown } = await import(new URL("markdown.js", base));
          const element = document.createElement("div");
          element.className = "md";
          document.querySelector(".scroller").append(element);
          const live = new LiveMarkdown(element);
          live.finish(text);
          return element.innerHTML;
        }""",
        text,
    )


GROWN = """# A heading

A paragraph with a note[^1] and **bold** words.

- [ ] one
- [x] two

```python
def f():
    return "some code"
```

| a | b |
|---|--:|
| 1 | 2 |
| 3 | 4 |

$$
x^2
$$

The end.

[^1]: The note.
"""


async def test_while_it_grows_only_the_open_block_is_rendered_and_nothing_jumps(visitor, tab):
    await show(tab, "$$x$$ `warm`\n\n```python\nx\n```")  # KaTeX and the colours are there
    await expect(tab.locator(".scroller > .md .math[data-set]")).to_be_visible()
    found = await tab.evaluate(
        """async (text) => {
          const base = document.querySelector('script[src$="chat.js"]').src;
          const { LiveMarkdown } = await import(new URL("markdown.js", base));
          const element = document.createElement("div");
          element.className = "md";
          document.querySelector(".scroller > .md").replaceWith(element);
          let shift = 0;
          new PerformanceObserver((list) => list.getEntries().forEach(({ value }) => (shift += value))).observe({ type: "layout-shift" });
          const live = new LiveMarkdown(element);
          const touched = [];
          const watcher = new MutationObserver((records) => touched.push(...records.map(({ target }) => target)));
          const frame = () => new Promise(requestAnimationFrame);
          const watched = new Set();
          for (let length = 4; length < text.length; length += 4) {
            live.set(text.slice(0, length));
            await new Promise((done) => new MutationObserver((_, o) => (o.disconnect(), done())).observe(element, { subtree: true, childList: true, characterData: true, attributes: true }) ?? setTimeout(done, 60));
            await frame();
            // All but the last two are closed: the one before the last may just have been.
            for (const block of [...element.children].slice(0, -2)) {
              if (watched.has(block)) continue;
              watched.add(block);
              watcher.observe(block, { subtree: true, childList: true, characterData: true });
            }
          }
          live.finish(text);
          await frame();
          await frame();
          const kept = [...watched].every((block) => block.parentNode === element);
          return { kept, blocks: watched.size, touched: touched.filter((t) => !t.closest?.("code")).length, shift };
        }""",
        GROWN,
    )
    assert found["kept"]
    assert found["blocks"] >= 5
    assert found["touched"] == 0
    assert found["shift"] == 0


async def test_a_table_comes_row_by_row_and_its_columns_stay(visitor, tab):
    await show(tab, "warm")
    states = await tab.evaluate(
        """async (text) => {
          const base = document.querySelector('script[src$="chat.js"]').src;
          const { LiveMarkdown } = await import(new URL("markdown.js", base));
          const element = document.querySelector(".scroller > .md");
          const live = new LiveMarkdown(element);
          const states = [];
          const state = () => ({
            text: element.innerText.trim().replace(/\\s+/g, " "),
            columns: [...element.querySelectorAll("th")].map((cell) => Math.round(cell.getBoundingClientRect().left)),
          });
          for (let length = 1; length <= text.length; length += 2) {
            live.set(text.slice(0, length));
            await new Promise((done) => setTimeout(done, 80));
            states.push(state());
          }
          live.finish(text);
          return [...states, state()];
        }""",
        "Look:\n\n| a | number |\n|---|---:|\n| one | 1 |\n| a much longer name | 2 |\n| 3 | many words |\n\nSo.",
    )
    rows = ["Look:", "a number", "one 1", "a much longer name 2", "3 many words"]
    seen = list(dict.fromkeys(state["text"] for state in states))
    whole = [" ".join(rows[:count]) for count in (1, 3, 4, 5)]
    assert [text for text in seen if text in whole] == whole
    assert all("|" not in text for text in seen)
    assert seen[-1] == f"{whole[-1]} So."
    assert len({tuple(state["columns"]) for state in states}) == 2  # none, and always the same


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("1. One\n   -", "1. One\n"),
        ("One\n--", "One\n"),
        ("One\n> =", "One\n"),
        ("One\n---\n", "One\n---\n"),
        ("One\n- a", "One\n- a"),
        ("One -", "One -"),
    ],
)
async def test_a_lists_mark_that_comes_alone_makes_no_heading_for_a_moment(visitor, tab, text, shown):
    held = await tab.evaluate(
        """async (text) => {
          const { heldBack } = await import(new URL("tables.js", document.querySelector('script[src$="chat.js"]').src));
          return heldBack(text);
        }""",
        text,
    )
    assert text[: len(text) - held] == shown


async def test_tables_tasks_strikes_and_nested_lists(visitor, tab):
    await show(
        tab,
        "- [ ] buy\n- [x] ~~sell~~\n  - [X] deep\n    1. deeper\n- plain [ ]\n\n"
        "| a | b | c |\n|:--|:-:|--:|\n| 1 | 2 | 3 |\n",
    )
    md = tab.locator(".scroller > .md")
    boxes = md.get_by_role("img")
    assert [await box.get_attribute("aria-label") for box in await boxes.all()] == ["To do", "Done", "Done"]
    await expect(md.locator("s")).to_have_text("sell")
    await expect(md.locator("ul ul ol li")).to_have_text("deeper")
    await expect(md.locator("td").nth(1)).to_have_class("align-center")
    await expect(md.locator("td").nth(2)).to_have_class("align-right")
    await expect(md.locator("input")).to_have_count(0)


async def test_headings_leave_no_level_out(visitor, tab):
    html = await show(tab, "#### a\n\n###### b\n\n##### c\n\n# d\n\n## e")
    assert re.findall(r"<h(\d)>(\w)", html) == [("3", "a"), ("4", "b"), ("4", "c"), ("3", "d"), ("3", "e")]


@pytest.mark.parametrize(
    ("text", "strong"),
    [
        ("**中文。**後文", "中文。"),
        ("前文**「引用」**後文", "「引用」"),
        ("**한국어(Korean)**입니다", "한국어(Korean)"),
        ("價格是**$5**，很便宜", "$5"),
        ("**plain** words", "plain"),
    ],
)
async def test_emphasis_beside_words_without_blanks(visitor, tab, text, strong):
    await show(tab, text)
    await expect(tab.locator(".scroller > .md strong")).to_have_text(strong)


async def test_formulas_by_four_delimiters_and_prices_that_are_none(visitor, tab):
    await show(tab, "$a^2$ and \\(b^2\\) and\n\n$$\nc^2\n$$\n\n\\[d^2\\]\n\n$$e^2$$")
    await expect(tab.locator(".scroller > .md .math[data-set] math")).to_have_count(5)
    await expect(tab.locator(".scroller > .md .display")).to_have_count(3)
    money = (
        "It is $5 and $10, US$5 or NT$7, $20k-$30k, $5/$6, $HOME:$PATH, \\$1 and $2. "
        "`$x$` stays. \\[no link\\](here) 價格$5，共$10元。\n\n$$ not closed\n\nnext"
    )
    html = await show(tab, money)
    assert "math" not in html
    assert "<p>next</p>" in html


async def test_footnotes_know_their_own_answer_only(visitor, tab):
    text = "Two[^note], one[^1], two again[^note], none[^9], class [^a-z].\n\n[^1]: First *note*\n\n    more of it\n[^note]: Second\n\nEnd."
    first, second = await show(tab, text), await show(tab, text)
    ids = re.findall(r'id="([^"]+)"', first + second)
    assert len(ids) == len(set(ids)) == 8
    assert "[^9]" in first
    assert "[^a-z]" in first
    md = tab.locator(".scroller > .md").last
    await expect(md.locator(".footnote")).to_have_count(2)
    await expect(md.locator(".footnote").first).to_contain_text(re.compile("2.*First.*more of it", re.S))
    address = tab.url
    mark = md.locator("[role=doc-noteref][aria-label='Footnote 1']").first
    await mark.press("Enter")
    await expect(md.locator(".footnote", has_text="Second")).to_be_focused()
    await md.locator(".footnote", has_text="Second").locator("[role=doc-backlink]").press("Enter")
    await expect(mark).to_be_focused()
    assert tab.url == address


async def test_code_has_its_language_and_is_copied_and_wrapped(visitor, tab):
    await tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await visitor.ask("```python\ndef f(): return '" + "x" * 300 + "'\n```\n\n```nonsense\nplain\n```")
    block = visitor.answer.locator(".code").first
    await expect(block.locator(".code-language")).to_have_text("python")
    await expect(block.locator(".hljs-keyword").first).to_have_text("def")
    await expect(visitor.answer.locator(".code").last.locator("span[class^=hljs]")).to_have_count(0)
    await block.get_by_role("button", name="Copy").click()
    await expect(block.get_by_role("button", name="Copied")).to_be_visible()
    assert (await tab.evaluate("navigator.clipboard.readText()")).startswith("def f(): return 'xxx")
    pre = block.locator("pre")
    wide = "(e) => e.scrollWidth > e.clientWidth"
    assert await pre.evaluate(wide)
    await pre.focus()
    await pre.press("ArrowRight")
    await eventually(lambda: pre.evaluate("e => e.scrollLeft > 0"))
    await block.get_by_role("button", name="Wrap").click()
    assert not await pre.evaluate(wide)
    await tab.reload()
    await expect(visitor.answer.get_by_role("button", name="Wrap").first).to_have_attribute("aria-pressed", "true")
    assert not await visitor.answer.locator("pre").first.evaluate(wide)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_diagram_is_drawn_when_asked_for_and_its_code_stays_within_reach(visitor, tab, scheme):
    fetched: list[str] = []
    tab.on("request", lambda r: fetched.append(r.url))
    await tab.emulate_media(color_scheme=scheme)
    await visitor.ask(
        "```mermaid\ngraph TD\n  A[Start] --> B{Ready?}\n  B --> C[Ship]\n```\n\nA note[^1].\n\n[^1]: Of it."
    )
    block = visitor.answer.locator(".code")
    await expect(block.locator("pre")).to_contain_text("graph TD")
    assert not [url for url in fetched if "mermaid" in url]
    await block.get_by_role("button", name="Show diagram").press("Enter")
    await expect(block.get_by_role("button", name="Show code")).to_be_visible(timeout=20_000)
    await expect(block.locator("pre")).to_be_hidden()
    frame = block.frame_locator("iframe")
    await expect(frame.locator("svg")).to_contain_text("Ready?")
    assert await frame.locator("html").evaluate("e => [origin, getComputedStyle(e).colorScheme]") == ["null", scheme]
    assert (await block.locator("iframe").bounding_box())["height"] > 100
    await block.get_by_role("button", name="Show code").click()
    await expect(block.locator("pre")).to_be_visible()
    await expect(block.locator("iframe")).to_have_count(0)


async def test_a_diagram_that_is_none_says_why(visitor, tab):
    await visitor.ask("```mermaid\ngraph nonsense ->\n```")
    block = visitor.answer.locator(".code")
    await block.get_by_role("button", name="Show diagram").click()
    await expect(block.get_by_role("status")).to_contain_text("cannot be drawn", timeout=20_000)
    await expect(block.locator("pre")).to_be_visible()
    await expect(block.locator("iframe")).to_have_count(0)


async def test_a_picture_is_loaded_only_when_a_person_asks_and_nobody_learns_from_where(visitor, tab):
    asked: list[dict[str, str]] = []

    async def painter(route):
        asked.append(await route.request.all_headers())
        await route.fulfill(
            body='<svg xmlns="http://www.w3.org/2000/svg" width="300" height="200"><rect width="300" height="200"/></svg>',
            content_type="image/svg+xml",
        )

    await tab.context.route("https://pictures.example/**", painter)
    await visitor.ask(
        "See ![a black box](https://pictures.example/box.svg) there, [![badge](https://pictures.example/b.svg)](https://x.example)."
    )
    button = visitor.answer.get_by_role("button", name="Show picture: a black box (pictures.example)")
    await expect(button).to_be_visible()
    await expect(visitor.answer.get_by_role("link", name="badge")).to_be_visible()
    assert asked == []
    await button.press("Enter")
    await expect(button).to_be_hidden()
    box = await visitor.answer.locator("iframe").bounding_box()
    assert (round(box["width"]), round(box["height"])) == (300, 200)
    (headers,) = asked
    assert "referer" not in headers
    assert "cookie" not in headers


async def test_what_attacks_is_text(visitor, tab):
    requests: list[str] = []
    tab.on("request", lambda r: requests.append(r.url))
    html = await show(
        tab,
        "![p](javascript:window.hacked=1) ![p](vbscript:x) ![p](file:///etc/passwd) ![p](//127.0.0.1:9/x.png) "
        '![p](blob:http://x/y) ![" onerror=window.hacked=1 x="](https://x.example/"onload=window.hacked=1)\n\n'
        '[^"><img src=x onerror=window.hacked=1>]: <script>window.hacked=1</script>\n\n'
        'Mark[^"><img src=x onerror=window.hacked=1>] and [^__proto__] and [^constructor]\n\n[^__proto__]: p\n[^constructor]: c\n\n'
        '- [ ] <b onclick="window.hacked=1">x</b>\n- [x] [l](javascript:window.hacked=1) [d](data:text/html,x) [n](#note-1-1) [m](#main)\n\n'
        "```<img/src=x/onerror=window.hacked=1>\ncode\n```\n\n$\\href{javascript:window.hacked=1}{x}$ $\\includegraphics{http://127.0.0.1:9/x}$",
    )
    await expect(tab.locator(".scroller > .md [data-set]")).to_have_count(2)
    assert await tab.evaluate("window.hacked") is None
    md = tab.locator(".scroller > .md")
    await expect(
        md.locator(
            "script, iframe, img, b, [onerror], [onload], [onclick], a[href^='javascript:' i], a[href^='data:' i]"
        )
    ).to_have_count(0)
    await expect(md.locator("[data-deed=picture]")).to_have_count(1)
    assert await md.locator("[id]").evaluate_all("all => all.every((e) => /^note-\\d+-\\d+(-mark)?$/.test(e.id))")
    for link in await md.locator("a[href^=http]").all():
        assert await link.get_attribute("rel") == "noopener noreferrer"
        assert await link.get_attribute("target") == "_blank"
    assert not [url for url in requests if ":9/" in url]
    assert "hacked=1" in html


async def test_a_diagram_cannot_reach_the_page_or_the_net(visitor, tab):
    requests: list[str] = []
    tab.on("request", lambda r: requests.append(r.url))
    text = (
        'graph TD\n  A["<img src=http://127.0.0.1:9/x.png onerror=parent.hacked=1>"] --> B["<script>parent.hacked=1</script>"]\n'
        '  click A "javascript:parent.hacked=1"\n  style A fill:url(http://127.0.0.1:9/y.png)'
    )
    tab.forgiven.append("violates the following Content Security Policy")  # which is what stops it
    await visitor.ask(f"```mermaid\n{text}\n```")
    block = visitor.answer.locator(".code")
    await block.get_by_role("button", name="Show diagram").click()
    await expect(block.get_by_role("button", name=re.compile("Show (code|diagram)"))).to_be_visible(timeout=20_000)
    assert await tab.evaluate("window.hacked") is None
    assert not [url for url in requests if ":9/" in url]
