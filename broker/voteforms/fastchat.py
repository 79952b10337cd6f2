"""FastChat's conversation logs: a line for each vote on two models, with all that both sides have said."""

import re
from collections.abc import Sequence
from typing import Any

from broker.fields import clean
from broker.voteforms.kept import keep
from broker.voteforms.records import (
    FASTCHAT,
    OURS,
    Found,
    NotOne,
    Said,
    Source,
    Unusable,
    a_time,
    a_vote,
    both,
    described,
    identity,
    named,
    ours_in,
    ours_of,
)
from broker.votes import Vote

TYPES = {"leftvote": "a", "rightvote": "b", "tievote": "tie", "bothbad_vote": "bad"}
NAMELESS = ("", "Model A", "Model B")  # what stands over a side whose voter did not know it
TOLD = re.compile(r"(?:#+ *)?Model [AB]: *(.+)")  # over one whose name was shown after the vote
ERRORS = ("**NETWORK ERROR", "**API REQUEST ERROR", "API REQUEST ERROR", "$MODERATION$", "**MODERATION**")
UNFINISHED = ("▌", '<span class="cursor"></span>')


def read(record: dict[str, Any], source: Source) -> Found:
    """The vote in a line of a log."""
    kind = record.get("type")
    if not isinstance(kind, str) or kind not in TYPES:
        raise NotOne
    states = record.get("states")
    if not isinstance(states, list) or len(states) != 2 or not all(isinstance(state, dict) for state in states):
        raise Unusable("states: two objects are expected")
    winner, at = TYPES[kind], a_time(record.get("tstamp"), "tstamp")
    kind, *hidden = _sides(record.get("models"), states)
    names = named(*hidden)
    turns = both(*(_said_in(state, side) for state, side in zip(states, "AB", strict=True)))
    voter = source.voter(record.get("ip"))
    kept = record | ({"ip": voter} if "ip" in record else {})
    battle, p = ours_in(record) or (identity(states[0].get("conv_id"), record["tstamp"], winner, kept), 0.0)
    about = described(turns, names) | {"p": p, "at": at, "voter": voter, "turns": len(turns)}
    return Found(a_vote(battle, kind, winner, names, **about), keep(FASTCHAT, kept, turns) if source.keep else None)


def _sides(labels: Any, states: Sequence[dict[str, Any]]) -> tuple[str, Any, Any]:
    """The kind of a vote, and its models' names: FastChat says by a side's label whether the voter knew them."""
    labels = labels if labels is not None else ["", ""]
    if not isinstance(labels, list) or len(labels) != 2 or not all(isinstance(label, str) for label in labels):
        raise Unusable("models: two texts are expected")
    a, b = (label.strip() for label in labels)
    hidden = [state.get("model_name") for state in states]
    if (a in NAMELESS) != (b in NAMELESS):
        raise Unusable("models: only one of both sides has a name")
    if a in NAMELESS:
        return "blind", hidden[0], hidden[1]
    told = [TOLD.fullmatch(label) for label in (a, b)]
    names = [match[1] if match else label for match, label in zip(told, (a, b), strict=True)]
    for name, secret in zip(names, hidden, strict=True):
        if isinstance(secret, str) and secret and secret not in name:
            raise Unusable(f"models: {name[:60]!r} stands over what {secret[:60]!r} has said")
    return "late" if all(told) else "named", names[0], names[1]


def _said_in(state: dict[str, Any], side: str) -> list[tuple[str, str]]:
    """The questions and answers of a side."""
    messages, offset = state.get("messages"), state.get("offset") or 0
    if not isinstance(messages, list) or not isinstance(offset, int) or isinstance(offset, bool) or offset < 0:
        raise Unusable(f"side {side}: no messages are there")
    texts = []
    for message in messages[offset:]:
        if not isinstance(message, list) or len(message) != 2:
            raise Unusable(f"side {side}: a message is a role and a text")
        text = (
            message[1][0] if isinstance(message[1], list) and message[1] else message[1]
        )  # with pictures: [text, pictures]
        if text is None:
            raise Unusable(f"side {side}: an answer was never written")
        if not isinstance(text, str):
            raise Unusable(f"side {side}: a message's text is none")
        texts.append(clean(text))
    if not texts or len(texts) % 2:
        raise Unusable(
            f"side {side}: there is no answer" if not texts else f"side {side}: the last question has no answer"
        )
    for answer in texts[1::2]:
        _finished(answer, side)
    return list(zip(texts[::2], texts[1::2], strict=True))


def _finished(answer: str, side: str) -> None:
    if answer.startswith(ERRORS):
        raise Unusable(f"side {side}: an answer is an error message")
    if answer.endswith(UNFINISHED):
        raise Unusable(f"side {side}: an answer is not finished")


def write(vote: Vote, said: Said | None) -> dict[str, Any] | None:
    """A vote as a line of a log."""
    if not said or not said["turns"]:
        return None
    labels = {
        "blind": ["", ""],
        "named": [vote.a, vote.b],
        "late": [f"### Model A: {vote.a}", f"### Model B: {vote.b}"],
    }
    return {
        "tstamp": round(vote.at / 1000, 4),
        "type": next(name for name, winner in TYPES.items() if winner == vote.winner),
        "models": labels[vote.kind],
        "states": [_state(vote, side, said["turns"]) for side in ("a", "b")],
        "ip": vote.voter,
        OURS: ours_of(vote),
    }


def _state(vote: Vote, side: str, turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    messages = [
        [role, text] for turn in turns for role, text in (("USER", turn["text"]), ("ASSISTANT", turn.get(side, "")))
    ]
    name = getattr(vote, side)
    return {
        "template_name": name,
        "system_message": "",
        "roles": ["USER", "ASSISTANT"],
        "messages": messages,
        "offset": 0,
        "conv_id": f"{vote.battle}{side}",
        "model_name": name,
    }
