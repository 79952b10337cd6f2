"""Putting a request into its model's queue, taking it out again, and where it stands.

One arq queue per model holds what waits and nothing else, so `ZCARD queue:MODEL` is the true backlog; a second one,
beside it, holds what takes no slot of a worker, so that it does not wait for one. The scripts do the work; this module
gives them their arguments and turns their answers into errors and dataclasses.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgpack
from arq.jobs import serialize_job

from broker import keys, metrics, registry
from broker.connection import ORPHAN_SECONDS, Broker, redis_errors
from broker.errors import (
    Conflict,
    FleetError,
    NoSuchBattle,
    NoSuchConversation,
    QueueFull,
    ShareUsed,
    StorageFull,
)
from broker.messages import Request, pack, wrong_kind

logger = logging.getLogger("fleetchat.queues")

BEHIND = 1_000_000  # turns that a low-priority request stands behind
LONGEST_RETRY = 60  # seconds that somebody is told to wait


@dataclass(frozen=True, slots=True)
class Turn:
    """Where the answer to a kept request belongs."""

    conversation: str
    parent: str  # id of the user message that it answers
    title: str = ""  # of the conversation, if this begins it
    message: bytes = b""  # the user message (msgpack), unless it is there already
    settings: str = ""  # what it was asked with (JSON), for the owner's other devices
    begun: bytes = b""  # parts (msgpack) of the answer that this one goes on from

    def encode(self) -> bytes:
        """For the script: what is empty is absent, and bytes are strings, since Lua's msgpack knows no others."""
        kept = {key: value for key, value in asdict(self).items() if value}
        return bytes(msgpack.packb(kept, use_bin_type=False))


@dataclass(frozen=True, slots=True)
class Bout:
    """The place of an answer in a battle, where `arena.begin` expects it."""

    battle: str
    side: str  # a or b
    turn: int

    def encode(self) -> bytes:
        """For the script."""
        return bytes(msgpack.packb(asdict(self), use_bin_type=False))


@dataclass(frozen=True, slots=True)
class Claim:
    """A request that a worker holds, and the token that proves it."""

    request_id: str
    token: str
    epoch: int
    model: str
    queue: str  # the model's, or the one beside it
    waited: float  # seconds between enqueue and claim
    crashes: int
    encoded: bytes = b""  # the request, if this is its first claim

    @property
    def beside(self) -> bool:
        """Whether it takes none of the worker's slots."""
        return self.queue != self.model


async def enqueue(
    broker: Broker,
    request: Request,
    turn: Turn | Bout | None = None,
    *,
    low_priority: bool = False,
    at_once: int | None = None,
) -> int | None:
    """Accept a request and wake a worker; gives the number of requests before it, None if it had been accepted before.

    Args:
        at_once: requests that its owner may have waiting and running; 0: no limit; None: FLEETCHAT_USER_LIMIT.

    Raises:
        NoSuchModel: nobody ever offered it.
        NoWorker: somebody did, but no worker is ready or loading.
        BadRequest: it is no model for requests of this kind.
        QueueFull, ShareUsed: with `retry_after`.
        NoSuchConversation, Conflict: the conversation is not the owner's, or all answers that it may have are under way.
        NoSuchBattle: the battle does not expect this request.
        StorageFull, RedisAway
    """
    if broker.nearly_full:
        metrics.REFUSED.labels("storage").inc()
        raise StorageFull
    config = broker.config
    job = serialize_job(request.JOB, (request.request_id,), {}, None, int(time.time() * 1000), serializer=pack)
    queue = keys.beside(request.model) if request.BESIDE else request.model
    # An owner is "" only where nobody is told apart from anybody: the open API of a loopback server, the command line.
    share = config.user_limit if at_once is None else at_once
    limits = [int(config.wait_seconds * 1000), int(config.run_seconds * 1000), config.queue_limit, share]
    async with redis_errors():
        status, *details = await broker.scripts.enqueue(
            args=[
                request.request_id, request.model, queue, request.owner, int(request.keep), request.encode(), job,
                " ".join(request.KINDS), *limits, BEHIND if low_priority else 0, *([turn.encode(), config.retain_ms] if turn else []),
            ]
        )  # fmt: skip
    if status:
        raise NoSuchBattle() if status == -3 and isinstance(turn, Bout) else _refusal(request, status, details)
    if not details:
        return None
    before: int = details[0]
    facts = {"request_id": request.request_id, "model": request.model, "before": before}
    logger.info("request %s accepted for %s, %d before it", *facts.values(), extra=facts)
    return before


