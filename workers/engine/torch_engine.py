"""An engine that runs a model in this process: transformers' continuous batching behind the Engine protocol.

Messages in, pieces of text out. The model runs in a thread of its own and crosses to the event loop once per step,
with the new tokens of all requests; there each request keeps its tokens until its reader takes them, so a slow reader
gets fewer and larger pieces and slows nobody. An answer's end token is neither in its text nor in its token ids.
Knows no Redis, no jobs and no web.
"""

import asyncio
import gc
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from broker.errors import BadRequest, EngineFailed, ModelUnusable, PromptTooLong
from broker.messages import ChatRequest, Message, ModelCard
from workers.engine import EngineOptions, Piece, Progress
from workers.engine.batching import Batcher, Step, Stream
from workers.engine.model import Loaded, load
from workers.engine.prompt import Prompter
from workers.engine.sampling import Draw
from workers.engine.text import Transcript, Vocabulary

logger = logging.getLogger(__name__)

LARGE_PROMPT = 4_000  # characters; a larger one is encoded in a thread, so that the event loop stays free
CLOSE_SECONDS = 2.0

T = TypeVar("T")


async def open_engine(options: EngineOptions, progress: Progress) -> "TorchEngine":
    """The engine for a folder or hub id, loaded and running.

    Raises:
        ModelUnusable: with one sentence that says what is wrong with the model or what is missing here.
    """
    loop = asyncio.get_running_loop()
    given_up = threading.Event()

    def tell(percent: int) -> None:
        if given_up.is_set():  # transformers drops the tensors that it has not read yet, so that the process can end
            raise asyncio.CancelledError
        progress(percent)

    def work() -> TorchEngine:
        return TorchEngine(load(options.models[0].source, options.device, options.dtype, tell), options, loop)

    try:
        return await _in_daemon(work)
    except asyncio.CancelledError:
        given_up.set()
        raise


class TorchEngine:
    """Many requests at once on one model."""

    resumable = True

    def __init__(self, loaded: Loaded, options: EngineOptions, loop: asyncio.AbstractEventLoop) -> None:
        """Takes the cache and starts the thread; blocks for as long as that takes.

        Raises:
            ModelUnusable: the cache does not fit, or the model's attention is of a kind that cannot be batched.
        """
        self.slots = options.slots
        self.device = str(loaded.device)
        self.dtype = str(loaded.dtype).removeprefix("torch.")
        self._loop = loop
        self._end_ids = loaded.end_ids
        self._ids = len(loaded.model.get_input_embeddings().weight)  # type: ignore[arg-type]
        self._prompter = Prompter(loaded.tokenizer)
        self._vocabulary = Vocabulary(loaded.tokenizer)
        self._answers: dict[Stream, Answer] = {}
        try:
            self._batcher = Batcher(loaded, options.slots, options.cache_mb, self._cross)
        except Exception as error:  # the model's own code runs here for the first time
            logger.debug("the first step of %s failed", options.models[0].source, exc_info=True)
            raise ModelUnusable(f"{options.models[0].source} was loaded but cannot be run: {error!r}.") from error
        self.context = min(loaded.context, self._batcher.longest)
        if self.context < loaded.context:
            logger.warning("the cache holds %d of the %d tokens of context", self.context, loaded.context)
        megabytes, tokens = self._batcher.cache_bytes / 2**20, f"{self._batcher.cache_tokens:,}".replace(",", " ")
        logger.info("cache %.0f MB, %s tokens", megabytes, tokens)
        self.cards = (ModelCard(options.models[0].name, context=self.context),)
        self._batcher.start()

    @property
    def steps(self) -> int:
        """Steps of the model so far."""
        return self._batcher.steps

    @property
    def alive(self) -> bool:
        """False once the thread has ended: no answer will come any more."""
        return self._batcher.alive

    @property
    def busy(self) -> bool:
        """Whether some answer waits for its next token."""
        return bool(self._answers)

    @asynccontextmanager
    async def generate(self, request: ChatRequest, said: Sequence[int] = ()) -> AsyncIterator["Answer"]:
        """One answer; see the protocol."""
        sampling = request.sampling
        prompt = await self._encode(request.messages)
        room = self.context - len(prompt)
        if room < 1:
            raise PromptTooLong(
                f"The conversation has {len(prompt)} tokens and this model takes {self.context}, "
                "the answer among them. Shorten it or start a new one."
            )
        limit = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
        answer = Answer(len(prompt), limit, Transcript(self._vocabulary, sampling.stop), self._end_ids, said)
        stream = Stream(
            prompt=[*prompt, *said],
            limit=limit - len(said),
            draw=Draw(sampling.temperature, sampling.top_p, sampling.seed),
            position=len(said),
        )
        try:
            if not answer.over:
                self._answers[stream] = answer
                answer.leave = lambda: self._leave(stream)
                if not self._batcher.join_stream(stream):
                    answer.end(EngineFailed())
            yield answer
        finally:
            self._leave(stream)

    async def close(self) -> None:
        """Stop the thread and free the memory; answers under way end with EngineFailed."""
        await _in_daemon(lambda: self._batcher.shut(CLOSE_SECONDS))
        self._batcher.batch_processor = None
        self._batcher.model = None  # type: ignore[assignment]
        gc.collect()

    def _leave(self, stream: Stream) -> None:
        self._batcher.leave(stream)
        self._answers.pop(stream, None)

    async def _encode(self, messages: Sequence[Message]) -> list[int]:
        if sum(len(m.content) for m in messages) > LARGE_PROMPT:
            ids = await asyncio.to_thread(self._prompter.encode, messages)
        else:
            ids = self._prompter.encode(messages)
        if ids and max(ids) >= self._ids:  # would bring a GPU down
            raise BadRequest("The conversation holds a token that this model's vocabulary does not have.")
        return ids

    def _cross(self, steps: Sequence[Step]) -> None:
        """From the batching thread to the event loop."""
        try:
            self._loop.call_soon_threadsafe(self._spread, steps)
        except RuntimeError:
            logger.debug("the event loop is closed; nobody is left to answer")

    def _spread(self, steps: Sequence[Step]) -> None:
        for step in steps:
            answer = self._answers.get(step.stream)
            if answer is None:
                continue  # its reader has left
            if step.token is not None:
                answer.take(step.token)
            if step.error is not None:
                logger.error("request ended by the engine: %s", step.error)
                answer.end(EngineFailed())


