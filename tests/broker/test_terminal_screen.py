"""How an answer grows on a screen, character by character; and how it stays right when frames are replaced."""

import io

import pyte
import pytest
from rich.console import Console

from broker.messages import Frame
from broker.terminal_screen import Held, Plain, Rendered, Said, Whole, clean

LINES = "\n".join(f"    line_{i} = {i}  # 說明" for i in range(20))
ANSWER = f"""# 標題 and a title

A paragraph with **bold**, `code`, a [link](https://example.org/a) and List<int>
in two lines.

1. first
1. second, which is so long that it has to be folded, even on a screen that is wide
   - inner 項目
   - more

   and a paragraph
1. third

| name | 說明 |
|------|-----:|
| a | 這是一個很長的句子沒有空格所以必須折行 |

> quoted
> twice

```python
def f():
{LINES}
```

---

- [x] done
- ![cat](https://example.org/cat.png)

The end."""


class Terminal:
    """A screen that rich writes to."""

    def __init__(self, columns: int, lines: int = 12) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=1000)
        self.screen.set_mode(pyte.modes.LNM)  # what the kernel does with the end of a line
        self._stream = pyte.Stream(self.screen)
        self.console = Console(file=self, force_terminal=True, width=columns, height=lines, legacy_windows=False)  # type: ignore[arg-type]

    def write(self, text: str) -> None:
        self._stream.feed(text)

    def flush(self) -> None: ...

    @property
    def text(self) -> str:
        above = ["".join(line[x].data for x in range(self.screen.columns)) for line in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*above, *self.screen.display]).strip("\n")


def frame(seq: int, text: str, epoch: int = 1, **more) -> Frame:
    return Frame("r", seq, epoch, text, **more)


def say(shown, said, *texts, first=0, epoch=1):
    """Frames from number `first` on, each shown as it comes."""
    for seq, text in enumerate(texts, first):
        said.add(frame(seq, text, epoch=epoch))
        shown.update(said)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("columns", [80, 34])
@pytest.mark.parametrize("step", [1, 7])
def test_what_grows_block_by_block_ends_as_it_looks_when_it_is_printed_at_once(columns, step):
    whole = Terminal(columns)
    whole.console.print(Whole(ANSWER))
    grown, said = Terminal(columns), Said()
    display = Rendered(grown.console)
    with display:
        for seq, i in enumerate(range(0, len(ANSWER), step)):
            said.add(frame(seq, ANSWER[i : i + step]))
            display.update(said)
        display.finish(said)
    assert grown.text == whole.text
    for piece in ("標題 and a title", "List<int>", "https://example.org/cat.png", "line_19 = 19"):
        assert piece in grown.text
    assert "".join(grown.text.split()).count("這是") == 1


@pytest.mark.parametrize("display", [Rendered, Plain, Held])
def test_words_that_come_again_after_a_loss_are_printed_once(display):
    terminal, said = Terminal(60), Said()
    shown = display(terminal.console)
    with shown:
        say(shown, said, "one\n\n", "two\n\n", "three")
        say(shown, said, "two\n\n", "three\n\n", "four", first=1, epoch=2)
        shown.finish(said)
    assert terminal.text == "one\n\ntwo\n\nthree\n\nfour"


@pytest.mark.parametrize("display", [Rendered, Plain, Held])
@pytest.mark.parametrize("second", ["2\n\nand more", "t"])
def test_an_answer_that_has_become_another_one_is_shown_again_and_whole(display, second):
    terminal, said = Terminal(100), Said()
    shown = display(terminal.console)
    with shown:
        say(shown, said, "one\n\n", "two\n\n", "three")
        say(shown, said, second, first=1, epoch=2)
        shown.finish(said)
    parts = terminal.text.split("from the beginning:")
    assert parts[-1].strip("\n )") == f"one\n\n{second}"
    assert len(parts) == (1 if display is Held else 2)


def test_thoughts_are_seen_while_they_come_and_folded_afterwards():
    terminal, said = Terminal(60), Said()
    display = Rendered(terminal.console)
    with display:
        display.update(said)
        assert terminal.text == "waiting …"
        said.place = 3
        display.update(said)
        assert terminal.text == "waiting, 3 before you …"
        said.add(frame(0, "let me see", kind="reasoning"))
        display.update(said)
        assert terminal.text == "thinking …\nlet me see"
        said.add(frame(1, "It is 4."))
        display.update(said)
        assert terminal.text == "thought for 0 s\n\nIt is 4."
        said.add(frame(2, "", end={"reason": "stop", "usage": {"completion_tokens": 7}}))
        display.finish(said)
    assert terminal.text == "thought for 0 s\n\nIt is 4."
    assert said.tokens == 7


def test_a_line_that_may_become_something_else_is_not_drawn_as_a_heading():
    terminal, said = Terminal(60), Said()
    display = Rendered(terminal.console)
    with display:
        for seq, text in enumerate(("a sentence\n", "-")):
            said.add(frame(seq, text))
            display.update(said)
        assert terminal.text == "a sentence"
        said.add(frame(2, " item"))
        display.update(said)
        assert terminal.text == "a sentence\n\n • item"


def test_what_a_model_says_cannot_control_the_terminal():
    evil = "a\x1b]0;title\x07b\x1b[2Jc\x9b31md\u202ee\r\n\tf"
    assert clean(evil) == "a]0;titleb[2Jc31mde\n\tf"
    file = io.StringIO()
    console, said = Console(file=file, force_terminal=True, color_system=None, width=40), Said()
    said.add(frame(0, evil))
    for display in (Rendered(console), Plain(console)):
        with display:
            display.update(said)
            display.finish(said)
    assert "\x1b]" not in file.getvalue()
    assert "\x1b[2Jc" not in file.getvalue()
