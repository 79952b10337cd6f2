"""How a blind round's two answers appear: both at one speed, so that speed gives nothing away. Pure: the clock is given.

Comes in: each side's text as its frames come. Goes out: pieces, whenever the caller asks for what is due. Both begin when
both have begun, and go on character by character alike, which is as fast as the slower one. When the shorter one has
ended, the other goes on as fast as both did, or as one reads, and never in a burst.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

TICK_SECONDS = 0.05  # between two looks at what is due
READ = 150.0  # characters a second that the longer answer has at least, once it is alone
LATE_SECONDS = 0.2  # a caller that looked so late makes up for no more


@dataclass(frozen=True, slots=True)
class Piece:
    """What one side shows next."""

    side: str
    seq: int  # 0, 1, …; 0 again: the text begins anew
    text: str
    end: bool = False


@dataclass(slots=True)
class _Side:
    parts: list[str] = field(default_factory=list)  # by the frames' numbers
    waiting: str = ""  # what came and is not shown
    shown: list[str] = field(default_factory=list)
    replaced: bool = False  # frames took the place of others, so what is shown may differ
    seq: int = 0
    ended: bool = False  # nothing more comes
    closed: bool = False  # and that was said

    def add(self, number: int, text: str) -> None:
        if self.ended:
            return  # it was stopped, and this had been on its way
        # Redis lost its last second, and another worker went on from there: see `broker.streams.Reader`.
        self.replaced = self.replaced or number < len(self.parts)
        self.parts[number:] = [text]
        if self.replaced:
            self._compare()
        else:
            self.waiting += text

    def _compare(self) -> None:
        whole, before = "".join(self.parts), "".join(self.shown)
        if whole[: len(before)] != before[: len(whole)]:
            before, self.shown, self.seq = "", [], 0
        self.waiting = whole[len(before) :]

    def take(self, count: int) -> str:
        text, self.waiting = self.waiting[:count], self.waiting[count:]
        self.shown.append(text)
        return text

    @property
    def done(self) -> bool:
        return self.ended and not self.waiting


class Pacing:
    """Two sides; without `paced` each shows what it has at once."""

    def __init__(self, sides: Sequence[str], paced: bool = True, held: bool = False) -> None:
        self._sides = {side: _Side() for side in sides}
        self._paced = paced
        self._held = held  # that a side has ended is not said until `release`
        self._began = 0.0  # when both had begun
        self._together = 0  # characters that each has shown while both went on
        self._alone_since: float | None = None
        self._allowed = 0.0  # characters that the longer one may show by now, a part of one included
        self._looked = -math.inf

    def add(self, side: str, number: int, text: str) -> None:
        """A frame of a side's answer, by its number; one below the last takes the place of what was there."""
        self._sides[side].add(number, text)

    def end(self, side: str) -> None:
        """A side's answer is whole."""
        self._sides[side].ended = True

    def stop(self) -> None:
        """Both end here: what was not shown is not shown any more, since it would show who was ahead."""
        for side in self._sides.values():
            side.waiting, side.ended = "", True

    def hurry(self) -> None:
        """Both have come: what is left may be shown at once."""
        self._paced = not all(side.ended for side in self._sides.values())

    def release(self) -> None:
        """The ends may be said."""
        self._held = False

    @property
    def finished(self) -> bool:
        """Whether all was given."""
        return all(side.closed for side in self._sides.values())

    @property
    def flows(self) -> bool:
        """Whether time alone makes more due; else only what comes does."""
        alone = any(side.done for side in self._sides.values()) or not self._paced
        return alone and any(side.waiting for side in self._sides.values())

    def take(self, now: float) -> list[Piece]:
        """What is due at this time, in seconds of any clock."""
        waited, self._looked = min(now - self._looked, LATE_SECONDS), now
        return self._pieces(self._due(now, waited) if self._paced else dict.fromkeys(self._sides, 10**9))

    def _due(self, now: float, waited: float) -> dict[str, int]:
        sides = self._sides
        if not self._together and self._alone_since is None:
            if not all(side.waiting or side.ended for side in sides.values()):
                return dict.fromkeys(sides, 0)
            self._began = now
        open_ = [name for name, side in sides.items() if not side.done]
        if len(open_) == len(sides):
            count = min(len(side.waiting) for side in sides.values())
            self._together += count
            return dict.fromkeys(sides, count)
        if self._alone_since is None:
            self._alone_since, waited = now, 0.0
        rate = max(READ, self._together / max(self._alone_since - self._began, TICK_SECONDS))
        self._allowed = min(self._allowed, 1.0) + rate * waited
        due = {name: int(self._allowed) for name in open_}
        for name in open_:
            self._allowed -= min(due[name], len(sides[name].waiting))
        return dict.fromkeys(sides, 0) | due

    def _pieces(self, due: dict[str, int]) -> list[Piece]:
        found = []
        for name, side in self._sides.items():
            text = side.take(due[name])
            end = side.done and not side.closed and not self._held
            if text or end:
                found.append(Piece(name, side.seq, text, end))
                side.seq, side.closed = side.seq + 1, side.closed or end
        return found
