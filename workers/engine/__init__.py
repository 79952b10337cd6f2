"""What turns a prompt into pieces of text: the protocol, and the choice of an implementation.

An engine knows models and tokens. It knows no Redis, no jobs and no web. Two implementations: `torch` (transformers, in
this process) and `echo` (no model; for development, load tests and fault tests).
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from broker.messages import Message, Sampling

Progress = Callable[[int], None]
"""Called from any thread with the percentage of the model that is loaded."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text, the tokens it was made of, and in the last piece why it ends."""

    text: str
    token_ids: tuple[int, ...] = ()
    kind: str = "text"
    finish: str | None = None  # stop (end token or stop string) or length


class Pieces(Protocol):
    """One answer as it is being made. Iterating ends after the piece with `finish`."""

    prompt_tokens: int

    def __aiter__(self) -> AsyncIterator[Piece]: ...


class Engine(Protocol):
    """Answers many requests at once, each as pieces of text."""

    context: int  # tokens that prompt and answer may have together
    slots: int  # requests that it runs at once
    device: str
    dtype: str
    resumable: bool  # can go on from `said`

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

    def generate(
        self, request_id: str, messages: Sequence[Message], sampling: Sampling, said: Sequence[int] = ()
    ) -> AbstractAsyncContextManager[Pieces]:
        """Enter to start, leave to stop: leaving early frees the slot before the next step but one.

        Args:
            said: token ids of this answer that an earlier worker has already delivered; text and counting go on
                behind them, exactly as if they had been made here.

        Raises:
            PromptTooLong: on entering, before any cache is taken; the message has both counts.
            EngineFailed: while iterating, when the step that this request was in failed.
        """
        ...

    async def close(self) -> None:
        """Stop the threads and free the memory."""
        ...


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine is opened with."""

    source: str  # a folder, a hub id, or the name of a built-in
    slots: int = 32
    device: str = "auto"
    dtype: str = "auto"
    cache_mb: int = 0  # memory for the key-value cache; 0 picks a sane part of what is free


async def open_engine(options: EngineOptions, progress: Progress) -> Engine:
    """The engine for a model, loaded and ready.

    Raises:
        ModelUnusable: with one sentence that says what is wrong with the model or what is missing here.
    """
    name = "echo" if options.source == "echo" else "torch"
    module = import_module(f"workers.engine.{name}_engine")
    engine: Engine = await module.open_engine(options, progress)
    return engine
