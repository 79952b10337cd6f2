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

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

from broker import features
from broker.arena import at_address
from broker.fields import clean, is_number, now
from broker.messages import TOKEN_BYTES
from broker.votes import KINDS, NAMES, WINNERS, Style, Vote

OURS, FASTCHAT, CLEAN, ARENA_RANK = "fleetchat", "fastchat", "clean", "arena-rank"
FORMS = (OURS, FASTCHAT, CLEAN, ARENA_RANK)

Said = dict[str, Any]
"""What was said: {turns: [{text, a, b}]}; of another program's record also `form` and, as JSON, `record`."""
Turn = tuple[str, str, str]

TYPES = {"leftvote": "a", "rightvote": "b", "tievote": "tie", "bothbad_vote": "bad"}
OUTCOMES = {"model_a": "a", "model_b": "b", "tie": "tie", "tie (bothbad)": "bad", "both_bad": "bad"}
LANGUAGES = {
    "en": "English", "zh": "Chinese", "ja": "Japanese", "ko": "Korean", "ru": "Russian",
    "de": "German", "fr": "French", "es": "Spanish", "pt": "Portuguese", "it": "Italian",
}  # fmt: skip
TAGS = {name.lower(): tag for tag, name in LANGUAGES.items()} | {tag: tag for tag in LANGUAGES}
JUDGE = "arena_user_"  # before the voter's name in FastChat's cleaned battles
NAMELESS = ("", "Model A", "Model B")  # what stands over a side whose voter did not know it
TOLD = re.compile(r"(?:#+ *)?Model [AB]: *(.+)")  # over one whose name was shown after the vote
SALTED = re.compile(r"[0-9a-f]{18}")  # a voter who was one of ours, or has been imported before
ID = re.compile(r"[\w:.-]{1,100}")
NAME = re.compile(r"(?=\S)[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{1,200}(?<=\S)")
ERRORS = ("**NETWORK ERROR", "**API REQUEST ERROR", "API REQUEST ERROR", "$MODERATION$", "**MODERATION**")
UNFINISHED = ("▌", '<span class="cursor"></span>')
SURE = 16  # characters of an id that is no other file's as well
LATEST = 4_102_444_800_000  # milliseconds; the year 2100
LONG = 24  # characters of a text that is not kept twice


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
        whole: dict[str, Any] = _whole(json.loads(said["record"]), _texts(said["turns"]))
        return whole
    return WRITERS[form](vote, said)


def _form(record: dict[str, Any]) -> str:
    if "battle" in record:
        return OURS
    if "states" in record or "state" in record or "type" in record:
        return FASTCHAT
    if "model_a" in record and "model_b" in record:
        return CLEAN if "question_id" in record else ARENA_RANK
    raise Unusable("it is a vote in none of the forms " + ", ".join(FORMS))


# Our own.


def _read_ours(record: dict[str, Any], source: Source) -> Found:
    for name in ("battle", "kind", "winner", "a", "b"):
        _text(record, name)
    said = record.get("said")
    if said is not None and not _is_said(said):
        raise Unusable("said: an object with turns, or null, is expected")
    names, at = _named(record["a"], record["b"]), record.get("at")
    if not is_number(at) or not isinstance(at, int) or not 0 <= at < LATEST:
        raise Unusable("at: milliseconds since 1970 are expected")
    turns = [(turn["text"], turn.get("a", ""), turn.get("b", "")) for turn in said["turns"]] if said else []
    told = "categories" in record
    about = _styled(record) | {"categories": _words(record["categories"])} if told else _described(turns, names)
    about |= {"p": _number(record.get("p")), "voter": source.voter(record.get("voter")), "turns": _turns(record, turns)}
    return Found(_vote(record["battle"], record["kind"], record["winner"], names, at=at, **about), said)


def _write_ours(vote: Vote, said: Said | None) -> dict[str, Any]:
    return {name: getattr(vote, name) for name in NAMES} | {"said": said}


# FastChat's logs.


def _read_fastchat(record: dict[str, Any], source: Source) -> Found:
    kind = record.get("type")
    if not isinstance(kind, str) or kind not in TYPES:
        raise NotOne
    states = record.get("states")
    if not isinstance(states, list) or len(states) != 2 or not all(isinstance(state, dict) for state in states):
        raise Unusable("states: two objects are expected")
    winner, at = TYPES[kind], _seconds(record.get("tstamp"), "tstamp")
    kind, *hidden = _sides(record.get("models"), states)
    names = _named(*hidden)
    turns = _both(*(_said_in(state, side) for state, side in zip(states, "AB", strict=True)))
    voter = source.voter(record.get("ip"))
    kept = record | ({"ip": voter} if "ip" in record else {})
    battle, p = _ours_in(record) or (_identity(states[0].get("conv_id"), record["tstamp"], winner, kept), 0.0)
    about = _described(turns, names) | {"p": p, "at": at, "voter": voter, "turns": len(turns)}
    return Found(_vote(battle, kind, winner, names, **about), _keep(FASTCHAT, kept, turns) if source.keep else None)


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