def _refusal(request: Request, status: int, details: Sequence[Any]) -> FleetError:
    """What the script's answer means."""
    if limit := {-1: "queue", -2: "user"}.get(status):
        metrics.REFUSED.labels(limit).inc()
    match status:
        case -1:
            return QueueFull(retry_after=max(1, min(LONGEST_RETRY, math.ceil(float(details[0])))))
        case -2:
            return ShareUsed(
                f"You have {details[0]} answers under way, which is all that you may have at once. "
                "Wait for one to finish, or stop one.",
                retry_after=2,
            )
        case -3:
            return NoSuchConversation()
        case -4:
            return Conflict()
        case -5:
            return registry.unknown(request.model)
        case -6:
            return registry.unserved(request.model, details[0].decode())
    return wrong_kind(request)


async def claim(
    broker: Broker,
    worker_id: str,
    token: str,
    want: int,
    models: Sequence[str],
    mine: Sequence[str],
    *,
    beside: int = 0,
) -> list[Claim]:
    """Up to `want` waiting requests, and up to `beside` that take no slot, which are this worker's from now on.

    Args:
        token: unique to this call; every claim of it gets a token of its own, so that a worker that stalled and
            claims its own request again does not fence with itself.
        mine: ids that this worker runs.
    """
    lease_ms, grace_ms = int(broker.config.lease_seconds * 1000), int(ORPHAN_SECONDS * 1000)
    flat = await broker.scripts.claim(
        args=[worker_id, token, lease_ms, grace_ms, int(not mine), want, beside, len(models), *models, *mine]
    )
    return [
        Claim(i.decode(), t.decode(), int(e), m.decode(), q.decode(), int(w) / 1000, int(c), r)
        for i, t, e, m, q, w, c, r in (flat[k : k + 8] for k in range(0, len(flat), 8))
    ]


async def renew(broker: Broker, claims: Sequence[Claim]) -> list[str]:
    """Keep the leases; gives the ids of those that are no longer this worker's."""
    flat = [part for claim in claims for part in (claim.request_id, claim.token)]
    lost = await broker.scripts.renew(args=[int(broker.config.lease_seconds * 1000), *flat])
    return [request_id.decode() for request_id in lost]


async def release(broker: Broker, claim: Claim, crash: FleetError | None = None) -> bool:
    """Hand a request back to its queue, at its old place.

    Args:
        crash: the engine's step failed with it; at the third one the request ends with this error.
    """
    error = "" if crash is None else pack(crash.to_map())
    return bool(await broker.scripts.release(args=[claim.request_id, claim.token, error]))


async def cancel(broker: Broker, request_id: str, owner: str, reason: str = "cancelled") -> bool:
    """End a waiting or running request, with its last frame; False if it had ended or is not the owner's."""
    async with redis_errors():
        return bool(await broker.scripts.cancel(args=[request_id, owner, reason]) == 1)


async def end(broker: Broker, claim: Claim, error: FleetError, *, inspect: bool = False) -> bool:
    """End a request with an error unless it has ended; `inspect` keeps what was in it under poisoned:{R}."""
    return bool(await broker.scripts.end(args=[claim.request_id, claim.token, pack(error.to_map()), int(inspect)]))


async def places(broker: Broker, requests: Sequence[tuple[str, str]]) -> list[int | None]:
    """How many requests stand before each (model, request id); None for one that does not wait."""
    async with broker.redis.pipeline(transaction=False) as pipe:
        for model, request_id in requests:
            pipe.zrank(keys.queue(model), request_id)
        ranks: list[Any] = await pipe.execute()
    return ranks


async def paces(broker: Broker, models: Sequence[str]) -> dict[str, float]:
    """The mean seconds of an answer of each model that has answered today."""
    async with broker.redis.pipeline(transaction=False) as pipe:
        for model in models:
            pipe.hget(keys.pace(model), "seconds")
        seconds: list[Any] = await pipe.execute()
    return {model: float(mean) for model, mean in zip(models, seconds, strict=True) if mean}
