"""The fleet's secret, made once: it signs cookies, and salts what is kept of people in place of their addresses.

It lies in Redis, so that every process of a fleet has the same one. Each purpose has a key of its own, from which neither
the secret nor another purpose's key can be found.
"""

import hashlib
import hmac
import secrets

from broker import keys
from broker.connection import Broker, redis_errors

VOTERS = "voters"  # the purpose of the salt in what votes keep of their voters


async def load(broker: Broker) -> bytes:
    """The secret; the first who asks makes it."""
    async with redis_errors():
        await broker.redis.set(keys.SECRET, secrets.token_hex(32), nx=True)
        found: bytes = await broker.redis.get(keys.SECRET)
    return found


def key(secret: bytes, purpose: str) -> bytes:
    """A purpose's own key."""
    return hmac.digest(secret, f"key {purpose}".encode(), "sha256")


def salted(salt: bytes, what: str) -> str:
    """18 hex digits that stand for something, always the same ones, and by which it cannot be found."""
    return hashlib.blake2b(what.encode(errors="replace"), key=salt[:64], digest_size=9).hexdigest()
