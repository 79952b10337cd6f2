"""`fleetchat chat`: a chat in a terminal, whose answers come through the queue like everyone's.

The terminal holds the chat; nothing of it is stored in the fleet, and an answer ends with its reader. Comes in: lines of
the editor, or one question from a pipe. Goes out: answers on the screen, and files. Errors are a sentence, and the chat
goes on.
"""

import asyncio
import contextlib
import random
import re
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.text import Text
from rich.theme import Theme

from broker import chat, queues, registry, terminal_files
from broker.connection import Broker, redis_errors
from broker.errors import BadRequest, FleetError, SetupError
from broker.logs import hide
from broker.messages import OPTIONAL, RANGES, ChatRequest, Message, Sampling, wrong_kind
from broker.tasks import beside
from broker.terminal_editor import Editor, Words
from broker.terminal_screen import Display, Held, Plain, Rendered, Said, Whole, clean

DRAW_SECONDS = 1 / 15
DRAW_SHARE = 4  # a drawing that takes long is followed by a pause so many times as long
LOOK_SECONDS = 1.0
SEEDS = 2**31
THEME = Theme(
    {"markdown.code": "cyan", "markdown.h1": "bold underline", "markdown.h2": "bold", "markdown.link": "none"}
)
SETTINGS = [name for name in RANGES if "logprobs" not in name]
ENDS = {"length": "cut off at the limit of tokens", "content_filter": "cut off by a filter"}


@dataclass(frozen=True, slots=True)
class Look:
    """How the terminal is used."""

    plain: bool = False
    multiline: bool = False


@dataclass
class Talk:
    """What is asked: it changes as the chat goes on."""

    model: str = ""
    system: str = ""
    settings: dict[str, int | float | None] = field(default_factory=dict)  # of Sampling, where they are not its own
    messages: list[Message] = field(default_factory=list)  # user and assistant in turns; the last may be unanswered

    def ask(self, text: str) -> None:
        """A new question; it takes the place of one that has no answer."""
        if self.messages and self.messages[-1].role == "user":
            self.messages.pop()
        self.messages.append(Message("user", text))

    @property
    def all(self) -> tuple[Message, ...]:
        """With the system prompt."""
        return (*([Message("system", self.system)] if self.system else []), *self.messages)

    def request(self) -> ChatRequest:
        """The question for the next answer. Without a seed of its own each has another one."""
        sampling = replace(Sampling(seed=random.randrange(SEEDS)), **self.settings)  # type: ignore[arg-type]
        return ChatRequest(self.model, self.all, sampling)