def _write_fastchat(vote: Vote, said: Said | None) -> dict[str, Any] | None:
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
        OURS: _about(vote),
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


# Battles as tables have them: FastChat's cleaned ones, and arena-rank's.


def _read_battle(record: dict[str, Any], source: Source) -> Found:
    names = _named(record["model_a"], record["model_b"])
    winner = OUTCOMES.get(record["winner"]) if isinstance(record.get("winner"), str) else None
    if winner is None:
        raise Unusable("winner: one of " + ", ".join(OUTCOMES) + " is expected")
    judge = record.get("judge") or record.get("voter") or record.get("evaluation_session_id")
    voter = source.voter(judge.removeprefix(JUDGE) if isinstance(judge, str) else judge)
    whose = {"judge": f"{JUDGE}{voter}", "voter": voter}
    kept = record | {name: who for name, who in whose.items() if name in record}
    stamp = record.get("tstamp") or record.get("timestamp")
    at = _seconds(stamp, "tstamp") if stamp else now()
    turns = _both(*(_content(record.get(f"conversation_{side}"), side) for side in "ab"))
    battle, p = _ours_in(record) or (_battle_id(record, stamp, winner, kept, source), _number(record.get("p")))
    count = _turns(record, turns)
    about = _described(turns, names) if turns else _noted(record, count)
    vote = _vote(battle, _kind(record), winner, names, p=p, at=at, voter=voter, turns=count, **about)
    return Found(vote, _keep(_form(record), kept, turns) if source.keep else None)


def _battle_id(record: dict[str, Any], stamp: Any, winner: str, kept: dict[str, Any], source: Source) -> str:
    if "question_id" in record:
        return _identity(record["question_id"], stamp, winner, kept)
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
    found = set(_words(record.get("categories") or ()))
    if (tag := TAGS.get(str(record.get("language")).lower())) is not None:
        found.add(tag)
    if turns > 1:
        found.add("multi-turn")
    return _styled(record) | {"categories": tuple(sorted(found))}


def _styled(record: dict[str, Any]) -> dict[str, Any]:
    """What a record says of its answers' style, and whether they say who they are."""
    styles = {name: _style(record.get(name)) for name in ("style_a", "style_b")}
    return {"leak": record.get("leak") in (True, "True", "true", "1"), **styles}


def _write_clean(vote: Vote, said: Said | None) -> dict[str, Any]:
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
        OURS: _about(vote) | {"kind": vote.kind},
    }


