"""API keys: whose they are, what they may use, and how much of it is left.

A key is shown once, when it is made; Redis has its SHA-256 only. Its account's id is the owner of all that is asked with
it. Limits hold over all web processes.
"""

import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

from broker import keys
from broker.connection import Broker, redis_errors
from broker.errors import SetupError
from broker.messages import pack, unpack

PREFIX = "fc-"
LONGEST_NAME = 64
LONGEST_KEY = 200  # characters; a longer one is nobody's


@dataclass(frozen=True, slots=True)
class Account:
    """Whose a key is."""

    id: str
    name: str
    models: tuple[str, ...] = ()  # that it may ask; empty: all
    rpm: int = 0  # requests a minute; 0: no limit
    tpm: int = 0  # tokens a minute, prompts and answers together; 0: no limit
    at_once: int = 0  # requests waiting and running; 0: no limit but the queue's
    created: float = 0  # seconds since 1970
    expires: float = 0  # the same; 0: never

    def allows(self, model: str) -> bool:
        """Whether it may ask this model."""
        return not self.models or model in self.models

    @property
    def limited(self) -> bool:
        """Whether something has to be counted."""
        return bool(self.rpm or self.tpm)

    @property
    def limits(self) -> str:
        """In words."""
        found = {"requests": self.rpm, "tokens": self.tpm}
        return " and ".join(f"{number} {what}" for what, number in found.items() if number)

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return 0 < self.expires <= time.time()

    def encode(self) -> bytes:
        return pack(asdict(self))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        raw = unpack(data)
        return cls(
            **{name: raw[name] for name in cls.__dataclass_fields__ if name in raw} | {"models": tuple(raw["models"])}
        )


NOBODY = Account("", "")
"""Who asks without a key where none is needed."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a key may still use."""

    wait: float  # seconds until it may ask again; 0: it may
    kinds: dict[
        str, tuple[int, int, float]
    ]  # requests and tokens: limit, what is left, seconds until all is there again


async def create(
    broker: Broker,
    name: str,
    *,
    models: Sequence[str] = (),
    rpm: int = 0,
    tpm: int = 0,
    at_once: int = 0,
    expires: float = 0,
) -> tuple[str, Account]:
    """A new key, which nobody can ever read again, and its account; for the limits see `Account`.

    Raises:
        SetupError: the name is taken, or is none.
    """
    if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        raise SetupError(f"A key's name has 1 to {LONGEST_NAME} printable characters.")
    if any(name == account.name for account in await listed(broker)):
        raise SetupError(f"There is a key called {name!r} already. Pick another name, or revoke it.")
    key = PREFIX + secrets.token_hex(32)
    account = Account(f"key-{secrets.token_hex(6)}", name, tuple(models), rpm, tpm, at_once, time.time(), expires)
    async with redis_errors():
        await broker.redis.hset(keys.ACCOUNTS, _digest(key), account.encode())
    return key, account


async def find(broker: Broker, key: str) -> tuple[Account | None, bool]:
    """The account of a key, None if it has none or its time is over; and whether the fleet has any key at all."""
    async with redis_errors():
        async with broker.redis.pipeline(transaction=False) as pipe:
            pipe.exists(keys.ACCOUNTS)
            if 0 < len(key) <= LONGEST_KEY:
                pipe.hget(keys.ACCOUNTS, _digest(key))
            some, *found = await pipe.execute()
    account = Account.decode(found[0]) if found and found[0] is not None else None
    return (None if account is None or account.expired else account), bool(some)


async def listed(broker: Broker) -> list[Account]:
    """All accounts, the oldest first."""
    async with redis_errors():
        found = await broker.redis.hgetall(keys.ACCOUNTS)
    return sorted((Account.decode(encoded) for encoded in found.values()), key=lambda account: account.created)


async def revoke(broker: Broker, name: str) -> Account:
    """Take a key away, by its name or its account's id; the next call with it is refused.

    Raises:
        SetupError: there is none.
    """
    async with redis_errors():
        for digest, encoded in (await broker.redis.hgetall(keys.ACCOUNTS)).items():
            account = Account.decode(encoded)
            if name in (account.name, account.id):
                await broker.redis.hdel(keys.ACCOUNTS, digest)
                return account
    raise SetupError(f"There is no key called {name!r}. See: fleetchat keys list.")


async def spend(
    broker: Broker, account: Account, *, requests: int = 0, tokens: int = 0, force: bool = False
) -> Allowance:
    """Take something from what an account may use.

    Args:
        force: it has been used already, so it is taken even if nothing is left.
    """
    async with redis_errors():
        wait, *rest = await broker.scripts.spend(
            args=[account.id, account.rpm, account.tpm, requests, tokens, int(force)]
        )
    limits = {"requests": account.rpm, "tokens": account.tpm}
    left, full = rest[:2], rest[2:]
    kinds = {of: (limit, left[i], full[i] / 1000) for i, (of, limit) in enumerate(limits.items()) if limit}
    return Allowance(wait / 1000, kinds)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
