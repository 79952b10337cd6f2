"""What open pages see change by itself: the models, and the place of what waits.

One look at Redis a second serves all sockets, and only while somebody is looking; an event brings it forward. Of the
models go out those that have changed. A socket that has not taken the last news yet gets the next one in its place (and
then all models), so a slow one costs nothing.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

from aiohttp import web

from broker import keys, queues, registry
from broker.connection import Broker
from broker.errors import FleetError
from broker.messages import pack
from broker.registry import ModelState
from broker.tasks import beside, happens

logger = logging.getLogger("fleetchat.live")

LOOK_SECONDS = 1.0


class Viewer(Protocol):
    """Somebody who is told news."""

    def tell(self, news: bytes, topic: str) -> None:
        """Take a message; a later one of the same topic may replace it. Never waits."""
        ...

    def behind(self, topic: str) -> bool:
        """Whether the last message of a topic still waits, so that the next one will replace it."""
        ...


class Live:
    """The app's, `running` for as long as it does."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._viewers: set[Viewer] = set()
        self._waiting: dict[tuple[Viewer, str], tuple[str, int | None]] = {}  # viewer and request -> model, place told
        self._look_now = asyncio.Event()
        self._models: dict[str, Any] | None = None  # as they were told, by name; None: nobody looked for a while

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Looking and listening while the block runs."""
        async with beside(self._look(), self._hear()):
            yield self

    @contextlib.contextmanager
    def viewing(self, viewer: Viewer) -> Iterator[None]:
        """Tell it the models now and whenever they change."""
        self._viewers.add(viewer)
        if self._models is not None and len(self._viewers) > 1:  # the look is fresh
            viewer.tell(_all(self._models), "models")
        else:
            self._models = None
            self._look_now.set()
        try:
            yield
        finally:
            self._viewers.discard(viewer)

    @contextlib.contextmanager
    def placing(self, viewer: Viewer, model: str, request_id: str) -> Iterator[None]:
        """Tell it the place of a request for as long as it waits, also when it has to wait again."""
        self._waiting[viewer, request_id] = (model, None)
        try:
            yield
        finally:
            self._waiting.pop((viewer, request_id), None)

    async def _hear(self) -> None:
        async with self._broker.listener.subscribe(keys.EVENTS, limit=1, patience=None) as mailbox:
            while True:
                await mailbox.take()
                self._look_now.set()

    async def _look(self) -> None:
        while True:
            if await happens(self._look_now, LOOK_SECONDS):
                await asyncio.sleep(0.05)  # a burst of events is one look
            self._look_now.clear()
            if not self._viewers:
                continue
            try:
                states = await registry.models(self._broker)
                self._tell_models(states)
                await self._tell_places({m.card.name: m.slots for m in states})
            except FleetError as error:
                logger.debug("no look: %s", error)
            except Exception:
                logger.exception("the look at the registry failed")

    def _tell_models(self, states: Sequence[ModelState]) -> None:
        before, models = self._models, {m.card.name: m.to_map() for m in states}
        self._models = models
        if before is None:
            news = _all(models)
        else:
            changed = [model for name, model in models.items() if before.get(name) != model]
            moved = {"order": list(models)} if list(models) != list(before) else {}
            if not changed and not moved:
                return
            news = pack({"type": "models_changed", "models": changed, **moved})
        for viewer in self._viewers:
            viewer.tell(_all(models) if viewer.behind("models") else news, "models")

    async def _tell_places(self, slots: Mapping[str, int]) -> None:
        waiting = list(self._waiting.items())
        if not waiting:
            return
        ranks = await queues.places(self._broker, [(model, request_id) for (_, request_id), (model, _) in waiting])
        paces = await queues.paces(self._broker, sorted({model for _, (model, _) in waiting}))
        for ((viewer, request_id), (model, told)), rank in zip(waiting, ranks, strict=True):
            if rank == told or (viewer, request_id) not in self._waiting:
                continue
            self._waiting[viewer, request_id] = (model, rank)
            news: dict[str, Any]
            if rank is None:
                news = {"type": "state", "request_id": request_id, "state": "running"}
            else:
                news = {"type": "place", "request_id": request_id, "place": rank}
                if model in paces and slots.get(model):  # as long as answers have taken, so many at a time
                    news["seconds"] = math.ceil((rank + 1) * paces[model] / slots[model])
            viewer.tell(pack(news), f"place {request_id}")


def _all(models: Mapping[str, Any]) -> bytes:
    return pack({"type": "models", "models": list(models.values())})


LIVE = web.AppKey("live", Live)
