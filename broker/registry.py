"""Which workers serve which models, as their heartbeats say. No dispatcher: workers of a model pull from its queue.

Comes in: a worker's heartbeat. Goes out: the models with their state, queue and workers, for pickers and for people.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from broker import keys, metrics
from broker.connection import Broker, redis_errors
from broker.errors import NoSuchModel, NoWorker
from broker.messages import JOBS, ModelCard, pack


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What one worker says of itself, as text, the way `redis-cli HGETALL worker:ID` shows it."""

    worker_id: str
    fields: Mapping[str, str]

    @property
    def models(self) -> list[str]:
        return self.fields.get("models", "").split()

    def number(self, name: str) -> float:
        """A field as a number, 0 if it is absent."""
        return float(self.fields.get(name) or 0)


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model's card and what goes on around it."""

    card: ModelCard
    waiting: int
    running: int
    workers: tuple[WorkerState, ...]
    pace: float = 0  # seconds of an answer, on the average; 0: nobody knows
    first: float = 0  # seconds from a worker's claim to the first piece; 0: nobody knows
    since: float = 0  # when the first worker offered it, in seconds since 1970; 0: nobody knows

    @property
    def state(self) -> str:
        """ready, loading, failed, or gone: a card whose workers have all left."""
        if self.workers or self.card.state == "failed":
            return self.card.state
        return "gone"

    @property
    def slots(self) -> int:
        """Answers that its workers write at once."""
        return int(sum(w.number("slots") for w in self.workers))

    @property
    def wait(self) -> float:
        """Seconds until a worker would take what is asked now, if answers go on to take as long; 0: it would at once."""
        if not self.slots or self.running + self.waiting < self.slots:
            return 0
        return (self.waiting + 1) * self.pace / self.slots

    def to_map(self) -> dict[str, Any]:
        """What pages and programs see of it."""
        return asdict(replace(self.card, state=self.state)) | {
            "waiting": self.waiting,
            "running": self.running,
            "workers": len(self.workers),
            "slots": self.slots,
            "tokens_per_s": round(sum(w.number("tokens_per_s") for w in self.workers), 1),
            "first_s": round(self.first, 1),
            "wait_s": math.ceil(self.wait),
        }


async def beat(
    broker: Broker, worker_id: str, state: str, fields: Mapping[str, Any], cards: Sequence[ModelCard]
) -> None:
    """A worker's heartbeat; silence for `heartbeat_expiry` takes it out of the registry."""
    flat = [part for pair in fields.items() for part in pair]
    named = [part for card in cards for part in (card.name, card.encode())]
    ttl_ms = int(broker.heartbeat_expiry * 1000)
    await broker.scripts.beat(args=[worker_id, ttl_ms, state, len(fields), *flat, *named])


async def leave(broker: Broker, worker_id: str, models: Sequence[str]) -> None:
    """A worker goes, and everybody sees it at once."""
    await broker.scripts.leave(args=[worker_id, *models])


async def find(broker: Broker, model: str) -> ModelCard:
    """The card of a model that can be asked now.

    Raises:
        NoSuchModel: nobody ever offered it.
        NoWorker: somebody did, but no worker is ready or loading.
    """
    async with redis_errors():
        async with broker.redis.pipeline(transaction=False) as pipe:
            pipe.hget(keys.MODELS, model)
            pipe.zcard(keys.serving(model))
            encoded, workers = await pipe.execute()
    if encoded is None:
        raise unknown(model)
    card = ModelCard.decode(encoded)
    if not workers or card.state == "failed":
        raise unserved(model, card.why if card.state == "failed" else "")
    return card


def unknown(model: str) -> NoSuchModel:
    """The refusal of a model that nobody ever offered."""
    metrics.REFUSED.labels("unserved").inc()
    if model == JOBS:
        return NoSuchModel("No jobs worker has ever run, and this is its work. Start one with FLEETCHAT_ROLE=jobs.")
    return NoSuchModel(f"No worker has ever offered a model called {model!r}. Pick another one.")


def unserved(model: str, why: str) -> NoWorker:
    """The refusal of a model that no worker serves; `why` it failed, or "" when they have gone."""
    metrics.REFUSED.labels("unserved").inc()
    if model == JOBS:
        return NoWorker("No jobs worker runs right now, and this is its work. Start one with FLEETCHAT_ROLE=jobs.")
    if why:
        return NoWorker(f"{model} cannot be served: {why}")
    return NoWorker(f"No worker serves {model} right now. Pick another model, or start a worker for it.")


async def workers(broker: Broker) -> list[WorkerState]:
    """The living workers, by id."""
    async with redis_errors():
        ids = [worker_id.decode() for worker_id in await broker.redis.zrange(keys.WORKERS, 0, -1)]
        async with broker.redis.pipeline(transaction=False) as pipe:
            for worker_id in ids:
                pipe.hgetall(keys.worker(worker_id))
            states = await pipe.execute()
    return [
        WorkerState(worker_id, {k.decode(): v.decode() for k, v in state.items()})
        for worker_id, state in sorted(zip(ids, states, strict=True))
        if state
    ]


async def models(broker: Broker) -> list[ModelState]:
    """All models that have a card: ready ones first, then by rank and name. The first one is what a new page shows.

    The `jobs` worker has a card, too, for its queue; it is no model, and not among them.
    """
    async with redis_errors():
        # Cards first: a worker writes both at once, so whoever sees a new card sees its worker, too.
        async with broker.redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(keys.MODELS)
            pipe.hgetall(keys.SINCE)
            encoded, since = await pipe.execute()
        cards = [card for card in map(ModelCard.decode, encoded.values()) if card.kind != JOBS]
        living = await workers(broker)
        async with broker.redis.pipeline(transaction=False) as pipe:
            for card in cards:
                pipe.zcard(keys.queue(card.name))
                pipe.zcard(keys.running(card.name))
                pipe.hmget(keys.pace(card.name), "seconds", "first")
            counts = await pipe.execute()
    served = [(worker, set(worker.models)) for worker in living]
    found = [
        ModelState(
            card,
            waiting,
            running,
            tuple(w for w, names in served if card.name in names),
            float(pace or 0),
            float(first or 0),
            int(since.get(card.name.encode(), 0)) / 1000,
        )
        for card, waiting, running, (pace, first) in zip(cards, counts[::3], counts[1::3], counts[2::3], strict=True)
    ]
    return sorted(
        found, key=lambda m: (("ready", "loading", "failed", "gone").index(m.state), m.card.rank, m.card.name.lower())
    )


async def counts(broker: Broker) -> dict[str, dict[str, int]]:
    """What the scripts have counted since the fleet's first start, by model; `metrics.COUNTED` says what the words mean."""
    async with redis_errors():
        names = sorted(name.decode() for name in await broker.redis.hkeys(keys.MODELS))
        async with broker.redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hgetall(keys.counts(name))
            found = await pipe.execute()
    return {
        name: {what.decode(): int(number) for what, number in fields.items()}
        for name, fields in zip(names, found, strict=True)
    }


async def drain(broker: Broker, worker_id: str) -> bool:
    """Tell a worker to finish what it writes, or hand it over, and to end; False if it did not hear it."""
    async with redis_errors():
        return bool(await broker.redis.publish(keys.control(worker_id), pack({"type": "drain"})))
