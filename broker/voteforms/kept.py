"""What is kept of another program's record, so that it goes out as it came in: its texts once, the rest as it is."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from broker.voteforms.records import Said, Turn, Unusable

LONG = 24  # characters of a text that is not kept twice


def keep(form: str, record: dict[str, Any], turns: Sequence[Turn]) -> Said:
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


def original(said: Said) -> dict[str, Any]:
    """The record that `keep` was given.

    Raises:
        ValueError, KeyError, TypeError, IndexError: this is something else.
    """
    record: dict[str, Any] = _whole(json.loads(said["record"]), _texts(said["turns"]))
    return record


def _texts(turns: Iterable[dict[str, Any]]) -> list[str]:
    """All texts of a conversation, each in its place."""
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
