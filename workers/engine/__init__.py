"""What turns a prompt into pieces of text: the protocol, and the choice of an implementation.

An engine knows models and tokens. It knows no Redis, no jobs and no web. Three implementations: `torch` (transformers,
in this process), `remote` (any server that speaks OpenAI's protocol) and `echo` (no model; for development, load tests
and fault tests).
"""

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from broker.errors import ModelUnusable
from broker.messages import ChatRequest, EmbedRequest, ModelCard, TokenRequest
from broker.sources import ModelSource

Progress = Callable[[int], None]
"""Called from any thread with the percentage of the model that is loaded."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and how likely the model found it, before temperature and everything else that sampling does."""

    token_id: int
    token: bytes  # its text; bytes, since a token may be half a character
    logprob: float  # natural logarithm
    top: tuple["TokenLogprob", ...] = ()  # the likeliest tokens at this place, falling

    def to_map(self) -> dict[str, Any]:
        """What travels in a frame."""
        found = {"token_id": self.token_id, "token": list(self.token), "logprob": self.logprob}
        return found | {"top": [other.to_map() for other in self.top]} if self.top else found


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text, the tokens it was made of, and in the last piece why it ends."""

    text: str
    token_ids: tuple[int, ...] = ()
    kind: str = "text"
    finish: str | None = None  # stop (end token or stop string), length, tool_calls or content_filter
    logprobs: tuple[TokenLogprob, ...] | None = None  # one per token, when asked for; behind a prompt the end's, too
    data: Any = (
        None  # for msgpack: tool calls; in the first piece, when asked for, {"prompt_logprobs": [None, {...}, ...],
    )
    # "prompt_first": {"token_id", "token"}}: of the first token there is only what it is


class Pieces(Protocol):
    """One answer as it is being made. Iterating ends after the piece with `finish`."""

    prompt_tokens: int  # 0 while it is not known
    completion_tokens: int | None  # as the server behind counts them; None: by the token ids

    def __aiter__(self) -> AsyncIterator[Piece]: ...


class Engine(Protocol):
    """Answers many requests at once, each as pieces of text."""

    cards: tuple[ModelCard, ...]  # the models it answers for, with context, parent and abilities
    slots: int  # requests that it runs at once
    device: str
    dtype: str
    resumable: bool  # can go on from `said`

    @property
    def cache_use(self) -> float:
        """Share of the key-value cache that answers hold, 0 to 1; 0 for an engine without one."""
        ...

    @property
    def steps(self) -> int:
        """A counter that moves while there is work: one that stands still shows a hung engine."""
        ...

    @property
    def alive(self) -> bool:
        """False once it can answer nothing any more: the worker has to end."""
        ...

    @property
    def busy(self) -> bool:
        """Whether some answer waits for its next token: then `steps` has to move."""
        ...

    def generate(self, request: ChatRequest, said: Sequence[int] = ()) -> AbstractAsyncContextManager[Pieces]:
        """Enter to start, leave to stop: leaving early frees the slot before the next step but one.

        Args:
            said: token ids of this answer that an earlier worker has already delivered; text and counting go on
                behind them, exactly as if they had been made here.

        Raises:
            PromptTooLong: on entering, before any cache is taken; the message has both counts.
            BadRequest: a parameter, tool or structure that this engine or model cannot do; it is named.
            StepFailed: while iterating, when the step that this request was in failed, whichever request was the cause.
            EngineFailed: while iterating, when this answer alone could not be made.
        """
        ...

    async def close(self) -> None:
        """Stop the threads and free the memory."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """An engine of a model of kind `embedding`: vectors instead of text."""

    def embed(self, request: EmbedRequest, said: int = 0) -> AbstractAsyncContextManager[Pieces]:
        """Enter to start, leave to stop. Each piece's `data` is {"vectors": [...]}: of each input in base64, as OpenAI's
        clients want it, float32, little-endian. (Redis' scripts read a request's last frame, and know no bytes.)

        Args:
            said: pieces that an earlier worker has delivered; the same inputs give the same number of pieces anywhere.

        Raises:
            PromptTooLong, BadRequest: on entering; the input is named by its number.
            StepFailed: while iterating, as in `Engine.generate`.
        """
        ...


@runtime_checkable
class Tokenizing(Protocol):
    """An engine that has its models' tokenizer."""

    async def tokens(self, request: TokenRequest) -> dict[str, Any]:
        """What the tokenizer says, for msgpack, beside all answers and in no slot of theirs.

        Returns:
            Of tokenize {"tokens", "max_model_len"} and, with `strings`, "token_strs"; of detokenize {"prompt"}; of count
            {"count", "max_model_len"}; of info what transformers calls a tokenizer's configuration.

        Raises:
            BadRequest: an id that the model does not know, or messages that its template refuses.
        """
        ...


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine is opened with."""

    models: tuple[ModelSource, ...]  # a base with its adapters, remote models, or a built-in
    slots: int = 32
    device: str = "auto"
    dtype: str = "auto"
    quantization: str = "none"
    cache_mb: int = 0  # memory for the key-value cache; 0 picks a sane part of what is free
    parallel: int = 1  # GPUs that share the model
    role: str = "auto"  # model: it answers; embed: it gives vectors; auto: what its files say


async def open_engine(options: EngineOptions, progress: Progress) -> Engine:
    """The engine for some models, loaded and ready.

    Raises:
        ModelUnusable: with one sentence that says what is wrong with a model or what is missing here.
    """
    # How long torch's threads spin while they wait for each other, in loops: the default burns milliseconds that others
    # could use, and not to spin at all halves a small model's speed (see pace.py). Read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "200000")
    source = options.models[0]
    if options.role == "embed" and source.engine != "torch":
        raise ModelUnusable(f"{source.name} cannot give embeddings, which FLEETCHAT_ROLE=embed asks for.")
    if options.role == "auto" and source.engine == "torch" and not source.is_adapter:
        options, progress = await _look(options, progress)
    name = "encoder" if options.role == "embed" else f"{source.engine}_engine"
    engine: Engine = await import_module(f"workers.engine.{name}").open_engine(options, progress)
    return engine


async def _look(options: EngineOptions, progress: Progress) -> tuple[EngineOptions, Progress]:
    """The role that the model's files say, which are fetched where they are not here yet, and the rest of the progress."""
    model, thread = import_module("workers.engine.model"), import_module("workers.engine.thread")
    source = options.models[0]
    with thread.Thread() as beside:
        folder, begun = await beside.load(partial(model.find_folder, source), progress)
    role = "embed" if model.is_encoder(folder) else "model"
    models = (replace(source, source=str(folder)), *options.models[1:])
    return replace(options, models=models, role=role), lambda percent: progress(begun + percent * (100 - begun) // 100)
