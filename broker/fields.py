"""Values out of JSON that somebody else has written; each of a wrong shape is a BadRequest that says where it stands."""

import math
import time
from typing import Any

from broker.errors import BadRequest


def an_object(raw: Any, where: str) -> dict[str, Any]:
    """The value if it is an object."""
    if not isinstance(raw, dict):
        raise wrong(where, "an object is expected")
    return raw


def a_list(record: dict[str, Any], name: str, where: str, default: list[Any] | None = None) -> list[Any]:
    """A field that has to be a list."""
    found = default if record.get(name) is None else record[name]
    if not isinstance(found, list):
        raise wrong(f"{where}.{name}", "a list is expected")
    return found


def a_text(record: dict[str, Any], name: str, where: str, default: str | None = None) -> str:
    """A field that has to be text."""
    found = record.get(name)
    if found is None and default is not None:
        return default
    if not isinstance(found, str):
        raise wrong(f"{where}.{name}", "text is expected")
    return clean(found)


def clean(text: str) -> str:
    """Text that can be UTF-8: half a surrogate pair, which JSON can hold, becomes a question mark."""
    return text.encode(errors="replace").decode()


def a_time(raw: Any, seconds: bool) -> int:
    """Milliseconds since 1970; 0 for what is no time, and never in the future."""
    if not is_number(raw):
        return 0
    return max(0, min(int(raw * 1000 if seconds else raw), now()))


def is_number(raw: Any) -> bool:
    """Whether it is a number that can be stored: finite, and not too large."""
    return isinstance(raw, int | float) and not isinstance(raw, bool) and abs(raw) < 2**53 and math.isfinite(raw)


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def wrong(where: str, what: str) -> BadRequest:
    """The error that says what is wrong at a place."""
    return BadRequest(f"{where.lstrip('.') or 'The file'}: {what}.")