def _messages(turns: Iterable[dict[str, Any]], side: str) -> Iterator[dict[str, Any]]:
    for turn in turns:
        for role, text in (("user", turn["text"]), ("assistant", turn.get(side, ""))):
            tokens = -(-len(text.encode()) // TOKEN_BYTES)  # about; FastChat asks OpenAI's tokenizer
            yield {"role": role, "content": text, "num_tokens": tokens}


def _write_arena_rank(vote: Vote, said: Said | None) -> dict[str, Any]:
    """A row with differences of style as further columns, which ContextualPairDataset takes as features."""
    outcomes = {winner: name for name, winner in OUTCOMES.items() if name != "tie (bothbad)"}
    row = {"id": vote.battle, "model_a": vote.a, "model_b": vote.b, "winner": outcomes[vote.winner]}
    when = datetime.fromtimestamp(vote.at / 1000, UTC).isoformat(timespec="milliseconds")
    pairs = zip(("length", "headers", "lists", "bold"), vote.style_a, vote.style_b, strict=True)
    differences = {name: round((a - b) / (a + b), 6) if a + b else 0.0 for name, a, b in pairs}
    names = ("kind", "voter", "p", "turns", "categories", "leak", "style_a", "style_b")
    return row | {"timestamp": when} | differences | {name: getattr(vote, name) for name in names}


# What the forms share.

READERS: dict[str, Callable[[dict[str, Any], Source], Found]] = {
    OURS: _read_ours, FASTCHAT: _read_fastchat, CLEAN: _read_battle, ARENA_RANK: _read_battle,
}  # fmt: skip
WRITERS: dict[str, Callable[[Vote, Said | None], dict[str, Any] | None]] = {
    OURS: _write_ours, FASTCHAT: _write_fastchat, CLEAN: _write_clean, ARENA_RANK: _write_arena_rank,
}  # fmt: skip


def _named(a: Any, b: Any) -> tuple[str, str]:
    """The models' names, if they can be."""
    for name in (a, b):
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise Unusable("a model's name is empty, too long, or none")
    if a == b:
        raise Unusable(f"{a} stands on both sides")
    return a, b


def _vote(battle: str, kind: str, winner: str, names: tuple[str, str], **about: Any) -> Vote:
    if not ID.fullmatch(battle):
        raise Unusable("its id is too long, or has other characters than letters, digits and :.-")
    if kind not in KINDS or winner not in WINNERS:
        raise Unusable(f"kind: one of {', '.join(KINDS)}; winner: one of {', '.join(WINNERS)}")
    return Vote(battle, kind, winner, *names, **about)


def _described(turns: Sequence[Turn], names: tuple[str, str]) -> dict[str, Any]:
    found = features.describe(turns, names)
    return {name: getattr(found, name) for name in ("categories", "style_a", "style_b", "leak")}


def _both(a: Sequence[tuple[str, str]], b: Sequence[tuple[str, str]]) -> list[Turn]:
    if len(a) != len(b):
        raise Unusable(f"side A has {len(a)} turns, and side B {len(b)}")
    return [(question, answer, other) for (question, answer), (_, other) in zip(a, b, strict=True)]


def _about(vote: Vote) -> dict[str, Any]:
    return {"battle": vote.battle, "p": vote.p}


def _ours_in(record: dict[str, Any]) -> tuple[str, float] | None:
    """Id and probability of a vote that came from here."""
    ours = record.get(OURS)
    if not isinstance(ours, dict) or not isinstance(ours.get("battle"), str):
        return None
    return ours["battle"], _number(ours.get("p"))


def _identity(conversation: Any, stamp: Any, winner: str, record: dict[str, Any]) -> str:
    """A vote's id: the same one in FastChat's log and in what it makes of it."""
    if isinstance(conversation, str) and conversation and is_number(stamp):
        known = f"{conversation} {float(stamp):.4f} {winner}"
    else:
        known = json.dumps(record, sort_keys=True)
    return blake2b(known.encode(errors="replace"), digest_size=12).hexdigest()


def _seconds(raw: Any, name: str) -> int:
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


def _turns(record: dict[str, Any], turns: Sequence[Turn]) -> int:
    given = record.get("turns", record.get("turn"))
    return len(turns) or max(1, int(_number(given)))


def _number(raw: Any) -> float:
    try:
        found = float(raw)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return found if is_number(found) else 0.0


def _text(record: dict[str, Any], name: str) -> None:
    if not isinstance(record.get(name), str):
        raise Unusable(f"{name}: text is expected")


def _words(raw: Any) -> tuple[str, ...]:
    raw = raw.split() if isinstance(raw, str) else raw
    if not isinstance(raw, list | tuple) or not all(isinstance(word, str) for word in raw):
        raise Unusable("categories: a list of texts is expected")
    return tuple(word for word in raw if re.fullmatch(r"[\w-]{1,40}", word))


def _style(raw: Any) -> Style:
    raw = re.findall(r"\d+", raw) if isinstance(raw, str) else raw
    found = [int(_number(each)) for each in raw] if isinstance(raw, list) else []
    if len(found) != 4 or min(found) < 0:
        return (0, 0, 0, 0)
    return found[0], found[1], found[2], found[3]


def _is_said(raw: Any) -> bool:
    """Whether it is what was said, as it is stored."""
    if not isinstance(raw, dict) or not _are_turns(raw.get("turns")):
        return False
    try:
        json.dumps(raw, ensure_ascii=False).encode()
        if "form" in raw:
            _whole(json.loads(raw["record"]), _texts(raw["turns"]))
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


def _keep(form: str, record: dict[str, Any], turns: Sequence[Turn]) -> Said:
    """What is kept of another program's record: its texts, once, and the rest as it is."""
    named = [{"text": text, "a": a, "b": b} for text, a, b in turns]
    places = {text: i for i, text in reversed(list(enumerate(_texts(named)))) if len(text) >= LONG}
    try:
        rest = json.dumps(_thin(record, places), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        rest.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold
        rest = json.dumps(_thin(record, places), allow_nan=False, separators=(",", ":"))
    except ValueError:
        raise Unusable("it has a number that JSON does not know") from None
    return {"turns": named, "form": form, "record": rest}


def _texts(turns: Iterable[dict[str, Any]]) -> list[str]:
    return [turn.get(name, "") for turn in turns for name in ("text", "a", "b")]


def _thin(value: Any, places: dict[str, int]) -> Any:
    """The value with each text that is known by a place as {"": place}, and what would look like that as {"": [it]}."""
    if isinstance(value, str):
        return {"": places[value]} if value in places else value
    if isinstance(value, list):
        return [_thin(one, places) for one in value]
    if isinstance(value, dict):
        thin = {name: _thin(one, places) for name, one in value.items()}
        return {"": [thin]} if value.keys() == {""} else thin
    return value


def _whole(value: Any, texts: Sequence[str]) -> Any:
    """What `_thin` was given."""
    if isinstance(value, list):
        return [_whole(one, texts) for one in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {""}:
        held = value[""]
        return texts[held] if isinstance(held, int) else {"": _whole(held[0][""], texts)}
    return {name: _whole(one, texts) for name, one in value.items()}
