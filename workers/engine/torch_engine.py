"""An engine that runs a model in this process: transformers' continuous batching behind the Engine protocol.

Messages in, pieces of text out. The model runs in a thread of its own and crosses to the event loop once per step,
with the new tokens of all requests; there each request keeps its tokens until its reader takes them, so a slow reader
gets fewer and larger pieces and slows nobody. An answer's end token is neither in its text nor in its token ids; behind
a prompt (not messages) its log-probability is told, as OpenAI's completions have it.
Knows no Redis, no jobs and no web.
"""

import asyncio
import gc
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from broker import sources
from broker.errors import (
    BadRequest,
    EngineFailed,
    ModelUnusable,
    NoSuchModel,
    PromptTooLong,
    SetupError,
    StepFailed,
)
from broker.messages import ChatRequest, ModelCard, Sampling, TokenRequest
from broker.sources import ModelSource
from workers.engine import EngineOptions, Piece, Progress, TokenLogprob, parallel
from workers.engine.adapters import Adapters, base_of
from workers.engine.batching import PRIVATE, SPOILT, Batcher, Step, Stream
from workers.engine.inputs import TOKEN_BITS
from workers.engine.model import Loaded, load
from workers.engine.parallel import Followers
from workers.engine.prompt import Prompter
from workers.engine.replies import Part, Replies, Reply
from workers.engine.sampling import Logprob, Row
from workers.engine.structure import Grammars, Matcher
from workers.engine.text import Transcript, Vocabulary
from workers.engine.thread import Thread
from workers.engine.tokens import LARGE_PROMPT, Tokens

logger = logging.getLogger("fleetchat.engine")

CLOSE_SECONDS = 2.0
ABILITIES = ("continue", "logprobs", "prompt_logprobs", "structure", "tools")


async def open_engine(options: EngineOptions, progress: Progress) -> "TorchEngine":
    """The engine for a folder or hub id, loaded and running.

    Raises:
        ModelUnusable: with one sentence that says what is wrong with the model or what is missing here.
    """
    loop = asyncio.get_running_loop()
    base, adapters = _divide(options.models)
    followers = parallel.start(options, base, adapters) if options.parallel > 1 else None

    def work(tell: Progress) -> TorchEngine:
        rank = None if followers is None else followers.rank
        loaded = load(base, options.device, options.dtype, options.quantization, tell, rank)
        return TorchEngine(loaded, base, adapters, options, loop, followers)

    with Thread() as thread:
        loading = asyncio.ensure_future(thread.load(work, progress))
        return await (loading if followers is None else followers.watch(loading))


