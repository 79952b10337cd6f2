"""One websocket: what a page sends becomes calls, what a request says goes out as it was published.

Incoming messages are msgpack maps with a `type`; each is checked against a closed schema. Outgoing ones are maps back to
back: frames have no `type`, control messages do. A socket that reads slowly blocks only its own streams: their mailboxes
fill, join into one message, and beyond their bound are read again from Redis.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress

from aiohttp import WSCloseCode, WSMsgType, web

from broker import keys, metrics
from broker.connection import Broker
from broker.errors import BadRequest, FleetError, Overloaded
from broker.messages import pack, unpack
from broker.streams import Reader
from broker.tasks import beside, stop
from webapp import arena, chat
from webapp.arena import ARENA, Arena
from webapp.live import LIVE, Live
from webapp.middleware import check_origin
from webapp.protocol import Incoming, parse
from webapp.session import SESSIONS
from webapp.state import BROKER
from webapp.titles import TITLES, Titles

logger = logging.getLogger("fleetchat.socket")

STREAMS = 64  # that one socket may follow at once
HEARTBEAT_SECONDS = 20.0
STUCK_SECONDS = 20.0  # a peer that has taken nothing of what waits for it for so long is given up
FAREWELL_SECONDS = 0.5  # for the last words to all, when the app stops
HANDLERS = chat.HANDLERS | arena.HANDLERS
AT_ONCE = ("stop", "battle-stop")  # also while as many streams as may be are followed


class Socket:
    """A page's connection."""

    def __init__(
        self,
        ws: web.WebSocketResponse,
        transport: asyncio.WriteTransport,
        broker: Broker,
        live: Live,
        titles: Titles,
        arena: Arena,
        owner: str,
    ) -> None:
        self.broker = broker
        self.live = live
        self.titles = titles
        self.arena = arena
        self.owner = owner
        self._ws = ws
        self._transport = transport
        self._turn = asyncio.Lock()
        self._left = 0  # bytes that waited for the peer when `check` last looked
        self._moved = 0.0  # when it last took some, or a new message went out
        self._news: dict[str, bytes] = {}
        self._teller: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, news: bytes, topic: str) -> None:
        """See `webapp.live.Viewer`."""
        self._news[topic] = news
        if self._teller is None or self._teller.done():
            self._teller = asyncio.create_task(self._tell())

    def behind(self, topic: str) -> bool:
        """See `webapp.live.Viewer`."""
        return topic in self._news

    async def _tell(self) -> None:
        while self._news:
            waiting, self._news = self._news, {}
            await self.send(b"".join(waiting.values()))

    async def send(self, message: bytes) -> None:
        """Send one message; waits while the peer reads slowly, and does nothing once it has gone.

        One at a time: so many streams as one page may follow do not each put a message into the buffer.
        """
        async with self._turn:
            self._moved = time.monotonic()
            with suppress(ConnectionError):
                await self._ws.send_bytes(message)

    def check(self, now: float) -> None:
        """Give the peer up if it is stuck; to be called about once a second."""
        if not self._turn.locked():
            return  # nothing waits
        left, before = self._transport.get_write_buffer_size(), self._left
        self._left = left
        if left < before:
            self._moved = now
        if now - self._moved > STUCK_SECONDS:
            logger.info("a page has read nothing for %g s, its connection is cut", STUCK_SECONDS)
            metrics.DROPPED.labels("stuck").inc()
            self.cut()

    def cut(self) -> None:
        """End the connection now, whatever still waits to be sent: to close it would wait for that, perhaps for ever."""
        self._transport.abort()

    async def say_goodbye(self) -> None:
        """Tell the page to come back later, and perhaps elsewhere."""
        await self._ws.close(code=WSCloseCode.GOING_AWAY, message=b"restart")

    async def relay(self, reader: Reader) -> None:
        """The frames, as they were published, until the last one."""
        while batch := await reader.take():
            await self.send(batch[0].encoded if len(batch) == 1 else b"".join(frame.encoded for frame in batch))

    async def take(self, message: Incoming) -> None:
        """Do what a message asks for, beside what else goes on. Refusing waits for the peer, so nothing piles up."""
        if message.type in AT_ONCE:
            await self._do(message)
        elif len(self._tasks) >= STREAMS:
            error = Overloaded(f"One page may follow {STREAMS} answers at once. Stop one, or wait.")
            await self.fail(error, message.tags())
        else:
            task = asyncio.create_task(self._do(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _do(self, message: Incoming) -> None:
        try:
            await HANDLERS[message.type](self, message)
        except FleetError as error:
            await self.fail(error, message.tags())
        except Exception:
            logger.exception("%s failed", message.type)
            await self.fail(FleetError(), message.tags())

    async def fail(self, error: FleetError, tags: dict[str, str] | None = None) -> None:
        """Say what went wrong; the socket stays open."""
        await self.send(pack({"type": "error", **(tags or {}), **error.to_map()}))

    async def events(self) -> None:
        """What happens in this owner's conversations, in whichever tab or process."""
        async with self.broker.listener.subscribe(keys.events_of(self.owner), limit=64, patience=None) as mailbox:
            while True:
                events, gap = await mailbox.take()
                await self.send(pack({"type": "event", "event": "changed"}) if gap else b"".join(events))

    async def close(self) -> None:
        """Stop everything that was started for this socket."""
        await stop(*self._tasks, *([self._teller] if self._teller else []))


async def websocket(request: web.Request) -> web.WebSocketResponse:
    """`/ws`. Closes with 1007 on what is not msgpack and 1009 on what is too large; a foreign page gets 403.

    With `?blind` it says nothing of models: what they do while a blind round is answered would say who answers it.
    """
    check_origin(request)
    broker, live = request.app[BROKER], request.app[LIVE]
    # A prompt over its limit is refused by name; only what could not be any prompt closes the socket.
    limit = 2 * broker.config.prompt_bytes + 65_536
    ws = web.WebSocketResponse(max_msg_size=limit, compress=False, heartbeat=HEARTBEAT_SECONDS)
    owner = await request.app[SESSIONS].remember(request, ws)
    await ws.prepare(request)
    if request.transport is None:
        return ws  # it has gone again
    socket = Socket(ws, request.transport, broker, live, request.app[TITLES], request.app[ARENA], owner)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(socket.close)
        stack.enter_context(request.app[OPEN].open(socket))
        if "blind" not in request.query:
            await stack.enter_async_context(beside(socket.events()))
            stack.enter_context(live.viewing(socket))
        await _receive(ws, socket)
    if isinstance(ws.exception(), TimeoutError):  # no answer to a ping
        metrics.DROPPED.labels("silent").inc()
        socket.cut()
    return ws


async def _receive(ws: web.WebSocketResponse, socket: Socket) -> None:
    async for message in ws:
        if message.type is WSMsgType.ERROR:
            return  # aiohttp has closed it: too large, or no websocket any more
        try:
            raw = unpack(message.data if message.type is WSMsgType.BINARY else message.data.encode())
        except ValueError:
            await ws.close(code=WSCloseCode.INVALID_TEXT, message=b"not msgpack")
            return
        try:
            incoming = parse(raw)
        except BadRequest as error:
            ref = raw.get("ref") if isinstance(raw, dict) else None
            await socket.fail(error, {"ref": ref} if isinstance(ref, str) else None)
            continue
        await socket.take(incoming)


class OpenSockets:
    """All of this process: looked after while it runs, and closed when it stops."""

    def __init__(self) -> None:
        self._sockets: set[Socket] = set()

    @contextmanager
    def open(self, socket: Socket) -> Iterator[None]:
        """It is one of them while the block runs."""
        self._sockets.add(socket)
        try:
            yield
        finally:
            self._sockets.discard(socket)

    async def watch(self) -> None:
        """Give up those that are stuck, until cancelled."""
        while True:
            await asyncio.sleep(min(1.0, STUCK_SECONDS / 4))
            now = time.monotonic()
            for socket in list(self._sockets):
                socket.check(now)

    async def close(self) -> None:
        """Say goodbye to all; who does not hear it in time is cut off."""
        sockets = list(self._sockets)
        goodbyes = [asyncio.create_task(socket.say_goodbye()) for socket in sockets]
        if goodbyes:
            await asyncio.wait(goodbyes, timeout=FAREWELL_SECONDS)
        for socket in sockets:
            socket.cut()
        await stop(*goodbyes)


OPEN = web.AppKey("open_sockets", OpenSockets)


async def watched(app: web.Application) -> AsyncIterator[None]:
    """For `cleanup_ctx`."""
    async with beside(app[OPEN].watch()):
        yield


async def close_all(app: web.Application) -> None:
    """For `on_shutdown`."""
    await app[OPEN].close()
