"""Battles as tables have them, a row each: FastChat's cleaned ones with conversations, and arena-rank's without."""

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from broker.fields import clean, now
from broker.messages import TOKEN_BYTES
from broker.voteforms.kept import keep
from broker.voteforms.records import (
    ARENA_RANK,
    CLEAN,
    ID,
    OURS,
    Found,
    Said,
    Source,
    Unusable,
    a_number,
    a_time,
    a_vote,
    both,
    described,
    identity,
    named,
    ours_in,
    ours_of,
    styled,
    tags,
    turns_in,
)
from broker.votes import KINDS, Vote

OUTCOMES = {"model_a": "a", "model_b": "b", "tie": "tie", "tie (bothbad)": "bad", "both_bad": "bad"}
LANGUAGES = {
    "en": "English", "zh": "Chinese", "ja": "Japanese", "ko": "Korean", "ru": "Russian",
    "de": "German", "fr": "French", "es": "Spanish", "pt": "Portuguese", "it": "Italian",
}  # fmt: skip
TAGS = {name.lower(): tag for tag, name in LANGUAGES.items()} | {tag: tag for tag in LANGUAGES}
JUDGE = "arena_user_"  # before the voter's name in FastChat's cleaned battles
SURE = 16  # characters of an id that is no other file's as well


def read_clean(record: dict[str, Any], source: Source) -> Found:
    """The vote in one of FastChat's cleaned battles."""
    return _read(CLEAN, record, source)


def read_arena_rank(record: dict[str, Any], source: Source) -> Found:
    """The vote in a row of arena-rank's."""
    return _read(ARENA_RANK, record, source)


def _read(form: str, record: dict[str, Any], source: Source) -> Found:
    names = named(record["model_a"], record["model_b"])
    winner = OUTCOMES.get(record["winner"]) if isinstance(record.get("winner"), str) else None
    if winner is None:
        raise Unusable("winner: one of " + ", ".join(OUTCOMES) + " is expected")
    judge = record.get("judge") or record.get("voter") or record.get("evaluation_session_id")
    voter = source.voter(judge.removeprefix(JUDGE) if isinstance(judge, str) else judge)
    whose = {"judge": f"{JUDGE}{voter}", "voter": voter}
    kept = record | {name: who for name, who in whose.items() if name in record}
    stamp = record.get("tstamp") or record.get("timestamp")
    at = a_time(stamp, "tstamp") if stamp else now()
    turns = both(*(_content(record.get(f"conversation_{side}"), side) for side in "ab"))
    battle, p = ours_in(record) or (_battle_id(record, stamp, winner, kept, source), a_number(record.get("p")))
    count = turns_in(record, turns)
    about = described(turns, names) if turns else _noted(record, count)
    vote = a_vote(battle, _kind(record), winner, names, p=p, at=at, voter=voter, turns=count, **about)
    return Found(vote, keep(form, kept, turns) if source.keep else None)


def _battle_id(record: dict[str, Any], stamp: Any, winner: str, kept: dict[str, Any], source: Source) -> str:
    if "question_id" in record:
        return identity(record["question_id"], stamp, winner, kept)
    given = record.get("id")
    if isinstance(given, str) and len(given) >= SURE and ID.fullmatch(given):
        return given
    return source.unique()  # rows may be alike, and each counts


def _kind(record: dict[str, Any]) -> str:
    ours, blind = record.get(OURS), record.get("anony")
    kind = ours.get("kind") if isinstance(ours, dict) else record.get("kind")
    if isinstance(kind, str) and kind in KINDS:
        return kind
    return "named" if blind in (False, "False", "false") else "blind"


def _content(raw: Any, side: str) -> list[tuple[str, str]]:
    """Questions and answers in OpenAI's form: role and content, which is text or has parts."""
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)  # a table's field
        except ValueError:
            return []
    if raw is None:
        return []
    if not isinstance(raw, list) or not all(isinstance(message, dict) for message in raw):
        raise Unusable(f"conversation_{side}: a list of messages is expected")
    found: list[tuple[str, str]] = []
    for message in raw:
        text = _joined(message.get("content"))
        if message.get("role") == "user":
            found.append((text, ""))
        elif message.get("role") == "assistant" and found:
            found[-1] = (found[-1][0], text)
    if not found:
        raise Unusable(f"conversation_{side}: there is no question")
    return found


def _joined(content: Any) -> str:
    if isinstance(content, str):
        return clean(content)
    parts = content if isinstance(content, list) else []
    texts = [part if isinstance(part, str) else part.get("text") for part in parts if isinstance(part, str | dict)]
    return clean("\n".join(text for text in texts if isinstance(text, str)))


def _noted(record: dict[str, Any], turns: int) -> dict[str, Any]:
    """What a record without a conversation says of it."""
    found = set(tags(record.get("categories") or ()))
    if (tag := TAGS.get(str(record.get("language")).lower())) is not None:
        found.add(tag)
    if turns > 1:
        found.add("multi-turn")
    return styled(record) | {"categories": tuple(sorted(found))}


def write_clean(vote: Vote, said: Said | None) -> dict[str, Any]:
    """A vote as a cleaned battle."""
    outcomes = {winner: name for name, winner in OUTCOMES.items() if name != "both_bad"}
    record: dict[str, Any] = {
        "question_id": vote.battle,
        "model_a": vote.a,
        "model_b": vote.b,
        "winner": outcomes[vote.winner],
        "judge": f"{JUDGE}{vote.voter}",
    }
    for side in ("a", "b") if said and said["turns"] else ():
        record[f"conversation_{side}"] = list(_messages(said["turns"], side)) if said else []
    return record | {
        "turn": vote.turns,
        "anony": vote.kind == "blind",
        "language": next((name for tag, name in LANGUAGES.items() if tag in vote.categories), "unknown"),
        "tstamp": round(vote.at / 1000, 4),
        OURS: ours_of(vote) | {"kind": vote.kind},
    }


def _messages(turns: Iterable[dict[str, Any]], side: str) -> Iterator[dict[str, Any]]:
    for turn in turns:
        for role, text in (("user", turn["text"]), ("assistant", turn.get(side, ""))):
            tokens = -(-len(text.encode()) // TOKEN_BYTES)  # about; FastChat asks OpenAI's tokenizer
            yield {"role": role, "content": text, "num_tokens": tokens}


def write_arena_rank(vote: Vote, said: Said | None) -> dict[str, Any]:
    """A row with differences of style as further columns, which ContextualPairDataset takes as features."""
    outcomes = {winner: name for name, winner in OUTCOMES.items() if name != "tie (bothbad)"}
    row = {"id": vote.battle, "model_a": vote.a, "model_b": vote.b, "winner": outcomes[vote.winner]}
    when = datetime.fromtimestamp(vote.at / 1000, UTC).isoformat(timespec="milliseconds")
    pairs = zip(("length", "headers", "lists", "bold"), vote.style_a, vote.style_b, strict=True)
    differences = {name: round((a - b) / (a + b), 6) if a + b else 0.0 for name, a, b in pairs}
    names = ("kind", "voter", "p", "turns", "categories", "leak", "style_a", "style_b")
    return row | {"timestamp": when} | differences | {name: getattr(vote, name) for name in names}
