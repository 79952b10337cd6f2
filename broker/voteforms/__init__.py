"""A vote in the forms that other programs know: FastChat's logs, its cleaned battles, arena-rank's rows, and our own.

A record, parsed JSON, comes in; out comes a `Vote` with what was said in its battle, and the other way round. A record of
another program's is kept whole beside the conversation, so it goes out as it came in, fields included that are unknown
here. Only who voted is not: an address becomes a salted hash at once, and in every form. Pure.

    form         one record a                    where
    ───────────  ──────────────────────────────  ────────────────────────────────────────────────────────────────
    fleetchat    vote, with its conversation     our own, and what `fleetchat votes archive` writes
    fastchat     line of LOGDIR/DATE-conv.json   lines that are no votes on two models are left to the chat's import
    clean        element of a JSON list          clean_battle_DATE.json, from FastChat's clean_battle_data
    arena-rank   row: model_a, model_b, winner   what arena-rank's PairDataset.from_pandas takes, as JSON lines or CSV
"""

from collections.abc import Callable
from typing import Any

from broker.voteforms import fastchat, ours, tables
from broker.voteforms.kept import original
from broker.voteforms.records import ARENA_RANK, CLEAN, FASTCHAT, OURS, Found, NotOne, Said, Source, Unusable
from broker.votes import Vote

__all__ = [
    "ARENA_RANK",
    "CLEAN",
    "FASTCHAT",
    "FORMS",
    "OURS",
    "Found",
    "NotOne",
    "Said",
    "Source",
    "Unusable",
    "read",
    "write",
]

FORMS = (OURS, FASTCHAT, CLEAN, ARENA_RANK)
READERS: dict[str, Callable[[dict[str, Any], Source], Found]] = {
    OURS: ours.read, FASTCHAT: fastchat.read, CLEAN: tables.read_clean, ARENA_RANK: tables.read_arena_rank,
}  # fmt: skip
WRITERS: dict[str, Callable[[Vote, Said | None], dict[str, Any] | None]] = {
    OURS: ours.write, FASTCHAT: fastchat.write, CLEAN: tables.write_clean, ARENA_RANK: tables.write_arena_rank,
}  # fmt: skip


def read(record: dict[str, Any], source: Source) -> Found:
    """The vote in a record, whichever form it has.

    Raises:
        NotOne, Unusable
    """
    try:
        return READERS[_form(record)](record, source)
    except RecursionError:
        raise Unusable("it is nested too deep") from None


def write(form: str, vote: Vote, said: Said | None) -> dict[str, Any] | None:
    """A vote as a record; None where the form needs the conversation, which is not here."""
    if form != OURS and said and said.get("form") == form:
        return original(said)
    return WRITERS[form](vote, said)


def _form(record: dict[str, Any]) -> str:
    if "battle" in record:
        return OURS
    if "states" in record or "state" in record or "type" in record:
        return FASTCHAT
    if "model_a" in record and "model_b" in record:
        return CLEAN if "question_id" in record else ARENA_RANK
    raise Unusable("it is a vote in none of the forms " + ", ".join(FORMS))
