"""A terminal for tests: a real pseudo-terminal with a program in it, and the screen that a person would see."""

import asyncio
import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyte

from helpers import eventually

HISTORY = 5000  # lines


class Screen(pyte.HistoryScreen):
    """A screen that answers the questions that programs ask their terminal."""

    def __init__(self, columns: int, lines: int, master: int) -> None:
        super().__init__(columns, lines, history=HISTORY)
        self._master = master

    def write_process_input(self, data: str) -> None:
        os.write(self._master, data.encode())


class Console:
    """A program in a terminal."""

    def __init__(self, process: subprocess.Popen[bytes], screen: Screen, master: int) -> None:
        self.process = process
        self.screen = screen
        self.bytes = b""  # all that it has written
        self._master = master
        self._stream = pyte.ByteStream(screen)
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._master, 65_536)
        except OSError:  # the program has ended
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._master)
            return
        self.bytes += data
        self._stream.feed(data)

    @property
    def text(self) -> str:
        """What stands in the terminal, with what has scrolled away."""
        above = ["".join(line[x].data for x in range(self.screen.columns)) for line in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*above, *self.screen.display]).rstrip()

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def send(self, line: str) -> None:
        """Write a line and press Enter."""
        self.type(f"{line}\r")

    async def see(self, text: str, times: int = 1, seconds: float = 10) -> str:
        """The terminal's text once it has this in it."""
        try:
            await eventually(lambda: self.text.count(text) >= times, seconds)
        except TimeoutError:
            raise AssertionError(f"{text!r} is not to be seen in:\n{self.text}") from None
        return self.text

    async def ended(self, seconds: float = 5) -> int:
        """The exit code."""
        await eventually(lambda: self.process.poll() is not None, seconds)
        return int(self.process.returncode)


@contextmanager
def console(command: list[str], env: dict[str, str], *, columns: int = 80, lines: int = 24) -> Iterator[Console]:
    """A program in a terminal of its own while the block runs; for the inside of a running loop."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    env = {k: v for k, v in env.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")} | {"TERM": "xterm-256color"}
    process = subprocess.Popen(command, env=env, stdin=slave, stdout=slave, stderr=slave, preexec_fn=_own(slave))
    os.close(slave)
    running = Console(process, Screen(columns, lines, master), master)
    try:
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        asyncio.get_running_loop().remove_reader(master)
        os.close(master)


def _own(slave: int) -> Callable[[], None]:
    """In the child: this is the terminal that Ctrl-C comes from."""

    def run() -> None:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    return run
