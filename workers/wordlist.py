"""A list of words and patterns that a text must not have, from a file: one a line, `#` begins a comment.

A word, or several in a row, matches as whole words; in a script that puts no spaces between words, such as Chinese,
wherever it stands. Case, width and accents that were only put on top make no difference, nor do characters that nobody
sees. A line `/…/` or `re: …` is a pattern, which sees the text with the same tricks taken out, and ignores case.

All of it takes time in proportion to the text, but for patterns, which may be written so that they never end: `regex`
lets them go on for PATTERN_SECONDS together, and other threads run meanwhile.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

import regex

from broker.errors import SetupError, Unavailable

PATTERN_SECONDS = 3.0  # of this process, for all patterns in one text
MARKS = r"\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"  # combining ones, of no single script
UNSPACED = r"\p{Han}\u3040-\u30ff\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
UNSEEN = regex.compile(rf"[\p{{Cf}}\p{{Default_Ignorable_Code_Point}}{MARKS}]+")
BREAK = regex.compile(rf"(?<=[{UNSPACED}])\s+(?=[{UNSPACED}])")  # of a line, or a trick: it means nothing there
GAP = regex.compile(r"[^\p{L}\p{M}\p{N}\p{S}]+")
TOKEN = regex.compile(rf"(?V1)[{UNSPACED}]|[[\p{{L}}\p{{M}}\p{{N}}]--[{UNSPACED}]]+|.")
PATTERN = regex.compile(r"/(.+)/|re:\s*(.+)")

Words = tuple[str, ...]


class WordList:
    """What a text is looked through for."""

    def __init__(self, lines: Sequence[str], name: str) -> None:
        """Raises SetupError: a line is a pattern that cannot be read, or has nothing to look for."""
        self._name = name
        self._words: dict[str, list[tuple[Words, int]]] = defaultdict(list)  # by the first one; with the line's number
        self._patterns: list[tuple[Any, int]] = []
        for number, line in enumerate(lines, 1):
            line = line.strip()
            if line and not line.startswith("#"):
                self._add(line, number)

    @classmethod
    def read(cls, file: Path) -> "WordList":
        """Raises SetupError: the file cannot be read, or as above."""
        try:
            return cls(file.read_text(encoding="utf-8-sig").splitlines(), file.name)
        except OSError as error:
            raise SetupError(f"The list of words {file} cannot be read: {error.strerror}.") from None
        except ValueError:
            raise SetupError(f"The list of words {file} is not UTF-8.") from None

    def find(self, text: str) -> str:
        """Where the list has something that is in the text, as `line 3 of words.txt`; "" if it has nothing.

        Raises:
            Unavailable: the patterns took too long.
        """
        found = self._word(tokens(text)) or self._pattern(readable(text))
        return f"line {found} of {self._name}" if found else ""

    def _add(self, line: str, number: int) -> None:
        if pattern := PATTERN.fullmatch(line):
            try:
                compiled = regex.compile(pattern[1] or pattern[2], regex.IGNORECASE)
            except regex.error as error:
                raise SetupError(f"{self._name}, line {number}: the pattern cannot be read: {error}.") from None
            self._patterns.append((compiled, number))
        elif words := tokens(line):
            self._words[words[0]].append((words, number))
        else:
            raise SetupError(f"{self._name}, line {number}: there is nothing in it to look for.")

    def _word(self, said: Words) -> int:
        for place, first in enumerate(said):
            for words, number in self._words.get(first, ()):
                if said[place : place + len(words)] == words:
                    return number
        return 0

    def _pattern(self, text: str) -> int:
        end = time.process_time() + PATTERN_SECONDS  # the clock that `regex` goes by
        for pattern, number in self._patterns:
            try:
                if pattern.search(text, timeout=max(0.0, end - time.process_time()), concurrent=True):
                    return number
            except TimeoutError:
                raise Unavailable(f"The patterns of {self._name} took too long, the last in line {number}.") from None
        return 0


def readable(text: str) -> str:
    """The text as a reader sees it: what is written in several ways is the same, what nobody sees is gone."""
    return str(UNSEEN.sub("", normalize("NFKC", text)))


def tokens(text: str) -> Words:
    """Words, characters of scripts without spaces, and symbols; what is between them is a single space."""
    plain = readable(readable(text).casefold())
    return tuple(TOKEN.findall(GAP.sub(" ", BREAK.sub("", plain)).strip()))
