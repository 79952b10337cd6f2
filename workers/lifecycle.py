"""A worker from its start to its end: load its models, tell the registry, keep the leases, hear orders, leave.

`serving` is entered once by the worker. Inside, its health is served (workers/health.py), the models are loaded and the worker registered; its heartbeat, its
leases, its orders and its publisher run as tasks beside it. If one of them, or the engine, fails, the block is
cancelled and the process ends with an exit code that says so.
"""

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import RedisError

from broker import keys, queues, registry
from broker.connection import HEARTBEAT_SECONDS, Broker, keep_trying
from broker.errors import ModelUnusable
from broker.messages import JOBS, ModelCard, unpack
from broker.sources import ModelSource
from broker.tasks import beside
from workers import cards, health
from workers.engine import Engine, EngineOptions, open_engine
from workers.health import Pulse
from workers.publisher import Publisher

if TYPE_CHECKING:
    from workers.fleet_worker import FleetWorker

logger = logging.getLogger("fleetchat.worker")

T = TypeVar("T")


class EngineStopped(Exception):
    """The engine is dead or hung: this process can serve no more, and says so by its exit code."""


class Presence:
    """What the registry hears of this worker."""

    def __init__(self, broker: Broker, worker: "FleetWorker", cards: tuple[ModelCard, ...]) -> None:
        self.worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self.cards = cards  # all of one state
        self.engine: Engine | None = None
        self.publisher = Publisher(broker, worker.stop_job)
        self.pulse: Pulse | None = None
        self.metrics = ""  # where they are
        self.broker = broker
        self.worker = worker
        self._order = asyncio.Lock()  # a heartbeat that was under way must not undo a leaving

    @property
    def names(self) -> list[str]:
        return [card.name for card in self.cards]

    @property
    def state(self) -> str:
        """loading, ready, failed, or draining."""
        return "draining" if self.worker.draining else self.cards[0].state

    def forget_engine(self) -> None:
        """It is about to be closed."""
        self.engine = self.pulse = None

    def change(self, **fields: Any) -> None:
        """Set fields of all cards; the next heartbeat brings them."""
        self.cards = tuple(replace(card, **fields) for card in self.cards)

    async def beat(self) -> None:
        """One heartbeat. A draining worker lives, but serves nothing any more."""
        async with self._order:
            await self._beat()

    async def _beat(self) -> None:
        draining, engine = self.worker.draining, self.engine
        fields = {
            "models": "" if draining else " ".join(self.names),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "device": engine.device if engine else "",
            "dtype": engine.dtype if engine else "",
            "slots": self.worker.max_jobs,
            "busy": self.worker.busy,
            "progress": self.cards[0].progress,
            "tokens_per_s": f"{self.publisher.tokens_per_s():.1f}",
            "version": version("fleetchat"),
            "metrics": self.metrics,
        }
        await registry.beat(self.broker, self.worker_id, self.state, fields, [] if draining else self.cards)

    async def beat_for_ever(self) -> None:
        while True:
            with contextlib.suppress(RedisError, OSError):
                await self.beat()
            await asyncio.sleep(min(HEARTBEAT_SECONDS, self.broker.config.lease_seconds / 4))

    async def leave(self) -> None:
        """Out of the registry, at once; if Redis is away the silence says the same."""
        async with self._order:
            with contextlib.suppress(RedisError, OSError):
                await registry.leave(self.broker, self.worker_id, self.names)