class Answer:
    """One answer as it is being made. Belongs to the event loop; its reader is the one who entered `generate`."""

    def __init__(
        self, prompt_tokens: int, limit: int, transcript: Transcript, end_ids: frozenset[int], said: Sequence[int]
    ) -> None:
        """Feeds what has been said, so that text and counting go on behind it."""
        self.prompt_tokens = prompt_tokens
        self.leave: Callable[[], None] = lambda: None
        self._limit = limit  # tokens of the answer at most, those in `said` too
        self._transcript = transcript
        self._end_ids = end_ids
        self._tokens: deque[int] = deque()  # made and not yet read; never more than the limit
        self._count = len(said)
        self._error: Exception | None = None
        self._done = False
        self._news = asyncio.Event()
        for token in said:
            transcript.feed(token)
        if self.over:
            self._news.set()

    @property
    def over(self) -> bool:
        """Whether no more tokens are needed."""
        return self._transcript.stopped or self._count >= self._limit

    def take(self, token: int) -> None:
        """A new token from the engine."""
        self._tokens.append(token)
        self._news.set()

    def end(self, error: Exception) -> None:
        """The engine gave up; what it made before is still read."""
        self._error = error
        self._news.set()

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        """All that has come since the last piece; waits when that is nothing."""
        if self._done:
            raise StopAsyncIteration
        await self._news.wait()
        self._news.clear()
        if self._error is not None and not self._tokens:
            self._done = True
            raise self._error
        piece = self._read()
        if piece.finish is not None:
            self._done = True
            self.leave()
        elif self._error is not None:
            self._news.set()
        return piece

    def _read(self) -> Piece:
        text, ids, ended = "", [], False
        while self._tokens and not (self.over or ended):
            token = self._tokens.popleft()
            ended = token in self._end_ids
            if not ended:
                ids.append(token)
                self._count += 1
                text += self._transcript.feed(token)
        if not (ended or self.over):
            return Piece(text, tuple(ids))
        text += self._transcript.finish()
        return Piece(text, tuple(ids), finish="stop" if ended or self._transcript.stopped else "length")


async def _in_daemon(work: Callable[[], T]) -> T:
    """The result of blocking work, done in a thread that does not keep the process alive."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            logger.debug("the event loop was closed while a thread worked for it")

    threading.Thread(target=run, name="engine-work", daemon=True).start()
    return await future
