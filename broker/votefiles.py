"""Files of votes as records: JSON lines, one JSON list, or CSV, plain or gzipped, read a little at a time.

Whatever is in them, reading goes on: what cannot be read comes out as a `Wrong` that says why, with its line.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

from broker.errors import SetupError

MOST_BYTES = 64 * 2**20  # of one record
CHUNK = 1 << 16
GZIP = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"
DECODER = json.JSONDecoder()
GAP = re.compile(r"[\s,]*")
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)


@dataclass(frozen=True, slots=True)
class Wrong:
    """What stands there is no record."""

    why: str


def records(file: Path) -> Iterator[tuple[int, dict[str, Any] | Wrong]]:
    """Each record of a file, with the line that it begins on.

    Raises:
        SetupError: it cannot be opened.
    """
    with _open(file) as raw:
        line = 0
        try:
            stream: Any = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == GZIP else raw
            for line, found in _reader(stream)(stream):
                good = isinstance(found, dict | Wrong)
                yield line, found if good else Wrong("an object is expected")
        except DAMAGED:
            yield line + 1, Wrong("the compressed file is damaged, or ends too early; nothing behind this can be read")
        except UnicodeDecodeError as error:
            yield line + 1, Wrong(f"this is not UTF-8 ({error.reason}); nothing behind this can be read")
        except OSError as error:
            raise SetupError(f"{file} cannot be read: {error.strerror}.") from None


def digest(file: Path) -> str:
    """What a file is known by, whatever its name."""
    with _open(file) as raw:
        found = blake2b(digest_size=12)
        while block := raw.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _open(file: Path) -> io.BufferedReader:
    try:
        return open(file, "rb")
    except OSError as error:
        raise SetupError(f"{file} cannot be read: {error.strerror}.") from None


def _reader(stream: Any) -> Any:
    first = stream.peek(CHUNK).removeprefix(BOM).lstrip()
    if first.startswith(b"["):
        return _list
    heading = first.partition(b"\n")[0]
    return _table if b"model_a" in heading and not heading.startswith(b"{") else _lines


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, Any]]:
    number = 0
    while line := stream.readline(MOST_BYTES):
        number += 1
        if len(line) == MOST_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(MOST_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, Wrong(f"the line has more than {MOST_BYTES} bytes")
        elif line.strip():
            yield number, _parse(line.removeprefix(BOM) if number == 1 else line)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        return Wrong("this is not UTF-8")
    except (ValueError, RecursionError) as error:
        return Wrong(_no_json(error))


def _no_json(error: Exception) -> str:
    deep = isinstance(error, RecursionError)
    return "this is nested too deep" if deep else f"this is not JSON: {getattr(error, 'msg', error)}"


def _list(stream: IO[bytes]) -> Iterator[tuple[int, Any]]:
    with io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        window = _Window(text)
        window.move(window.held.index("[") + 1)
        while window.next() != "]":
            line = window.line
            try:
                yield line, window.element()
            except (ValueError, RecursionError) as error:
                yield line, Wrong(f"{_no_json(error)}; nothing behind this can be read")
                return


class _Window:
    """The part of a JSON list that is in memory, and a place in it."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._step = CHUNK
        self._place = 0
        self.held = text.read(CHUNK)
        self.line = 1

    def move(self, place: int) -> None:
        """Go on to a place."""
        self.line += self.held.count("\n", self._place, place)
        self._place = place

    def next(self) -> str:
        """What stands before the next element, or behind the last one; "" at the file's end."""
        while True:
            gap = GAP.match(self.held, self._place)
            self.move(gap.end() if gap else self._place)
            if self._place < len(self.held) or not self._more():
                return self.held[self._place : self._place + 1]

    def element(self) -> Any:
        """The element that stands here.

        Raises:
            ValueError, RecursionError: it is none.
        """
        while True:
            try:
                value, end = DECODER.raw_decode(self.held, self._place)
            except ValueError:
                if not self._more():
                    raise
            else:
                self.move(end)
                self._step = CHUNK
                return value

    def _more(self) -> bool:
        more = self._text.read(self._step) if len(self.held) - self._place < MOST_BYTES else ""
        self.held, self._place = self.held[self._place :] + more, 0
        self._step *= 2  # of a long element little is read twice
        return bool(more)


def _table(stream: IO[bytes]) -> Iterator[tuple[int, Any]]:
    with io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        rows = csv.DictReader(text)
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield rows.line_num, Wrong(f"this is no row of a table: {error}")
                continue
            if row is None:
                return
            whole = None not in row and None not in row.values()
            yield rows.line_num, row if whole else Wrong("the row has not as many fields as the heading")
