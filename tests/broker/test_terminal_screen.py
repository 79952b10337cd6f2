"""How an answer grows on a screen, character by character; and how it stays right when frames are replaced."""

import pyte
import pytest
from rich.console import Console

from broker.messages import Frame
from broker.terminal_screen import Rendered, Said, Whole

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
    print(grown.text)
    assert grown.text == whole.text
    for piece in ("標題 and a title", "List<int>", "https://example.org/cat.png", "line_19 = 19"):
        assert piece in grown.text
    assert "".join(grown.text.split()).count("這是") == 1
