"""What the forms share: values of a vote out of a record, each checked, and errors that say which one is wrong."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

from broker import features
from broker.arena import at_address
from broker.fields import is_number
from broker.votes import KINDS, WINNERS, Style, Vote

OURS, FASTCHAT, CLEAN, ARENA_RANK = "fleetchat", "fastchat", "clean", "arena-rank"

Said = dict[str, Any]
"""What was said: {turns: [{text, a, b}]}; of another program's record also `form` and, as JSON, `record`."""
Turn = tuple[str, str, str]
"""A question, and the answers of both sides."""

SALTED = re.compile(r"[0-9a-f]{18}")  # a voter who was one of ours, or has been imported before
ID = re.compile(r"[\w:.-]{1,100}")
NAME = re.compile(r"(?=\S)[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{1,200}(?<=\S)")
LATEST = 4_102_444_800_000  # milliseconds; the year 2100


class NotOne(Exception):
    """A record of a log that is about something else than a vote on two models."""


class Unusable(ValueError):
    """A record that looks like a vote, and is none that can count; says why."""


@dataclass(frozen=True, slots=True)
class Found:
    """A vote out of a file."""

    vote: Vote
    said: Said | None


@dataclass(frozen=True, slots=True)
class Source:
    """What a record does not say of itself."""

    salt: bytes  # for voters
    unique: Callable[[], str]  # an id, the same one whenever this place of this file is read
    keep: bool = True  # what was said, and the record

    def voter(self, who: Any) -> str:
        """Who voted, salted; "" if nobody knows."""
        who = str(who) if isinstance(who, int) and not isinstance(who, bool) else who
        if not isinstance(who, str) or not who:
            return ""
        return who if SALTED.fullmatch(who) else at_address(self.salt, who)


def named(a: Any, b: Any) -> tuple[str, str]:
    """The models' names, if they can be."""
    for name in (a, b):
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise Unusable("a model's name is empty, too long, or none")
    if a == b:
        raise Unusable(f"{a} stands on both sides")
    return a, b


def a_vote(battle: str, kind: str, winner: str, names: tuple[str, str], **about: Any) -> Vote:
    """A vote of these values, if they can be one's."""
    if not ID.fullmatch(battle):
        raise Unusable("its id is too long, or has other characters than letters, digits and :.-")
    if kind not in KINDS or winner not in WINNERS:
        raise Unusable(f"kind: one of {', '.join(KINDS)}; winner: one of {', '.join(WINNERS)}")
    return Vote(battle, kind, winner, *names, **about)


def described(turns: Sequence[Turn], names: tuple[str, str]) -> dict[str, Any]:
    """What a vote keeps of its texts."""
    found = features.describe(turns, names)
    return {name: getattr(found, name) for name in ("categories", "style_a", "style_b", "leak")}


def styled(record: dict[str, Any]) -> dict[str, Any]:
    """What a record says of its answers' style, and whether they say who they are."""
    styles = {name: a_style(record.get(name)) for name in ("style_a", "style_b")}
    return {"leak": record.get("leak") in (True, "True", "true", "1"), **styles}


def both(a: Sequence[tuple[str, str]], b: Sequence[tuple[str, str]]) -> list[Turn]:
    """The turns of two sides that were asked the same."""
    if len(a) != len(b):
        raise Unusable(f"side A has {len(a)} turns, and side B {len(b)}")
    return [(question, answer, other) for (question, answer), (_, other) in zip(a, b, strict=True)]


def ours_of(vote: Vote) -> dict[str, Any]:
    """What another program's record does not have a place for, under the name `fleetchat`."""
    return {"battle": vote.battle, "p": vote.p}


def ours_in(record: dict[str, Any]) -> tuple[str, float] | None:
    """Id and probability of a vote that came from here."""
    ours = record.get(OURS)
    if not isinstance(ours, dict) or not isinstance(ours.get("battle"), str):
        return None
    return ours["battle"], a_number(ours.get("p"))


def identity(conversation: Any, stamp: Any, winner: str, record: dict[str, Any]) -> str:
    """A vote's id: the same one in FastChat's log and in what it makes of it."""
    if isinstance(conversation, str) and conversation and is_number(stamp):
        known = f"{conversation} {float(stamp):.4f} {winner}"
    else:
        known = json.dumps(record, sort_keys=True)
    return blake2b(known.encode(errors="replace"), digest_size=12).hexdigest()


def a_time(raw: Any, name: str) -> int:
    """Milliseconds of a time in seconds (or in milliseconds, when it would be long after our days) or in ISO 8601."""
    try:
        if isinstance(raw, str):
            raw = float(raw) if re.fullmatch(r"[\d.]+", raw) else _moment(raw)
    except ValueError:
        raise Unusable(f"{name}: {raw[:40]!r} is no time") from None
    if not is_number(raw):
        raise Unusable(f"{name}: a number of seconds is expected")
    found: int = round(raw if raw > 1e11 else raw * 1000)
    if not 0 <= found < LATEST:
        raise Unusable(f"{name}: {raw} is no time of a vote")
    return found


def _moment(text: str) -> float:
    found = datetime.fromisoformat(text)
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def turns_in(record: dict[str, Any], turns: Sequence[Turn]) -> int:
    """How many turns a battle had."""
    given = record.get("turns", record.get("turn"))
    return len(turns) or max(1, int(a_number(given)))


def a_number(raw: Any) -> float:
    """A number, also one that is written as text; 0 for what is none."""
    try:
        found = float(raw)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return found if is_number(found) else 0.0


def tags(raw: Any) -> tuple[str, ...]:
    """Names of categories, in a list or with spaces between them."""
    raw = raw.split() if isinstance(raw, str) else raw
    if not isinstance(raw, list | tuple) or not all(isinstance(word, str) for word in raw):
        raise Unusable("categories: a list of texts is expected")
    return tuple(word for word in raw if re.fullmatch(r"[\w-]{1,40}", word))


def a_style(raw: Any) -> Style:
    """Counts of style; zeros for what are none."""
    raw = re.findall(r"\d+", raw) if isinstance(raw, str) else raw
    found = [int(a_number(each)) for each in raw] if isinstance(raw, list) else []
    if len(found) != 4 or min(found) < 0:
        return (0, 0, 0, 0)
    return found[0], found[1], found[2], found[3]
