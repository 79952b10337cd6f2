"""All votes as columns of numbers: what a million of them need in memory, and all that ratings need of them.

Entries of the stream `votes` come in, in their order; arrays go out. Names of models, voters and sets of categories are
numbers here, given in the order in which they are first seen. Rows are only ever added, so a view of them stays true
while more come in. It knows no Redis and no ratings.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker import votes
from broker.votes import KINDS

BLIND, NAMED, LATE = range(len(KINDS))
OUTCOMES = {b"a": 0, b"b": 1, b"tie": 2, b"bad": 2}
DAY_MS = 86_400_000
TYPES = {
    "kind": np.uint8,
    "outcome": np.uint8,  # 0: a won, 1: b won, 2: a tie, or both were bad
    "leak": np.bool_,
    "a": np.int32,
    "b": np.int32,
    "voter": np.int32,  # 0: not known
    "at": np.int64,  # milliseconds since 1970
    "p": np.float32,  # the probability with which the pair was drawn; 0: it was not
    "categories": np.int32,  # a number of `Ballots.sets`
}
STYLES = 8  # of a, then of b: length, headers, lists, bold
MOST = 65_535  # of a style's count; so much is much
END_MS = 253_402_300_800_000  # the year 10000, of which dates know nothing

Entry = tuple[bytes, dict[bytes, bytes]]
Mask = NDArray[np.bool_]
NO_LABELS: Mapping[str, Sequence[str] | None] = {}


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """The votes up to some moment. Arrays have shape (m,), `styles` (m, 8)."""

    kind: NDArray[np.uint8]
    outcome: NDArray[np.uint8]
    leak: Mask
    a: NDArray[np.int32]
    b: NDArray[np.int32]
    voter: NDArray[np.int32]
    at: NDArray[np.int64]
    p: NDArray[np.float32]
    categories: NDArray[np.int32]
    styles: NDArray[np.uint16]
    names: Sequence[str]  # of models
    sets: Sequence[tuple[str, ...]]
    reading: int  # another one once the votes were read from the first one again
    labelled: int  # how often a judge has given votes further categories

    def __len__(self) -> int:
        return len(self.kind)

    def within(self, category: str) -> Mask:
        """Which votes have a category."""
        return np.fromiter((category in one for one in self.sets), bool, len(self.sets))[self.categories]

    def counts(self, mask: Mask) -> dict[str, int]:
        """How many of some votes have each category."""
        found: dict[str, int] = {}
        for names, count in zip(self.sets, np.bincount(self.categories[mask], minlength=len(self.sets)), strict=True):
            for name in names if count else ():
                found[name] = found.get(name, 0) + int(count)
        return found


class Ballots:
    """The votes so far."""

    def __init__(self, reading: int = 0, judged: Set[str] = frozenset()) -> None:
        """`judged`: categories of which a judge's word counts more than the vote's own."""
        self.reading = reading
        self.judged = judged
        self.labelled = 0
        self.seen = 0  # entries, those that are no votes included
        self.size = 0
        self.names: dict[str, int] = {}
        self.voters: dict[bytes, int] = {b"": 0}
        self.sets: dict[tuple[str, ...], int] = {}
        self._columns: dict[str, NDArray[Any]] = {name: np.empty(0, kind) for name, kind in TYPES.items()}
        self._styles = np.empty((0, STYLES), np.uint16)
        self._lock = Lock()  # votes come in a thread, and what a judge says in another

    def add(self, entries: Sequence[Entry], labels: Mapping[str, Sequence[str] | None] = NO_LABELS) -> list[str]:
        """Take entries of the stream, with what a judge said of their battles; what is no vote is left out.

        Gives the battles of those that were taken.
        """
        taken = [entry for _, entry in entries]
        with self._lock:
            self.seen += len(entries)
            try:
                battles, columns, styles = self._read(taken, labels)
            except (KeyError, ValueError):  # one of them is none, or is not complete
                taken = [_whole(vote) for _, vote in votes.decode(entries) if 0 <= vote.at < END_MS]
                battles, columns, styles = self._read(taken, labels)
            self._append(columns, styles)
        return battles

    def label(self, row: int, said: Sequence[str]) -> None:
        """Take what a judge says of a vote."""
        with self._lock:
            column = self._columns["categories"].copy()  # views go on with the old one, whose numbers they know
            named = self._together(list(self.sets)[column[row]], said)
            column[row] = self.sets.setdefault(named, len(self.sets))
            self._columns["categories"] = column
            self.labelled += 1

    def view(self) -> View:
        """The votes as they are now."""
        size = self.size  # looked up first: what has been added since is in the columns, and behind it
        return View(
            **{name: column[:size] for name, column in self._columns.items()},
            styles=self._styles[:size],
            names=tuple(self.names),
            sets=tuple(self.sets),
            reading=self.reading,
            labelled=self.labelled,
        )

    def people(self, numbers: Sequence[int]) -> dict[int, str]:
        """Voters' salted hashes by their numbers."""
        voters = list(self.voters) if numbers else []
        return {i: voters[i].decode() for i in numbers}

    def numbers(self, people: Sequence[str]) -> set[int]:
        """Voters' numbers by their salted hashes, of those who have voted."""
        return {self.voters[one.encode()] for one in people if one.encode() in self.voters}

    def _read(
        self, entries: Sequence[dict[bytes, bytes]], labels: Mapping[str, Sequence[str] | None]
    ) -> tuple[list[str], dict[str, Sequence[float]], NDArray[np.uint16]]:
        names, voters, sets = self.names, self.voters, self.sets
        kinds = {kind.encode(): i for i, kind in enumerate(KINDS)}
        battles = [e[b"battle"].decode() for e in entries]
        columns: dict[str, Sequence[float]] = {
            "kind": [kinds[e[b"kind"]] for e in entries],
            "outcome": [OUTCOMES[e[b"winner"]] for e in entries],
            "leak": [e.get(b"leak") == b"1" for e in entries],
            "at": [int(e[b"at"]) for e in entries],
            "p": [float(e.get(b"p") or 0) for e in entries],
        }
        if not all(0 <= p <= 1 for p in columns["p"]):
            raise ValueError("no probability")
        if columns["at"] and not 0 <= min(columns["at"]) <= max(columns["at"]) < END_MS:
            raise ValueError("no time")
        numbers = b" ".join(e[key] for e in entries for key in (b"style_a", b"style_b")).split()
        counts = [max(0, min(int(number), MOST)) for number in numbers]
        styles = np.array(counts, np.uint16).reshape(len(entries), STYLES)
        for side in ("a", "b"):  # last, so that hardly a name is learnt from what is no vote
            columns[side] = [names.setdefault(e[side.encode()].decode(), len(names)) for e in entries]
        columns["voter"] = [voters.setdefault(e.get(b"voter", b""), len(voters)) for e in entries]
        written = (e.get(b"categories", b"").decode().split() for e in entries)
        found = [self._together(one, labels.get(battle)) for one, battle in zip(written, battles, strict=True)]
        columns["categories"] = [sets.setdefault(one, len(sets)) for one in found]
        return battles, columns, styles

    def _together(self, written: Sequence[str], said: Sequence[str] | None) -> tuple[str, ...]:
        """A vote's categories by its own word and, if a judge has spoken, by that."""
        return tuple(sorted({*written} if said is None else {*written} - self.judged | {*said}))

    def _append(self, columns: dict[str, Sequence[float]], styles: NDArray[np.uint16]) -> None:
        end = self.size + len(styles)
        if end > len(self._styles):
            room = end + end // 4
            self._columns = {name: _grown(column, self.size, room) for name, column in self._columns.items()}
            self._styles = _grown(self._styles, self.size, room)
        for name, values in columns.items():
            self._columns[name][self.size : end] = values
        self._styles[self.size : end] = styles
        self.size = end


def _grown(column: NDArray[Any], size: int, room: int) -> NDArray[Any]:
    grown = np.empty((room, *column.shape[1:]), column.dtype)
    grown[:size] = column[:size]
    return grown


def _whole(vote: votes.Vote) -> dict[bytes, bytes]:
    flat = vote.encode()
    return {name.encode(): value.encode() for name, value in zip(flat[::2], flat[1::2], strict=True)}
