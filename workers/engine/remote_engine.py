"""Any server that speaks OpenAI's protocol as an engine: vLLM, SGLang, llama.cpp, Ollama, `transformers serve`, a vendor.

Comes in: requests for models that run elsewhere. Goes out: their pieces, as the server streams them. One session serves
all models. A model's key is in the headers of its requests and nowhere else: no message, log line or card has it.
Redirects are not followed and proxies and .netrc not read, since both could give a key away. Before the first piece a
failure is tried again, a few times; behind it the answer ends with an error.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from aiohttp import ClientResponse, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from yarl import URL

from broker.errors import BadRequest, Overloaded, Unavailable
from broker.messages import ChatRequest
from workers.engine import EngineOptions, Progress, remote_wire
from workers.engine.remote_model import RemoteModel
from workers.engine.remote_pieces import DOCUMENT_BYTES, GONE, RemotePieces, read
from workers.engine.remote_refusal import Complaint

logger = logging.getLogger("fleetchat.remote")

LISTING_SECONDS = 10.0  # for a server's list of models, at start
CONNECT_SECONDS = 10.0
FIRST_SECONDS = 300.0  # to the first piece, tries and pauses included; a long prompt on a slow machine needs minutes
REFUSAL_SECONDS = 5.0  # for the body of a refusal
TRIES = 3
PAUSE_SECONDS = 0.5  # before the second try; twice that before the third
LONGEST_PAUSE_SECONDS = 5  # a longer Retry-After is for the user
REFUSAL_BYTES = 1 << 16

T = TypeVar("T")


class RemoteEngine:
    """See `workers.engine.Engine`. Entering `generate` waits for the first piece."""

    device = "remote"
    dtype = ""
    resumable = False  # another run would say something else
    cache_use = 0.0
    busy = False  # the time limits here end an answer that hangs

    def __init__(self, models: Sequence[RemoteModel], slots: int, session: ClientSession) -> None:
        self.cards = tuple(model.card for model in models)
        self.slots = slots
        self.steps = 0  # arrivals
        self.alive = True
        self._models = {model.card.name: model for model in models}
        self._free = asyncio.Semaphore(slots)
        self._session = session

    @asynccontextmanager
    async def generate(self, request: ChatRequest, said: Sequence[int] = ()) -> AsyncIterator[RemotePieces]:
        """Raises on entering what the server says before the first piece, else while iterating.

        Raises:
            BadRequest: the server refuses a parameter, or there is no name for it; PromptTooLong among them.
            Overloaded: its rate limit, with its Retry-After.
            Unavailable: it cannot be reached, is overloaded, or does not begin in time.
            KeyRefused: it refuses our key.
            UpstreamFailed: it broke off, fell silent, or makes no sense.
        """
        model = self._models[request.model]
        async with self._free:
            pieces = await self._begin(model, request)
            try:
                yield pieces
            finally:
                pieces.close()

    async def close(self) -> None:
        """Close all connections; answers under way end with UpstreamFailed."""
        self.alive = False
        await self._session.close()

    def _arrived(self) -> None:
        self.steps += 1

    async def _begin(self, model: RemoteModel, request: ChatRequest) -> RemotePieces:
        try:
            async with asyncio.timeout(FIRST_SECONDS):
                return await persist(lambda: self._try(model, request))
        except TimeoutError:
            name = model.card.name
            logger.warning("%s: %s did not begin to answer in %g s", name, model.base, FIRST_SECONDS)
            raise Unavailable(
                f"The server behind {name} did not begin to answer within {FIRST_SECONDS:g} s. Please try again later."
            ) from None

    async def _try(self, model: RemoteModel, request: ChatRequest) -> RemotePieces:
        sent = remote_wire.body(request, model.upstream, model.unsupported)
        try:
            response = await self._session.post(
                model.base / "chat/completions", json=sent, headers=model.headers, allow_redirects=False
            )
        except GONE as error:
            name = model.card.name
            logger.warning("%s: %s cannot be reached: %s", name, model.base, type(error).__name__)
            raise Unavailable(f"The server behind {name} cannot be reached. Please try again in a moment.") from None
        try:
            if response.status == 200:
                pieces = RemotePieces(model, response, self._arrived)
                await pieces.begin()
                return pieces
            complaint = await read_complaint(response)
        except BaseException:
            response.close()
            raise
        response.close()
        refused = model.refusal(response, complaint, sent)
        logger.warning("%s: %s answered with status %d: %s", model.card.name, model.base, response.status, refused.code)
        if type(refused) is BadRequest and (param := complaint.dispensable(sent)):
            logger.warning("%s: %s is not sent any more", model.card.name, param)
            model.unsupported.add(param)
            return await self._try(model, request)
        raise refused


async def open_engine(options: EngineOptions, progress: Progress) -> RemoteEngine:
    """An engine for models on other servers. Whether those are there, and take our key, is only logged: one that is not
    must not take the others down, and it may come later.

    Raises:
        ModelUnusable: an address is none, or a key is not where it should be; its value is never in the message.
    """
    models = [RemoteModel.of(source) for source in options.models]
    session = open_session()
    try:
        servers: dict[tuple[URL, str], list[RemoteModel]] = {}
        for model in models:
            servers.setdefault((model.base, model.headers.get("Authorization", "")), []).append(model)
        async with asyncio.TaskGroup() as group:
            for served in servers.values():
                group.create_task(_learn(session, served))
    except BaseException:
        await session.close()
        raise
    progress(100)
    return RemoteEngine(models, options.slots, session)


def open_session() -> ClientSession:
    """A client for such servers, which a running loop has to hold; whoever opens it closes it."""
    return ClientSession(
        connector=TCPConnector(limit=0),
        timeout=ClientTimeout(total=None, connect=CONNECT_SECONDS),
        cookie_jar=DummyCookieJar(),
        trust_env=False,
    )


async def persist(attempt: Callable[[], Awaitable[T]]) -> T:
    """What an attempt gives. Where another one may help, up to TRIES are made, with growing pauses."""
    for tries in range(1, TRIES):
        try:
            return await attempt()
        except (Overloaded, Unavailable) as error:
            pause = PAUSE_SECONDS * 2 ** (tries - 1) * random.uniform(0.5, 1.5)
            pause = max(pause, error.retry_after or 0)
            if pause > LONGEST_PAUSE_SECONDS:
                raise
        await asyncio.sleep(pause)
    return await attempt()


async def _learn(session: ClientSession, models: Sequence[RemoteModel]) -> None:
    """Ask one server which models it has."""
    model = models[0]
    try:
        async with asyncio.timeout(LISTING_SECONDS):
            response = await session.get(model.base / "models", headers=model.headers, allow_redirects=False)
            async with response:
                status, raw = response.status, await read(response.content, DOCUMENT_BYTES)
    except GONE as error:
        logger.warning("%s does not answer yet: %s", model.base, type(error).__name__)
        return
    if status in (401, 403):
        logger.warning("%s refuses our key (%d); requests for its models will fail", model.base, status)
    elif status != 200:
        logger.info("%s gives no list of models (%d)", model.base, status)
    else:
        try:
            listing = {str(entry["id"]): entry for entry in remote_wire.parse(raw)["data"]}
        except remote_wire.WRONG:
            logger.warning("%s has a list of models that cannot be read", model.base)
            return
        for each in models:
            each.learn(listing)


async def read_complaint(response: ClientResponse) -> Complaint:
    """What a refusal says; of one that is neither JSON nor plain text nothing."""
    try:
        async with asyncio.timeout(REFUSAL_SECONDS):
            raw = await read(response.content, REFUSAL_BYTES)
        if response.content_type == "text/plain":
            return Complaint(raw.decode(errors="replace"))
        return Complaint.of(remote_wire.parse(raw)) or Complaint()
    except (*GONE, *remote_wire.WRONG):
        return Complaint()
