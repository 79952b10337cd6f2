"""An answer as it grows in a terminal, and what it looks like when it is finished.

`Rendered` is Markdown: blocks that are finished are printed for good, and only the last one, which still grows, is drawn
again and again, so a long answer neither flickers nor is cut off. `Plain` is the text as it comes. `Held` prints nothing
before the end, for programs: a line that is out cannot be taken back there. All three are right also when frames are
replaced (see `streams.Reader`): a person sees the answer again where it has become another one. What a model says never
controls the terminal.
"""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import CodeBlock, Heading, Markdown, TableElement
from rich.segment import Segment, SegmentLines
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from broker import chat
from broker.messages import Frame

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # the last ones turn text around
HALF = re.compile(r"(?:^|\n)[ \-=*#`~>+\d.]{1,4}$")  # a line that may still become a heading, a fence or an item
THOUGHT_LINES = 6
AGAIN = "A part of the answer was lost and written anew. The answer from the beginning:"


def clean(text: str) -> str:
    """The text without what would move the cursor, change colours or turn the line around."""
    return CONTROL.sub("", text)


class Said:
    """What an answer has said so far, and when."""

    def __init__(self) -> None:
        self.text, self.thoughts = chat.Text(), chat.Text("reasoning")
        self.begun = time.monotonic()
        self.first: float | None = None  # seconds until the first frame with text of any kind
        self.thought: float | None = None  # seconds of reasoning, once something else has been said
        self.tokens = 0
        self.last: Frame | None = None
        self.place: int | None = None  # requests before it, while it waits

    def add(self, frame: Frame) -> None:
        """The next frame, or one that replaces what was said from its number on."""
        self.text.add(frame)
        self.thoughts.add(frame)
        if frame.text and self.first is None:
            self.first = self.seconds
        if frame.text and frame.kind == "text" and self.thought is None:
            self.thought = self.seconds - (self.first or 0)
        if frame.usage is not None:
            self.tokens = frame.usage[1]
        if frame.end is not None:
            self.last = frame
            self.tokens = (frame.end.get("usage") or {}).get("completion_tokens", self.tokens)

    def check(self) -> None:
        """Raises the error that it has ended with."""
        if self.last is not None:
            chat.finished(self.last, "")

    @property
    def seconds(self) -> float:
        """Since it was asked."""
        return time.monotonic() - self.begun

    @property
    def folded(self) -> str:
        """How long it thought, in a word for people; "" if it did not, or still does."""
        return f"thought for {self.thought:.0f} s" if self.thought is not None and str(self.thoughts) else ""

    @property
    def waiting(self) -> str:
        """What there is to say before the first word."""
        return f"waiting, {self.place} before you" if self.place else "waiting"


class Display(Protocol):
    """Where an answer grows."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
    def update(self, said: Said) -> None:
        """Show what has come."""

    def finish(self, said: Said) -> None:
        """Show all of it, for good."""


class Held:
    """The whole text at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def update(self, said: Said) -> None: ...

    def finish(self, said: Said) -> None:
        if text := str(said.text):
            self._console.file.write(text.removesuffix("\n") + "\n")
            self._console.file.flush()