class TorchEngine:
    """Many requests at once on one model."""

    resumable = True

    def __init__(
        self,
        loaded: Loaded,
        base: ModelSource,
        adapters: Sequence[ModelSource],
        options: EngineOptions,
        loop: asyncio.AbstractEventLoop,
        followers: Followers | None = None,
    ) -> None:
        """Takes the cache and starts the thread; blocks for as long as that takes.

        Raises:
            ModelUnusable: the cache does not fit, the model's attention is of a kind that cannot be batched, or an
                adapter does not fit the model.
        """
        self.slots = options.slots
        self.device = str(loaded.device)
        self.dtype = str(loaded.dtype).removeprefix("torch.")
        self._loop = loop
        self._followers = followers
        self._end_ids = loaded.end_ids
        self._ids = len(loaded.model.get_input_embeddings().weight)  # type: ignore[arg-type]
        if self._ids > 1 << TOKEN_BITS or len(adapters) >= PRIVATE:
            raise ModelUnusable(
                f"{base.source} has {self._ids} tokens, or more adapters, than the engine has room for."
            )
        self._prompter = Prompter(loaded.tokenizer)
        self._vocabulary = Vocabulary(loaded.tokenizer)
        self._replies = Replies(loaded.tokenizer, self._prompter.with_tool)
        self._marked = Vocabulary(loaded.tokenizer, self._replies.markers)
        self._grammars = Grammars(loaded.tokenizer, self._ids, loaded.end_ids)
        self._answers: dict[Stream, Answer] = {}
        self._adapters = {base.name: 0}
        applied = Adapters(loaded.model) if adapters else None
        for adapter in adapters:
            assert applied is not None
            self._adapters[adapter.name] = applied.add(Path(adapter.source))
        try:
            self._batcher = Batcher(loaded, options.slots, options.cache_mb, self._cross, applied, followers)
        except Exception as error:  # the model's own code runs here for the first time
            logger.debug("the first step of %s failed", base.source, exc_info=True)
            raise ModelUnusable(f"{base.source} was loaded but cannot be run: {error!r}.") from error
        self.context = min(loaded.context, self._batcher.longest, base.context or loaded.context)
        if self.context < loaded.context:
            logger.warning("the cache holds %d of the %d tokens of context", self.context, loaded.context)
        megabytes, tokens = self._batcher.cache_bytes / 2**20, f"{self._batcher.cache_tokens:,}".replace(",", " ")
        logger.info("cache %.0f MB, %s tokens", megabytes, tokens)
        self._tokens = Tokens(loaded.tokenizer, self._write, self.context, self._ids)
        served = [m.name for m in options.models]
        self.cards = tuple(
            ModelCard(name, context=self.context, parent=base.name if number else "", abilities=ABILITIES)
            for name, number in self._adapters.items()
            if name in served
        )
        self._batcher.start()

    @property
    def cache_use(self) -> float:
        """Share of the cache that answers hold."""
        return 1 - self._batcher.free_share()

    @property
    def steps(self) -> int:
        """Steps of the model so far."""
        return self._batcher.steps

    @property
    def alive(self) -> bool:
        """False once the thread or a follower has ended: no answer will come any more."""
        return self._batcher.alive

    @property
    def busy(self) -> bool:
        """Whether some answer waits for its next token."""
        return bool(self._answers)

    @asynccontextmanager
    async def generate(self, request: ChatRequest, said: Sequence[int] = ()) -> AsyncIterator["Answer"]:
        """One answer; see the protocol."""
        sampling = request.sampling
        adapter = self._adapters.get(request.model)
        if adapter is None:
            raise NoSuchModel(f"This worker does not serve {request.model}.")
        self._check(sampling)
        prompt, written = await self._encode(request)
        reply = self._replies.begin(request, written)
        room = self.context - len(prompt)
        if room < 1:
            raise PromptTooLong(
                f"The conversation has {len(prompt)} tokens and this model takes {self.context}, "
                "the answer among them. Shorten it or start a new one."
            )
        if any(token >= self._ids for token in said):
            raise BadRequest("The answer was begun by a model of this name with another vocabulary. Ask again.")
        limit = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
        endless = sampling.ignore_eos and sampling.structure is None  # behind a complete form nothing else may follow
        end_ids = frozenset(sampling.stop_token_ids) | (frozenset() if endless else self._end_ids)
        matcher = None
        if request.must_call:
            sampling = replace(sampling, structure=self._replies.structure(request, written))
        if sampling.structure is not None:
            matcher = await asyncio.to_thread(self._grammars.compile, sampling.structure, said)
        vocabulary = self._vocabulary if reply is None else self._marked
        transcript = Transcript(vocabulary, sampling.stop, sampling.min_tokens)
        scored = None if said else sampling.prompt_logprobs  # they went out with the first token
        unscored = 0 if scored is None else len(prompt)
        scores = sampling.logprobs is not None
        answer = Answer(len(prompt), limit, transcript, end_ids, said, scores, matcher, unscored, reply)
        answer.scores_end = request.prompt is not None
        if scored is not None:
            answer.first = {"token_id": prompt[0], "token": list(self._vocabulary.spell(prompt[0]))}
        stream = Stream(
            prompt=[*prompt, *said],
            limit=max(1, limit - len(said)),  # a prompt may be scored for its own sake
            end_ids=end_ids,
            row=Row(sampling, end_ids, prompt, said, matcher),
            adapter=adapter,
            prompt_logprobs=scored,
        )
        if scored is not None:
            answer.score([None])  # nothing foretells the first token
        try:
            if not answer.over:
                self._answers[stream] = answer
                answer.leave = lambda: self._leave(stream)
                if not self._batcher.join_stream(stream):
                    answer.end(StepFailed())
            yield answer
        finally:
            self._leave(stream)

    async def tokens(self, request: TokenRequest) -> dict[str, Any]:
        """What the tokenizer says; see the protocol."""
        return await self._tokens.tell(request)

    async def close(self) -> None:
        """Stop the thread and free the memory; answers under way end with EngineFailed."""
        with Thread() as thread:
            await thread.do(lambda: self._batcher.shut(CLOSE_SECONDS))
            if self._followers is not None:
                await thread.do(self._followers.close)
        self._batcher.release()
        gc.collect()

    def _leave(self, stream: Stream) -> None:
        self._batcher.leave(stream)
        self._answers.pop(stream, None)

    def _check(self, sampling: Sampling) -> None:
        """Raises BadRequest for what only the model's vocabulary tells to be wrong."""
        outside = [i for i, _ in sampling.logit_bias if not 0 <= i < self._ids]
        if outside:
            raise BadRequest(
                f"logit_bias has token {outside[0]}, and this model's go from 0 to {self._ids - 1}.", param="logit_bias"
            )

    def _write(self, request: ChatRequest, begin: bool) -> list[int]:
        return self._prompter.write(request, begin=begin)[0]

    async def _encode(self, request: ChatRequest) -> tuple[list[int], str]:
        if request.size > LARGE_PROMPT:
            ids, text = await asyncio.to_thread(self._prompter.write, request)
        else:
            ids, text = self._prompter.write(request)
        if not ids:
            raise BadRequest("The conversation is empty once it is written as this model's template has it.")
        if max(ids) >= self._ids:  # would bring a GPU down
            raise BadRequest(
                f"The prompt holds token {max(ids)}, and this model's go from 0 to {self._ids - 1}.", param="prompt"
            )
        return ids, text

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
            if step.prompt:
                answer.score([self._spell(*scored) for scored in step.prompt])
            if step.token is not None:
                answer.take(step.token, None if step.logprob is None else self._spell(step.token, step.logprob))
            if step.error is not None:
                logger.error("request ended by the engine: %s", step.error)
                answer.end(EngineFailed() if step.error == SPOILT else StepFailed())

    def _spell(self, token: int, logprob: Logprob) -> TokenLogprob:
        own, others = logprob
        top = tuple(TokenLogprob(i, self._vocabulary.spell(i), value) for i, value in others)
        return TokenLogprob(token, self._vocabulary.spell(token), own, top)


