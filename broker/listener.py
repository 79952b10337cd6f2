"""One subscription connection per process, shared by everybody in it.

Comes in: channels to listen to. Goes out: what was published on them, into a bounded mailbox per listener. The reading
loop never waits for a listener: a mailbox that is full is emptied and marked, and its owner reads the list instead.

Pub/sub forgets, so a listener must know when it may have missed something. Every confirmation of a subscription after
the first (the connection was lost and made again) marks the mailboxes of that channel. A connection that died without
a word is noticed by a heartbeat on that same connection: PING, once a second, answered within DEAF_SECONDS.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator
from typing import Self

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from broker import metrics
from broker.errors import RedisAway
from broker.tasks import beside, happens

logger = logging.getLogger("fleetchat.listener")

PING_SECONDS = 1.0
DEAF_SECONDS = 3.0
CONFIRM_SECONDS = 10.0
LOST = (RedisError, OSError, AttributeError)  # the last is redis-py's, when a connection is closed while it sends


class Mailbox:
    """What arrived on one channel for one listener, at most `limit` messages."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._messages: deque[bytes] = deque()
        self._gap = False
        self._waiter: asyncio.Future[None] | None = None  # of whoever takes, while nothing is here

    def put(self, message: bytes) -> None:
        if len(self._messages) >= self._limit:
            if self._limit > 1 and not self._gap:  # with one, only the latest is wanted
                metrics.DROPPED.labels("behind").inc()
            self.miss()
        else:
            self._messages.append(message)
            self._wake()

    def miss(self) -> None:
        """Something may be missing: whoever takes next is told so, and what is here is dropped."""
        self._messages.clear()
        self._gap = True
        self._wake()

    async def take(self, timeout: float | None = None) -> tuple[list[bytes], bool]:
        """All messages that are here, at least one unless there is a gap or the time is up; and whether there is a gap."""
        if not self._messages and not self._gap:
            await self._wait(timeout)
        messages, gap = list(self._messages), self._gap
        self._messages.clear()
        self._gap = False
        return messages, gap

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self, timeout: float | None) -> None:
        # A bare timer costs a third of asyncio.timeout, and every frame of every stream comes through here.
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = None if timeout is None else loop.call_later(timeout, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()


class _Channel:
    def __init__(self) -> None:
        self.mailboxes: set[Mailbox] = set()
        self.confirmed = asyncio.Event()
        self._again = False

    def confirm(self) -> None:
        """Redis has confirmed a subscription; after the first, messages may have been missed."""
        if self._again:
            for mailbox in self.mailboxes:
                mailbox.miss()
        self._again = True
        self.confirmed.set()


class Listener:
    """Works while `running` is entered; `subscribe` gives a mailbox once Redis has confirmed."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis  # for how to connect
        self._channels: dict[bytes, _Channel] = {}
        self._joining: set[bytes] = set()  # channels to subscribe to in the next call
        self._leaving: set[bytes] = set()  # those that nobody hears any more; they can wait for a call
        self._some = asyncio.Event()
        self._connection: AbstractConnection | None = None
        self._deadline = asyncio.timeout(None)
        self.alive = False  # connected, and answering

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Connected, or trying to be, while the block runs."""
        async with beside(self._read(), self._join(), self._ping()):
            yield self

    @contextlib.asynccontextmanager
    async def subscribe(
        self, name: str, limit: int = 1024, patience: float | None = CONFIRM_SECONDS
    ) -> AsyncIterator[Mailbox]:
        """A mailbox of what is published on a channel from now on.

        Args:
            patience: how long to wait for the confirmation; None waits until Redis is back, for what lives as long as
                its process.

        Raises:
            RedisAway: no confirmation came in time.
        """
        key, mailbox = name.encode(), Mailbox(limit)
        channel = self._channels.get(key)
        known = channel is not None
        if channel is None:
            channel = self._channels[key] = _Channel()
        channel.mailboxes.add(mailbox)
        try:
            if not known:
                self._joining.add(key)
                self._some.set()
            if not await happens(channel.confirmed, patience):
                raise RedisAway
            yield mailbox
        finally:
            channel.mailboxes.discard(mailbox)
            if not channel.mailboxes and self._channels.get(key) is channel:
                del self._channels[key]
                if key in self._joining:
                    self._joining.discard(key)
                else:
                    self._leaving.add(key)

    async def _send(self, *more: tuple[str]) -> None:
        """What has gathered, in one call: first who leaves, since a channel may be wanted again."""
        calls: list[tuple[str | bytes, ...]] = []
        if self._leaving:
            calls.append(("UNSUBSCRIBE", *self._leaving))
        if self._joining:
            calls.append(("SUBSCRIBE", *self._joining))
        self._leaving, self._joining = set(), set()
        if self._connection is None:
            return  # once connected, the reading loop subscribes to all of `_channels`
        if calls := [*calls, *more]:
            with contextlib.suppress(*LOST):  # the reading loop sees the same and connects again
                await self._connection.send_packed_command(self._connection.pack_commands(calls))

    async def _join(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            await self._send()

    async def _read(self) -> None:
        pause = 0.05
        while True:
            connection = self._redis.connection_pool.make_connection()
            connection.socket_timeout = (
                None  # an idle subscription is silent for minutes; the heartbeat notices a dead one
            )
            try:
                async with asyncio.timeout(CONFIRM_SECONDS) as self._deadline:
                    await connection.connect()
                    self._connection = connection
                    self._joining, self._leaving = set(), set()
                    if self._channels:
                        await connection.send_command("SUBSCRIBE", *self._channels)
                    await connection.send_command("PING")
                    while True:
                        self._dispatch(await self._reply(connection))
                        pause = 0.05
            except LOST as error:
                what = "subscription lost" if self.alive else "cannot reach Redis"
                metrics.RECONNECTS.inc(self.alive)
                logger.warning("%s, trying again: %s", what, str(error) or "it does not answer")
            finally:
                self._connection, self.alive = None, False
                for channel in self._channels.values():
                    channel.confirmed.clear()
                await connection.disconnect(nowait=True)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)

    async def _reply(self, connection: AbstractConnection) -> list[bytes] | bytes:
        try:
            reply: list[bytes] | bytes = await connection.read_response(disable_decoding=True)
            return reply
        except ResponseError as error:
            if str(error).startswith("MISCONF"):
                return b"PONG"  # a server whose disk is full refuses even PING, and still publishes
            raise

    def _dispatch(self, reply: list[bytes] | bytes) -> None:
        match reply:
            case [b"message", name, payload]:
                for mailbox in self._channels[name].mailboxes if name in self._channels else ():
                    mailbox.put(payload)
            case [b"subscribe", name, _] if name in self._channels:
                self._channels[name].confirm()
            case [b"pong", _] | b"PONG":  # the second, while there is no channel
                self.alive = True
                self._deadline.reschedule(asyncio.get_running_loop().time() + DEAF_SECONDS)

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(PING_SECONDS)
            await self._send(("PING",))
