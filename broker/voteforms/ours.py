"""Our own form: all that is kept of a vote, and its conversation under `said`."""

import json
from typing import Any

from broker.fields import is_number
from broker.voteforms.kept import original
from broker.voteforms.records import (
    LATEST,
    Found,
    Said,
    Source,
    Unusable,
    a_number,
    a_vote,
    described,
    named,
    styled,
    tags,
    turns_in,
)
from broker.votes import NAMES, Vote


def read(record: dict[str, Any], source: Source) -> Found:
    """The vote in a record."""
    for name in ("battle", "kind", "winner", "a", "b"):
        _text(record, name)
    said = record.get("said")
    if said is not None and not _is_said(said):
        raise Unusable("said: an object with turns, or null, is expected")
    names, at = named(record["a"], record["b"]), record.get("at")
    if not is_number(at) or not isinstance(at, int) or not 0 <= at < LATEST:
        raise Unusable("at: milliseconds since 1970 are expected")
    turns = [(turn["text"], turn.get("a", ""), turn.get("b", "")) for turn in said["turns"]] if said else []
    told = "categories" in record
    about = styled(record) | {"categories": tags(record["categories"])} if told else described(turns, names)
    about |= {
        "p": a_number(record.get("p")),
        "voter": source.voter(record.get("voter")),
        "turns": turns_in(record, turns),
    }
    return Found(a_vote(record["battle"], record["kind"], record["winner"], names, at=at, **about), said)


def write(vote: Vote, said: Said | None) -> dict[str, Any]:
    """A vote as a record."""
    return {name: getattr(vote, name) for name in NAMES} | {"said": said}


def _text(record: dict[str, Any], name: str) -> None:
    if not isinstance(record.get(name), str):
        raise Unusable(f"{name}: text is expected")


def _is_said(raw: Any) -> bool:
    """Whether it is what was said, as it is stored."""
    if not isinstance(raw, dict) or not _are_turns(raw.get("turns")):
        return False
    try:
        json.dumps(raw, ensure_ascii=False, allow_nan=False).encode()
        if "form" in raw:
            original(raw)
    except (ValueError, KeyError, TypeError, IndexError):
        return False
    return True


def _are_turns(raw: Any) -> bool:
    return isinstance(raw, list) and all(
        isinstance(turn, dict)
        and isinstance(turn.get("text"), str)
        and all(isinstance(turn.get(side, ""), str) for side in ("a", "b"))
        for turn in raw
    )