def piped() -> str | None:
    """All of standard input; None where a person sits at both sides. Raises BadRequest when it is not UTF-8."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return None
    try:
        return sys.stdin.buffer.read().decode().rstrip("\n")
    except UnicodeDecodeError:
        raise BadRequest("The text is not valid UTF-8.") from None


async def run(broker: Broker, history: Path, model: str, talk: Talk, look: Look, question: str | None) -> None:
    """Chat until the person leaves; or answer one question.

    Raises:
        SetupError: no model can be picked.
        FleetError: the model is none that answers; of one question, whatever its answer ended with.
    """
    main = asyncio.current_task()
    assert main is not None
    for sign in (signal.SIGHUP, signal.SIGTERM):  # a window that is closed frees its slot at once
        asyncio.get_running_loop().add_signal_handler(sign, main.cancel)
    plain = look.plain or not sys.stdout.isatty()
    console = Console(highlight=False, theme=THEME, color_system=None if plain else "auto", no_color=plain or None)
    talk.system = clean(talk.system.encode("utf-8", "replace").decode())
    if question is None:
        terminal = Terminal(broker, console, talk, look, history)
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, terminal.stop)
        await terminal.run(model)
        return
    talk.model = await _pick(broker, model, None)
    talk.ask(question)
    display = Rendered(console) if not plain else Plain(console) if sys.stdout.isatty() else Held(console)
    said = Said()
    await _follow(broker, talk.request(), said, display)
    said.check()


async def _follow(broker: Broker, request: ChatRequest, said: Said, display: Display) -> None:
    """Show an answer while it grows, and all that it has said at its end, whichever that is."""

    async def draw() -> None:
        while True:
            begun = time.monotonic()
            display.update(said)
            await asyncio.sleep(max(DRAW_SECONDS, DRAW_SHARE * (time.monotonic() - begun)))

    async def look() -> None:
        while said.first is None:
            await asyncio.sleep(LOOK_SECONDS)
            with contextlib.suppress(FleetError):
                async with redis_errors():
                    (said.place,) = await queues.places(broker, [(request.model, request.request_id)])

    with display:
        try:
            async with chat.ask(broker, request) as frames:
                said.place = frames.place
                async with beside(draw(), look()):
                    async for received in frames:
                        said.add(received.decode())
        finally:
            display.finish(said)


async def _pick(broker: Broker, wanted: str, editor: Editor | None) -> str:
    """The model that was named, the only one that is ready, or the one that a person picks."""
    if wanted:
        card = await registry.find(broker, wanted)
        if card.kind not in ChatRequest.KINDS:
            raise wrong_kind(ChatRequest(wanted, ()))
        return wanted
    names = await _names(broker)
    if not names:
        raise SetupError("No model is ready. Start one with: fleetchat up. See: fleetchat status.")
    if len(names) == 1:
        return names[0]
    if editor is None:
        raise SetupError(f"Say which model: {', '.join(names)}.")
    while True:
        said = await editor.ask("model (number or name) ")
        if said in names:
            return said
        if said.isdecimal() and 1 <= int(said) <= len(names):
            return names[int(said) - 1]


async def _names(broker: Broker) -> list[str]:
    """The models that answer now."""
    found = await registry.models(broker)
    return [m.card.name for m in found if m.state == "ready" and m.card.kind in ChatRequest.KINDS]


class Terminal:
    """One chat."""

    def __init__(self, broker: Broker, console: Console, talk: Talk, look: Look, history: Path) -> None:
        self._broker = broker
        self._console = console
        self._talk = talk
        self._plain = look.plain
        self._names: list[str] = []  # of the models, for completion
        self._answering: asyncio.Task[None] | None = None
        self._commands: dict[str, tuple[str, str, Callable[[str], object]]] = {
            "!!exit": ("", "leave, as Ctrl-D does", self._exit),
            "!!reset": ("", "begin again; the system prompt stays", self._reset),
            "!!remove": ("", "take back the last question and its answer", self._remove),
            "!!regen": ("", "answer the last question again", self._regen),
            "!!save": ("FILE", "write the chat as OpenAI's messages (JSON)", self._save),
            "!!load": ("FILE", "go on with a chat that was saved here or by FastChat", self._load),
            "!!model": ("NAME", "go on with another model; without a name: which there are", self._model),
            "!!system": ("TEXT", "set the system prompt; without a text: take it away", self._system),
            "!!set": ("NAME VALUE", f"set {', '.join(SETTINGS[:3])} …; without a value: as it was", self._set),
            "!!help": ("", "show this", self._help),
        }
        words: Words = {
            **dict.fromkeys(self._commands, list),
            "!!save": None,
            "!!load": None,
            "!!model": lambda: self._names,
            "!!set": lambda: SETTINGS,
        }
        self._editor = Editor(history, words, multiline=look.multiline, plain=look.plain)
        self._sends = "Esc Enter sends" if look.multiline else "Esc Enter begins a line"

    def stop(self) -> None:
        """Ctrl-C: end the answer that is being written."""
        if self._answering:
            self._answering.cancel()

    async def run(self, wanted: str) -> None:
        """Until the person leaves."""
        self._names = await _names(self._broker)
        if not wanted and len(self._names) > 1:
            self._list_models()
        with contextlib.suppress(EOFError, KeyboardInterrupt), _silent_keys():
            self._talk.model = await _pick(self._broker, wanted, self._editor)
            self._say(f"{self._talk.model}: {self._sends}, Ctrl-C stops an answer, !!help shows the commands.")
            await self._go_on()

    async def _go_on(self) -> None:
        leaving = False
        while True:
            try:
                line = await self._editor.read()
            except KeyboardInterrupt:
                if leaving:
                    return
                leaving = True
                self._say("Ctrl-C again leaves.")
                continue
            leaving = False
            try:
                await self._take(line)
            except FleetError as error:
                self._console.print(Text(clean(hide(str(error))), "red"), soft_wrap=True)

    async def _take(self, line: str) -> None:
        if not re.match(r"!!\w", line):
            if line.strip():
                self._talk.ask(line)
                await self._answer()
            return
        word, _, rest = line.partition(" ")
        if word not in self._commands:
            raise BadRequest(f"There is no command {word}. !!help shows those that there are.")
        done = self._commands[word][2](rest.strip())
        if asyncio.iscoroutine(done):
            await done

    async def _answer(self) -> None:
        """Answer what was asked last. What an answer has said before it was stopped or failed stays in the chat."""
        request, said = self._talk.request(), Said()
        display = Plain(self._console) if self._plain else Rendered(self._console)
        self._answering = asyncio.create_task(_follow(self._broker, request, said, display))
        stopped = False
        try:
            await self._answering
        except asyncio.CancelledError:
            if (chatting := asyncio.current_task()) and chatting.cancelling():
                raise  # it is the chat that is ended, by a signal
            stopped = True
        finally:
            self._answering = None
            if text := str(said.text):
                self._talk.messages.append(Message("assistant", text))
        said.check()
        self._say(_summary(said, stopped))

    def _say(self, text: str) -> None:
        self._console.print(Text(clean(text), "dim"))

    def _exit(self, _: str) -> None:
        raise EOFError

    def _reset(self, _: str) -> None:
        self._talk.messages.clear()
        self._say("The chat begins again.")

    def _remove(self, _: str) -> None:
        messages = self._talk.messages
        if not messages:
            raise BadRequest("There is nothing to take back.")
        while messages and messages.pop().role != "user":
            pass
        self._say("The last question and its answer are gone.")

    async def _regen(self, _: str) -> None:
        messages = self._talk.messages
        if not messages:
            raise BadRequest("There is no question to answer again.")
        if messages[-1].role == "assistant":
            messages.pop()
        await self._answer()

    async def _save(self, name: str) -> None:
        if not name:
            raise BadRequest("Say where: !!save FILE.")
        path = terminal_files.place(name)
        if path.exists():
            try:
                sure = await self._editor.ask(f"{path} is there already. Write over it? [y/N] ")
            except (EOFError, KeyboardInterrupt):
                sure = ""
            if sure.lower() not in ("y", "yes"):
                self._say("Nothing was saved.")
                return
        terminal_files.save(path, self._talk.model, self._talk.all)
        self._say(f"Saved as {path}.")

    def _load(self, name: str) -> None:
        if not name:
            raise BadRequest("Say which: !!load FILE.")
        messages = terminal_files.load(terminal_files.find(name))
        self._talk.system = "\n\n".join(m.content for m in messages if m.role == "system")
        self._talk.messages = [m for m in messages if m.role != "system"]
        for message in self._talk.messages:
            if message.role == "user":
                self._console.print(Text(f"\n> {clean(message.content)}\n", "bold"))
            else:
                self._console.print(Text(clean(message.content)) if self._plain else Whole(message.content))
        self._say(f"The chat of {name} goes on; it has {len(self._talk.messages)} messages.")

    async def _model(self, name: str) -> None:
        self._names = await _names(self._broker)
        if name:
            self._talk.model = await _pick(self._broker, name, None)
            self._say(f"{name} answers from now on.")
        else:
            self._list_models()

    def _list_models(self) -> None:
        for number, name in enumerate(self._names, 1):
            self._console.print(Text(f"{number:>3}  {name}{' (this one)' if name == self._talk.model else ''}"))

    def _system(self, text: str) -> None:
        self._talk.system = text
        self._say("The system prompt is set." if text else "There is no system prompt.")

    def _set(self, words: str) -> None:
        name, _, value = words.partition(" ")
        if name and name not in SETTINGS:
            raise BadRequest(f"There is no setting {name}. There are: {', '.join(SETTINGS)}.")
        settings = {key: old for key, old in self._talk.settings.items() if key != name}
        if value:
            settings[name] = _number(name, value.strip())
            replace(Sampling(), **settings).check()  # type: ignore[arg-type]
        self._talk.settings = settings
        self._say(", ".join(f"{key} {value}" for key, value in settings.items()) or "Everything is as it was.")

    def _help(self, _: str) -> None:
        for command, (follows, about, _do) in self._commands.items():
            self._console.print(Text(f"  {f'{command} {follows}':<18} {about}"))


def _number(name: str, text: str) -> int | float | None:
    if text == "none" and name in OPTIONAL:
        return None
    try:
        return int(text) if RANGES[name][0] is int else float(text)
    except ValueError:
        raise BadRequest(f"{name} is no number: {text!r:.40}.") from None


def _summary(said: Said, stopped: bool) -> str:
    """The quiet line below an answer."""
    if stopped and said.first is None:
        return "stopped"
    end = said.last.end if said.last and said.last.end else {}
    writing = said.seconds - (said.first or 0)
    parts = [
        "stopped" if stopped else ENDS.get(str(end.get("reason")), ""),
        f"{said.tokens} token{'' if said.tokens == 1 else 's'}" if said.tokens else "",
        f"{said.tokens / writing:.1f} tokens/s" if said.tokens > 1 and writing > 0 else "",
        "" if said.first is None else f"first after {said.first:.2f} s",
    ]
    return ", ".join(filter(None, parts))


@contextmanager
def _silent_keys() -> Iterator[None]:
    """What is typed while an answer comes does not appear in it: the editor gets it afterwards, with its Enter."""
    before = termios.tcgetattr(sys.stdin)
    silent = termios.tcgetattr(sys.stdin)
    silent[0] &= ~termios.ICRNL
    silent[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
