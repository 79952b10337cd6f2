"""A JSON body: read within a limit and in time, and refused when it is anything but one plain object.

What parsers disagree about is refused: a name twice, NaN and infinity, numbers beyond 64 bits, half a surrogate pair, a
byte order mark, bytes that are not UTF-8, and what is nested so deep that only a program can have meant harm.
"""

import asyncio
import json
import math
from typing import Any, NoReturn

from aiohttp import ClientError, web
from aiohttp.http_exceptions import HttpProcessingError

from broker.errors import BadRequest, PromptTooLarge

BODY_SECONDS = 30.0
DEPTH = 64
LEAST, MOST = -(2**63), 2**64 - 1  # what msgpack carries
EXACT = 2**53  # below it a float is exactly the number that was written


async def read_json(request: web.Request, limit: int) -> dict[str, Any]:
    """The object in the body.

    Args:
        limit: bytes, unpacked.

    Raises:
        PromptTooLarge: it is larger.
        BadRequest: it is no JSON object, or does not arrive.
    """
    value = parse(await read(request, limit))
    if not isinstance(value, dict):
        raise BadRequest("The body has to be a JSON object.")
    return value


async def read(request: web.Request, limit: int, seconds: float = BODY_SECONDS) -> bytes:
    """The body as it is; raises as `read_json` does."""
    try:
        async with asyncio.timeout(seconds):
            return await _read(request, limit)
    except TimeoutError:
        raise BadRequest(f"The body did not arrive within {seconds:g} s.") from None
    except (web.RequestPayloadError, HttpProcessingError, ClientError):
        raise BadRequest("The body cannot be read: its encoding or its length is not what the headers say.") from None


def parse(raw: bytes) -> Any:
    """The value in `raw`; raises BadRequest, which never quotes what is in it."""
    try:
        text = raw.decode()
        value = json.loads(text, parse_constant=_refuse, parse_float=_float, parse_int=_int, object_pairs_hook=_object)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The body is not JSON: {_why(error)}.") from None
    if text.count("[") + text.count("{") > DEPTH and _is_deep(value):
        raise BadRequest(f"The body is nested deeper than {DEPTH} levels.")
    return value


async def _read(request: web.Request, limit: int) -> bytes:
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    found = bytearray()
    while chunk := await request.content.readany():
        found += chunk
        if len(found) > limit:
            raise _too_large(limit)
    return bytes(found)


def _too_large(limit: int) -> PromptTooLarge:
    return PromptTooLarge(f"The body has more than {limit} bytes, which is all that this server takes. Send less.")


def _why(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, UnicodeEncodeError):
        return "it holds half a surrogate pair"
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _float(text: str) -> float:
    # 2.0 is a whole number, as JSON Schema has it; some languages write all numbers so
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return int(value) if value.is_integer() and abs(value) < EXACT else value


def _int(text: str) -> int:
    value = int(text) if len(text) < 21 else MOST + 1
    if not LEAST <= value <= MOST:
        raise ValueError("a whole number is too large")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has the same name twice")
    return found


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return any(isinstance(inner, dict | list) for inner in level)
