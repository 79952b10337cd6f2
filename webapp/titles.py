"""Titles for new conversations, made in the background: the tasks that the app owns for it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from aiohttp import web

from broker import keys, titles
from broker.connection import Broker, redis_errors
from broker.errors import FleetError
from broker.tasks import stop

logger = logging.getLogger("fleetchat.titles")

LOOK_SECONDS = 30.0  # between two looks, if no event tells of the end
MOST = 64  # that are waited for at once; with more, the first words have to do


class Titles:
    """The app's, `running` for as long as it does."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Those that are not made when the block ends are not made."""
        try:
            yield self
        finally:
            await stop(*self._tasks)

    def begin(self, conversation: str, owner: str, model: str, request_id: str) -> None:
        """Find a title once the first answer, which this request writes, has ended."""
        if len(self._tasks) < MOST:
            task = asyncio.create_task(self._make(conversation, owner, model, request_id))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _make(self, conversation: str, owner: str, model: str, request_id: str) -> None:
        try:
            # The owner's events, not the answer's frames: nobody may be reading those any more.
            async with self._broker.listener.subscribe(keys.events_of(owner), limit=64) as mailbox:
                while await self._goes_on(request_id):
                    await mailbox.take(LOOK_SECONDS)
            await titles.suggest(self._broker, conversation, owner, model)
        except FleetError as error:
            logger.debug("no title for %s: %s", conversation, error)
        except Exception:
            logger.exception("no title for %s", conversation)

    async def _goes_on(self, request_id: str) -> bool:
        async with redis_errors():
            state = await self._broker.redis.hget(keys.request(request_id), "state")
        return state not in (None, b"ended")


TITLES = web.AppKey("titles", Titles)