def _divide(models: Sequence[ModelSource]) -> tuple[ModelSource, list[ModelSource]]:
    """The base and the adapters on it; adapters alone name their base.

    Raises:
        ModelUnusable: they do not share one base.
    """
    adapters = [m for m in models if m.is_adapter]
    bases = [m for m in models if not m.is_adapter]
    if not bases:
        named = {base_of(Path(adapter.source)) for adapter in adapters}
        try:
            bases = [sources.parse(name) for name in named]
        except SetupError as error:
            raise ModelUnusable(f"The base of {adapters[0].source} cannot be found: {error}") from error
    if len(bases) > 1:
        raise ModelUnusable(f"One worker serves one base with its adapters, and here are {len(bases)} bases.")
    return bases[0], adapters


class Answer:
    """One answer as it is being made. Belongs to the event loop; its reader is the one who entered `generate`."""

    completion_tokens = None

    def __init__(
        self,
        prompt_tokens: int,
        limit: int,
        transcript: Transcript,
        end_ids: frozenset[int],
        said: Sequence[int],
        logprobs: bool,
        matcher: Matcher | None,
        unscored: int,
        reply: Reply | None,
    ) -> None:
        """Feeds what has been said, so that text and counting go on behind it."""
        self.prompt_tokens = prompt_tokens
        self.first: dict[str, Any] = {}  # token of the prompt, beside the scores, of which it has none
        self.leave: Callable[[], None] = lambda: None
        self.scores_end = False  # whether log-probabilities go on to the end token, where there is one
        self._limit = limit  # tokens of the answer at most, those in `said` too
        self._transcript = transcript
        self._end_ids = end_ids
        self._tokens: deque[tuple[int, TokenLogprob | None]] = deque()  # made and not yet read; at most the limit
        self._wants_logprobs = logprobs
        self._matcher = matcher
        self._reply = reply
        self._ready: deque[Piece] = deque()
        self._scores: list[TokenLogprob | None] = []  # of the prompt, for the first piece
        self._unscored = unscored
        self._count = len(said)
        self._error: Exception | None = None
        self._done = False
        self._news = asyncio.Event()
        for token in said:
            self._parts(transcript.feed(token))
        if self.over:
            self._news.set()

    @property
    def over(self) -> bool:
        """Whether no more tokens are needed."""
        return not self._unscored and (self._stopped or self._count >= self._limit)

    @property
    def _stopped(self) -> bool:
        return self._transcript.stopped or (self._reply is not None and self._reply.stopped)

    def take(self, token: int, logprob: TokenLogprob | None) -> None:
        """A new token from the engine."""
        self._tokens.append((token, logprob))
        self._news.set()

    def score(self, scores: Sequence[TokenLogprob | None]) -> None:
        """Log-probabilities of the next prompt tokens; the first one has none."""
        self._scores += scores
        self._unscored -= len(scores)

    def end(self, error: Exception) -> None:
        """The engine gave up; what it made before is still read."""
        self._error = error
        self._news.set()

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        """All that has come since the last piece; waits when that is nothing."""
        if self._ready:
            return self._ready.popleft()
        if self._done:
            raise StopAsyncIteration
        await self._news.wait()
        self._news.clear()
        if self._error is not None and not self._tokens:
            self._done = True
            raise self._error
        self._ready.extend(self._read())
        if self._ready[-1].finish is not None:
            self._done = True
            self.leave()
        elif self._error is not None:
            self._news.set()
        return self._ready.popleft()

    def _parts(self, text: str) -> list[Part]:
        if self._reply is None:
            return [Part("text", text)] if text else []
        return self._reply.feed(text)

    def _read(self) -> list[Piece]:
        """One piece for each stretch of a kind. The last one has the ids of all: they leave together, in one call."""
        parts: list[Part] = []
        ids, logprobs, ended = [], [], False
        while self._tokens and not (self.over or ended):
            token, logprob = self._tokens.popleft()
            ended = token in self._end_ids
            if not ended:
                ids.append(token)
                self._count += 1
                parts += self._parts(self._transcript.feed(token))
            if logprob is not None and (self.scores_end or not ended):
                logprobs.append(logprob)
        finish = None
        if ended and self._matcher is not None and self._matcher.failed:
            self._done = True
            self.leave()
            raise EngineFailed("The answer could not be kept in the form that was asked for. Ask for a simpler form.")
        if ended or self.over:
            parts += self._parts(self._transcript.finish())
            finish = "stop" if ended or self._stopped else "length"
            if self._reply is not None:
                parts += self._reply.finish()
                finish = "tool_calls" if self._reply.calls and finish == "stop" else finish
        scores, self._scores = [one and one.to_map() for one in self._scores], []
        pieces = _pieces(parts)
        if scores:
            pieces[:1] = [Piece("", data={"prompt_logprobs": scores, "prompt_first": self.first}), *pieces[:1]]
            if len(pieces) > 1 and pieces[1].kind == "text":
                pieces[:2] = [replace(pieces[1], data=pieces[0].data)]
        pieces[-1:] = [
            replace(
                pieces[-1] if pieces else Piece(""),
                token_ids=tuple(ids),
                finish=finish,
                logprobs=tuple(logprobs) if self._wants_logprobs else None,
            )
        ]
        return pieces


def _pieces(parts: Sequence[Part]) -> list[Piece]:
    """Neighbours of a kind as one."""
    pieces = []
    for kind, group in groupby(parts, lambda part: part.kind):
        some = list(group)
        calls = [call for part in some for call in part.calls]
        pieces.append(Piece("".join(part.text for part in some), kind=kind, data=calls or None))
    return pieces