class Plain(Held):
    """The text as it comes."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._written = ""
        self._told = ""

    def update(self, said: Said) -> None:
        text = clean(str(said.text))
        if said.first is None and said.place and self._told != said.waiting:
            self._told = said.waiting
            self._write(f"({said.waiting})\n")
        if not text.startswith(self._written):
            if self._written.startswith(text):
                return  # most often the same words come again
            self._write(f"\n({AGAIN})\n")
            self._written = ""
        if text and not self._written and said.folded:
            self._write(f"({said.folded})\n")
        self._write(text[len(self._written) :])
        self._written = text

    def finish(self, said: Said) -> None:
        text = clean(str(said.text))
        if text != self._written and self._written.startswith(text):
            self._write(f"\n({AGAIN})\n")
            self._written = ""
        self.update(said)
        if text and not text.endswith("\n"):
            self._write("\n")

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()


@dataclass(frozen=True, slots=True)
class Unit:
    """What is printed at once: a block, or an item of a list."""

    tokens: Sequence[Token]
    line: int  # that it begins with
    block: int  # line that its block begins with

    def lines(self, console: Console, spaced: bool) -> list[list[Segment]]:
        """What it looks like; `spaced`: something stands above it."""
        options = console.options.update(height=None)
        lines = console.render_lines(_Tokens(self.tokens), options, pad=False)
        while lines and not _seen(lines[0]):  # rich puts empty lines before some blocks and behind others
            lines.pop(0)
        while lines and not _seen(lines[-1]):
            lines.pop()
        return [[], *lines] if spaced and self.line == self.block else lines

    def tail(self, height: int) -> "Unit":
        """The same, or of a long program the last lines: more cannot be seen of it while it grows."""
        first = self.tokens[0]
        if first.type != "fence" or first.content.count("\n") <= height:
            return self
        last = "".join(first.content.splitlines(keepends=True)[-height:])
        return replace(self, tokens=[first.copy(content=last)])


def _seen(line: Sequence[Segment]) -> bool:
    return any(segment.text.strip() for segment in line)


class Rendered:
    """Markdown, of which only the last block is drawn again."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(
            Text(),
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._drawn: tuple[str, str, str] | None = None
        self._begin()

    def _begin(self) -> None:
        self._kept = ""  # the text of what has been printed for good
        self._base = 0  # where the block begins that is being written
        self._done = 0  # units of it that have been printed
        self._spaced = False  # whether something stands above

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.update(Text())
        self._live.stop()

    def update(self, said: Said) -> None:
        text = clean(str(said.text))
        if (now := (text, str(said.thoughts), said.waiting)) == self._drawn:
            return
        self._drawn = now
        if text:
            self._grow(HALF.sub("", text), said, last=False)
        elif thoughts := clean(str(said.thoughts)):
            self._show_text(f"thinking …\n{thoughts.strip()}", "dim italic", THOUGHT_LINES)
        else:
            self._show_text(f"{said.waiting} …", "dim", 1)

    def finish(self, said: Said) -> None:
        if text := clean(str(said.text)):
            self._grow(text, said, last=True)
        elif str(said.thoughts):
            self._console.print(Text("thought, and said nothing", "dim"))
        self._live.update(Text(), refresh=True)

    def _grow(self, text: str, said: Said, *, last: bool) -> None:
        if not text.startswith(self._kept):
            if self._kept.startswith(text) and not last:
                return  # most often the same words come again
            self._console.print(Text(f"\n{AGAIN}\n", "yellow"))
            self._begin()
        if not self._kept and not self._spaced and said.folded:
            self._console.print(Text(said.folded, "dim"))
            self._spaced = True
        rest = text[self._base :]
        units = list(_units(rest))
        for unit in units[self._done : len(units) if last else -1]:
            self._live.update(Text())  # what was the last block is printed now
            self._console.print(SegmentLines(unit.lines(self._console, self._spaced), new_lines=True))
            self._spaced = True
        if not units or last:
            self._kept = text if last else self._kept
            return
        tail = units[-1]
        lines = rest.splitlines(keepends=True)
        self._kept = text[: self._base] + "".join(lines[: tail.line])
        self._base += len("".join(lines[: tail.block]))
        self._done = sum(1 for unit in units[:-1] if unit.block == tail.block)
        height = self._console.height - 1
        self._show(tail.tail(height).lines(self._console, self._spaced), height)

    def _show_text(self, text: str, style: str, height: int) -> None:
        lines = self._console.render_lines(Text(text, style), self._console.options.update(height=None), pad=False)
        self._show(lines, height)

    def _show(self, lines: list[list[Segment]], height: int) -> None:
        self._live.update(SegmentLines(lines[-height:], new_lines=True), refresh=True)


class Whole:
    """A text that is finished, as Markdown."""

    def __init__(self, text: str) -> None:
        self._units = list(_units(clean(text)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for i, unit in enumerate(self._units):
            yield SegmentLines(unit.lines(console, i > 0), new_lines=True)


def _parse(source: str) -> list[Token]:
    """Tokens, with every line kept a line, as the page has them, and pictures as their text and address."""
    tokens = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"]).parse(source)
    for token in tokens:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
            elif child.type == "image":
                child.content = f"{child.content} ({child.attrs.get('src', '')})".strip()
                child.type, child.tag, child.children = "text", "", None
    return tokens


def _units(source: str) -> Iterator[Unit]:
    """Blocks, and items of lists. The last one may still change; what comes behind leaves the others as they are."""
    start, tokens = 0, _parse(source)
    for i, token in enumerate(tokens):
        if token.level == 0 and token.nesting <= 0:
            yield from _parts(tokens[start : i + 1])
            start = i + 1


def _parts(block: list[Token]) -> Iterator[Unit]:
    opening, closing = block[0], block[-1]
    line = (opening.map or [0])[0]
    if opening.type not in ("bullet_list_open", "ordered_list_open"):
        yield Unit(block, line, line)
        return
    number, start = int(opening.attrs.get("start", 1)), 1
    for i, token in enumerate(block):
        if token.type == "list_item_close" and token.level == 1:
            item = block[start : i + 1]
            numbered = opening.copy(attrs={"start": number})
            yield Unit([numbered, *item, closing], (item[0].map or [line])[0], line)
            number, start = number + 1, i + 1


class _Heading(Heading):
    LEVEL_ALIGN = {}  # noqa: RUF012  as rich has it; all on the left


class _Code(CodeBlock):
    """As wide as its lines, in the terminal's own colours: it can be copied."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip()
        yield Syntax(code, self.lexer_name, theme="ansi_dark", word_wrap=True, background_color="default")


class _Table(TableElement):
    """Words that are longer than their column are folded: rich cuts them off, and Chinese sentences are one word."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for cell in self.header.row.cells if self.header and self.header.row else ():
            table.add_column(cell.content, overflow="fold", justify=cell.justify)
        for row in self.body.rows if self.body else ():
            table.add_row(*(cell.content for cell in row.cells))
        yield table


class _Tokens(Markdown):
    """Markdown that has been parsed."""

    elements = Markdown.elements | {
        "heading_open": _Heading,
        "fence": _Code,
        "code_block": _Code,
        "table_open": _Table,
    }

    def __init__(self, tokens: Sequence[Token]) -> None:
        super().__init__("", hyperlinks=False)  # an address is seen, so none can hide behind a text
        self.parsed = list(tokens)
