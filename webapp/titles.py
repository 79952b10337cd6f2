"""Titles for new conversations, made in the background: the tasks that the app owns for it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from aiohttp import web

from broker import streams, titles
from broker.connection import Broker
from broker.errors import FleetError
from broker.tasks import stop

logger = logging.getLogger("fleetchat.titles")

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
            async with streams.read(self._broker, request_id) as reader:
                while await reader.take():
                    pass
            await titles.suggest(self._broker, conversation, owner, model)
        except FleetError as error:
            logger.debug("no title for %s: %s", conversation, error)
        except Exception:
            logger.exception("no title for %s", conversation)


TITLES = web.AppKey("titles", Titles)