@asynccontextmanager
async def serving(worker: "FleetWorker") -> AsyncIterator[Broker]:
    """Everything that a worker needs while it serves.

    Raises:
        SetupError: the metrics' address cannot be used.
        ModelUnusable: the models cannot be served; their cards say why, also after this worker is gone.
        EngineStopped: the engine died, or made no step for FLEETCHAT_STALL_SECONDS with work to do.
    """
    config, models = worker.ctx["config"], worker.ctx["models"]
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker.open(config))
        presence = Presence(broker, worker, tuple(map(cards.describe, models)))
        presence.metrics = await stack.enter_async_context(health.serving(config.metrics, presence))
        stack.push_async_callback(presence.leave)
        await stack.enter_async_context(
            beside(presence.beat_for_ever(), _hear_orders(broker, worker, presence.worker_id))
        )
        named = {"worker": presence.worker_id}
        logger.info("%s loads %s", presence.worker_id, ", ".join(map(str, models)), extra=named)
        try:
            engine = await _unless_stopped(worker, _open(broker, presence, models))
        except ModelUnusable as error:
            presence.change(state="failed", why=str(error))
            with contextlib.suppress(RedisError, OSError):
                await presence.beat()
            raise
        if engine is None:
            yield broker  # told to stop while loading: the worker's loop has nothing to do
            return
        stack.push_async_callback(engine.close)
        stack.callback(presence.forget_engine)  # before it is closed, so that nobody is told of a dead one
        gc.collect()  # what is garbage now would stay for good
        gc.freeze()  # torch's and the model's 400 000 objects are no garbage; to look through them stops all answers
        presence.engine = engine
        presence.pulse = worker.pulse = Pulse(engine, config.stall_seconds)
        presence.cards = cards.ready(presence.cards, engine.cards)
        worker.max_jobs = engine.slots
        worker.ctx |= {
            "broker": broker,
            "engine": engine,
            "publisher": presence.publisher,
            "claims": worker.claims,
            "worker_id": presence.worker_id,
        }
        await stack.enter_async_context(
            beside(
                presence.publisher.run(),
                *(_hear_wakes(broker, worker, name) for name in presence.names),
                _keep_leases(broker, worker),
                _leave_when_draining(worker, presence),
                _watch(worker, engine, worker.pulse),
            )
        )
        await _unless_stopped(worker, keep_trying(presence.beat))  # Redis may come later than its workers
        worker.models = presence.names
        served = ", ".join(f"{c.name} ({c.context or 'unknown'} tokens of context)" for c in presence.cards)
        logger.info("%s serves %s with %d slots", presence.worker_id, served, engine.slots, extra=named)
        yield broker


def _open(broker: Broker, presence: Presence, models: Sequence[ModelSource]) -> Awaitable[Engine]:
    """What answers this worker's requests."""
    config = broker.config
    if config.role == JOBS:
        opening: Awaitable[Engine] = import_module("workers.jobs").open_jobs(broker)
        return opening
    options = EngineOptions(
        tuple(map(cards.resolve, models)),
        config.slots,
        config.device,
        config.dtype,
        config.quantization,
        config.cache_mb,
        config.parallel,
        config.role,
    )
    return open_engine(options, lambda percent: presence.change(progress=percent))


async def _unless_stopped(worker: "FleetWorker", work: Awaitable[T]) -> T | None:
    """What the work gives, or None if the worker is told to stop first."""
    load, stop = asyncio.ensure_future(work), asyncio.ensure_future(worker.stopped())
    try:
        await asyncio.wait({load, stop}, return_when=asyncio.FIRST_COMPLETED)
        return load.result() if load.done() else None
    finally:
        load.cancel()
        stop.cancel()


async def _hear_orders(broker: Broker, worker: "FleetWorker", worker_id: str) -> None:
    async with broker.listener.subscribe(keys.control(worker_id), patience=None) as mailbox:
        while True:
            orders, _ = await mailbox.take()  # what a gap swallowed, the next renewal of the leases finds out
            for order in map(unpack, orders):
                match order.get("type"):
                    case "cancel":
                        worker.stop_job(order["request_id"])
                    case "drain":
                        worker.drain("it was told to")


async def _hear_wakes(broker: Broker, worker: "FleetWorker", model: str) -> None:
    async with broker.listener.subscribe(keys.wake(model), limit=1, patience=None) as mailbox:
        while True:
            await mailbox.take()
            worker.wake()


async def _keep_leases(broker: Broker, worker: "FleetWorker") -> None:
    while True:
        await asyncio.sleep(broker.config.lease_seconds / 4)
        if worker.claims:
            with contextlib.suppress(RedisError, OSError):
                for request_id in await queues.renew(broker, list(worker.claims.values())):
                    worker.stop_job(request_id)


async def _leave_when_draining(worker: "FleetWorker", presence: Presence) -> None:
    await worker.stopped()
    with contextlib.suppress(RedisError, OSError):
        await presence.leave()
        await presence.beat()  # alive until its answers are written or handed over


async def _watch(worker: "FleetWorker", engine: Engine, pulse: Pulse) -> None:
    """Raises EngineStopped when the engine is dead or hung."""
    stall = worker.ctx["config"].stall_seconds
    while True:
        await asyncio.sleep(min(1.0, stall / 4))
        silent = pulse.look() > stall
        if silent or not engine.alive:
            worker.claims.clear()  # their leases run out, and other workers take them
            raise EngineStopped(f"no step for {stall:g} s with work to do" if silent else "its thread has died")
