"""OpenAI's endpoints: a body comes in, is asked of the fleet as one or many requests, and goes out whole or in events.

The check of keys, limits and the shape of errors is `webapp.access`' and `webapp.middleware`'s; what may be sent is in
`webapp.openai_types`, what is said in `webapp.openai_answers`.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from broker import chat, registry
from broker.connection import Broker
from broker.errors import FleetError, from_map
from broker.messages import ChatRequest, EmbedRequest, Frame
from broker.streams import Reader
from broker.tasks import stop
from webapp import access, openai_answers
from webapp.calls import CALLS, read_body
from webapp.openai_answers import ChatForm, CompletionForm, Map, Paper, Progress, Said
from webapp.openai_types import Asked, ChatCompletion, Completion, Embedding, StreamOptions, check
from webapp.sse import Events
from webapp.state import BROKER

logger = logging.getLogger("fleetchat.api")

BREATH = 32  # vectors that are written as JSON in one go
AT_ONCE = 64  # answers of one request that are asked for at the same time
MAILBOX = 256  # batches of frames that wait for a slow reader

Batch = list[tuple[int, Frame]]
Take = Callable[[float], Awaitable[list[tuple[int, Said]]]]
"""Gives what is new, by the index of the answer; nothing once all have ended, or when nothing comes for so many seconds."""


async def models(request: web.Request) -> web.Response:
    """GET /v1/models: those that can be asked, now or soon."""
    account = request[access.ACCOUNT]
    states = [
        state
        for state in await registry.models(request.app[BROKER])
        if state.state in ("ready", "loading") and account.allows(state.card.name)
    ]
    return _json({"object": "list", "data": [openai_answers.model(state) for state in states]})


async def model(request: web.Request) -> web.Response:
    """GET /v1/models/{id}: any that was ever offered."""
    name = request.match_info["id"]
    if request[access.ACCOUNT].allows(name):
        for state in await registry.models(request.app[BROKER]):
            if state.card.name == name:
                return _json(openai_answers.model(state))
    raise access.no_such_model(name)


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    asked = check(ChatCompletion, await read_body(request))
    requests = asked.requests(request[access.ACCOUNT].id)
    return await _answer(request, asked, requests, Paper(ChatForm(asked.logprobs), requests, asked.n, asked.n))


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions."""
    asked = check(Completion, await read_body(request))
    requests, candidates = asked.requests(request[access.ACCOUNT].id), asked.candidates
    shown = [one for k, one in enumerate(requests) if k % candidates < asked.n]
    form = CompletionForm(shown, echo=asked.echo, logprobs=asked.logprobs)
    return await _answer(request, asked, requests, Paper(form, requests, candidates, asked.n))


async def embeddings(request: web.Request) -> web.Response:
    """POST /v1/embeddings."""
    asked = check(Embedding, await read_body(request, EmbedRequest.ROOM))
    account = request[access.ACCOUNT]
    access.check_model(request, asked.model)
    wanted = asked.request(account.id)
    pieces: dict[int, list[str]] = {}  # by number: a worker that takes over says some again
    app = request.app
    async with app[CALLS].open(), chat.ask(app[BROKER], wanted, at_once=account.at_once) as reader:
        async for received in reader:
            frame = received.decode()
            pieces[frame.seq] = (frame.data or {}).get("vectors", [])
    end = frame.end or {}
    if failed := end.get("error"):
        raise from_map(failed)
    tokens = int(end["usage"]["prompt_tokens"])
    access.charge(request, tokens)
    vectors = [vector for seq in range(frame.seq + 1) for vector in pieces[seq]]
    entries = []
    for entry in openai_answers.embeddings(vectors, asked.encoding_format):
        entries.append(entry)
        if len(entries) % BREATH == 0:
            await asyncio.sleep(0)  # others' turn: a million numbers take half a second to write
    body = openai_answers.embedding_list(entries, asked.model, tokens)
    return web.Response(body=body, content_type="application/json")


async def _answer(
    request: web.Request, asked: Asked, requests: Sequence[ChatRequest], paper: Paper
) -> web.StreamResponse:
    """The answers to all requests, in the way that was asked for."""
    broker = request.app[BROKER]
    access.check_model(request, asked.model)
    for one in requests:
        chat.check_size(broker, one)
    try:
        if asked.stream:
            return await _stream(request, asked, requests, paper)
        answers = [Said() for _ in requests]
        async with _answering(request, requests) as take:
            while batch := await take(math.inf):
                for i, said in batch:
                    answers[i].add(said)
                    paper.note(i, said)
        return _json(paper.whole(answers))
    finally:
        access.charge(request, paper.usage["total_tokens"])


