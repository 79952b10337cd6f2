"""The line that a person writes in a terminal: editing, history, several lines, completion.

Comes in: keys. Goes out: a message or a command. The history is a file that only its owner can read.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.shortcuts import CompleteStyle

HISTORY_BYTES = 1_000_000
ENTRY = b"\n# "  # what an entry of prompt_toolkit's file begins with

Words = Mapping[str, Callable[[], Sequence[str]] | None]
"""Commands -> what may follow; None: the path of a file."""


class Editor:
    """Reads messages and commands.

    Args:
        history: the file; it is made if it is not there.
        words: the commands.
        multiline: Enter begins a line, and Esc Enter, or Ctrl-D on an empty one, sends.
    """

    def __init__(self, history: Path, words: Words, *, multiline: bool = False, plain: bool = False) -> None:
        self._depth = ColorDepth.DEPTH_1_BIT if plain else None
        self._plain = plain
        self._session: PromptSession[str] = PromptSession(
            history=_history(history),
            auto_suggest=None if plain else AutoSuggestFromHistory(),
            completer=_Completer(words),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            key_bindings=_bindings(multiline),
            multiline=True,
            enable_open_in_editor=True,
            color_depth=self._depth,
        )

    async def read(self) -> str:
        """One message or command; raises EOFError on Ctrl-D and KeyboardInterrupt on Ctrl-C."""
        return _valid(
            await self._session.prompt_async(self._bold("> "), prompt_continuation=lambda *_: "· ", handle_sigint=False)
        )

    async def ask(self, question: str) -> str:
        """A short answer, which is not kept; raises as `read`."""
        session: PromptSession[str] = PromptSession(history=InMemoryHistory(), color_depth=self._depth)
        return _valid(await session.prompt_async(self._bold(question), handle_sigint=False)).strip()

    def _bold(self, text: str) -> str | ANSI:
        return text if self._plain else ANSI(f"\x1b[1m{text}\x1b[0m")


def _valid(text: str) -> str:
    """Bytes that are no UTF-8 come as half characters, which nothing else takes."""
    return text.encode("utf-8", "replace").decode()


def _bindings(multiline: bool) -> KeyBindings:
    bindings = KeyBindings()
    session_ends = Condition(lambda: not multiline)

    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    def line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @bindings.add("enter", filter=~session_ends)
    def _(event: KeyPressEvent) -> None:
        command = event.current_buffer.text.startswith("!!")
        (send if command else line)(event)

    @bindings.add("c-d", filter=~session_ends)
    def _(event: KeyPressEvent) -> None:
        if not event.current_buffer.text:
            event.app.exit(exception=EOFError)
        elif not event.current_buffer.document.current_line:
            send(event)

    bindings.add("enter", filter=session_ends)(send)
    bindings.add("escape", "enter", filter=session_ends)(line)
    bindings.add("c-j")(line)
    bindings.add("escape", "enter", filter=~session_ends)(send)
    return bindings


class _Completer(Completer):
    """Commands by their beginning, then what may follow."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        command, gap, rest = document.text_before_cursor.partition(" ")
        if not gap:
            yield from _matching(self._words, command if command.startswith("!!") else "\0")
        elif command in self._words and (follow := self._words[command]) is not None:
            yield from _matching(follow(), rest)
        elif command in self._words:
            yield from self._paths.get_completions(Document(rest), complete_event)


def _matching(words: Iterable[str], begun: str) -> Iterable[Completion]:
    return (Completion(word, -len(begun)) for word in words if word.startswith(begun))


def _history(path: Path) -> History:
    """The file's; where it cannot be written, one that ends with this chat."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        path.chmod(0o600)
        if path.stat().st_size > HISTORY_BYTES:
            newest = path.read_bytes()[-HISTORY_BYTES // 2 :]
            path.write_bytes(newest[max(0, newest.find(ENTRY)) :])
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)
