"""Settings that a person saved under a name, to ask with them again: one hash per owner, name -> settings.

What the settings mean is the web app's business; here they are a map that fits. Nobody sees another owner's.
"""

import json
from collections.abc import Mapping
from typing import Any

from redis.asyncio.client import Pipeline

from broker import keys
from broker.connection import Broker, redis_errors
from broker.errors import BadRequest, NotFound

MOST = 50  # of an owner
NAME_CHARACTERS = 60
LARGEST_BYTES = 32_768


async def listed(broker: Broker, owner: str) -> list[tuple[str, dict[str, Any]]]:
    """An owner's presets, name and settings, by name."""
    async with redis_errors():
        found = await broker.redis.hgetall(keys.presets(owner))
    return sorted(((name.decode(), json.loads(value)) for name, value in found.items()), key=lambda p: p[0].casefold())


async def save(broker: Broker, owner: str, name: str, settings: Mapping[str, Any]) -> None:
    """Keep settings under a name; what it had before is written over.

    Raises:
        BadRequest: the name cannot be used, they are too large, or the owner has as many as may be.
    """
    name = _checked(name)
    value = json.dumps(settings, ensure_ascii=False)
    if len(value.encode()) > LARGEST_BYTES:
        raise BadRequest(f"A preset has room for {LARGEST_BYTES // 1024} KB. Shorten its system prompt.")

    async def change(pipe: "Pipeline[bytes]") -> None:
        if await pipe.hlen(key) >= MOST and not await pipe.hexists(key, name):
            raise BadRequest(f"You have {MOST} presets, and that is all there is room for. Delete one first.")
        pipe.multi()
        pipe.hset(key, name, value)

    key = keys.presets(owner)
    async with redis_errors():
        await broker.redis.transaction(change, key)


async def rename(broker: Broker, owner: str, name: str, to: str) -> None:
    """Give a preset another name.

    Raises:
        NotFound: there is no such preset.
        BadRequest: the new name cannot be used, or is taken.
    """
    to = _checked(to)

    async def change(pipe: "Pipeline[bytes]") -> None:
        value = await pipe.hget(key, name)
        if value is None:
            raise _missing(name)
        if to != name and await pipe.hexists(key, to):
            raise BadRequest(f"There is a preset called {to} already.", param="name")
        pipe.multi()
        pipe.hdel(key, name)
        pipe.hset(key, to, value)

    key = keys.presets(owner)
    async with redis_errors():
        await broker.redis.transaction(change, key)


async def delete(broker: Broker, owner: str, name: str) -> None:
    """Raises NotFound if there is no such preset."""
    async with redis_errors():
        if not await broker.redis.hdel(keys.presets(owner), name):
            raise _missing(name)


def _checked(name: str) -> str:
    name = name.strip()
    if not 0 < len(name) <= NAME_CHARACTERS or not name.isprintable():
        raise BadRequest(f"A preset's name has 1 to {NAME_CHARACTERS} printable characters.", param="name")
    return name


def _missing(name: str) -> NotFound:
    return NotFound(f"There is no preset called {name[:NAME_CHARACTERS]}.")