async def _stream(
    request: web.Request, asked: Asked, requests: Sequence[ChatRequest], paper: Paper
) -> web.StreamResponse:
    """The same as events. What goes wrong behind the first one is an event, too."""
    events = Events(request)
    try:
        try:
            async with _answering(request, requests) as take:
                await _relay(events, take, len(requests), paper, asked.stream_options or StreamOptions())
        except ConnectionError:
            raise
        except Exception as error:
            if not events.begun:
                raise
            if not isinstance(error, FleetError):
                logger.exception("a stream of %s failed", asked.model)
            await events.end(openai_answers.error(error if isinstance(error, FleetError) else FleetError()))
    except ConnectionError:  # nobody is there any more
        if not events.begun:
            raise
    return events.response


async def _relay(events: Events, take: Take, left: int, paper: Paper, options: StreamOptions) -> None:
    """All chunks of so many answers."""
    while left:
        chunks = []
        for i, said in await events.wait(take):
            left -= said.finish is not None
            paper.note(i, said)
            for chunk in paper.chunks(i, said):
                if options.continuous_usage_stats:
                    chunk["usage"] = paper.usage
                elif options.include_usage:
                    chunk["usage"] = None  # as OpenAI has it
                chunks.append(chunk)
        if left:
            await events.send(*chunks)
    if options.include_usage:
        chunks.append(paper.last())
    await events.end(*chunks)


@asynccontextmanager
async def _answering(request: web.Request, requests: Sequence[ChatRequest]) -> AsyncIterator[Take]:
    """A function that gives what is new in any of the answers; leaving ends them all.

    What it raises is the error of the first answer that has one.
    """
    broker, at_once = request.app[BROKER], request[access.ACCOUNT].at_once
    progress = [Progress() for _ in requests]

    def news(batch: Batch) -> list[tuple[int, Said]]:
        return [(i, progress[i].take(frame)) for i, frame in batch]

    async with request.app[CALLS].open():
        if len(requests) == 1:
            async with chat.ask(broker, requests[0], at_once=at_once) as reader:

                async def take_one(patience: float) -> list[tuple[int, Said]]:
                    return news(await _take(0, reader, patience))

                yield take_one
            return
        many = _Many(broker, requests, at_once)
        try:

            async def take_many(patience: float) -> list[tuple[int, Said]]:
                return news(await many.take(patience))

            yield take_many
        finally:
            await many.close()


async def _take(index: int, reader: Reader, patience: float = math.inf) -> Batch:
    return [(index, received.decode()) for received in await reader.take(patience)]


class _Many:
    """Several answers at once."""

    def __init__(self, broker: Broker, requests: Sequence[ChatRequest], at_once: int) -> None:
        self._broker, self._at_once = broker, at_once
        self._gate = asyncio.Semaphore(min(AT_ONCE, broker.config.queue_limit, at_once or AT_ONCE))
        self._mailbox = asyncio.Queue[Batch | Exception](MAILBOX)
        self._left = len(requests)
        self._tasks = [asyncio.create_task(self._read(i, one)) for i, one in enumerate(requests)]

    async def take(self, patience: float) -> Batch:
        """The next frames, as many as are there; nothing once all answers have ended, or when none comes for so many
        seconds. Raises the first error."""
        if not self._left:
            return []
        try:
            async with asyncio.timeout(None if patience == math.inf else patience):
                found = await self._mailbox.get()
        except TimeoutError:
            return []
        if isinstance(found, Exception):
            raise found
        self._left -= sum(frame.end is not None for _, frame in found)
        return found

    async def close(self) -> None:
        await stop(*self._tasks)

    async def _read(self, index: int, request: ChatRequest) -> None:
        try:
            async with self._gate, chat.ask(self._broker, request, at_once=self._at_once) as reader:
                while batch := await _take(index, reader):
                    await self._mailbox.put(batch)
        except Exception as error:  # whoever takes raises it
            await self._mailbox.put(error)


def _json(document: Map) -> web.Response:
    return web.Response(body=openai_answers.dump(document), content_type="application/json")
