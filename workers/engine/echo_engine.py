"""An engine without a model: it repeats the last message, or counts. For development, load tests and fault tests.

A message that begins with `/echo 100 20ms` is answered by the words 1 to 100, one every 20 ms. A word is a token.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

from broker.errors import PromptTooLong
from broker.messages import ChatRequest, ModelCard
from workers.engine import EngineOptions, Piece, Progress

CONTEXT = 131_072
COMMAND = re.compile(r"/echo\s+(\d{1,6})(?:\s+(\d{1,6}(?:\.\d+)?)\s*(ms|s)?)?")


class EchoPieces:
    """One answer of the echo."""

    completion_tokens = None

    def __init__(
        self, engine: "EchoEngine", words: list[str], most: int | None, pace: float, prompt_tokens: int, said: int
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self._engine = engine
        self._words = words[:most]
        self._finish = "stop" if len(self._words) == len(words) else "length"
        self._pace = pace  # seconds between two words
        self._said = said

    async def __aiter__(self) -> AsyncIterator[Piece]:
        for i in range(self._said, len(self._words)):
            await asyncio.sleep(self._pace)
            self._engine.steps += 1
            yield Piece(self._words[i], (i,))
        yield Piece("", finish=self._finish)


class EchoEngine:
    """See `workers.engine.Engine`."""

    device = "cpu"
    dtype = ""
    resumable = True
    alive = True
    busy = False  # a word that comes late is no hung engine

    def __init__(self, names: Iterable[str], slots: int) -> None:
        self.cards = tuple(ModelCard(name, context=CONTEXT) for name in names)
        self.slots = slots
        self.steps = 0

    @asynccontextmanager
    async def generate(self, request: ChatRequest, said: Sequence[int] = ()) -> AsyncIterator[EchoPieces]:
        messages, sampling = request.messages, request.sampling
        prompt_tokens = sum(len(m.content.split()) for m in messages)
        if prompt_tokens >= CONTEXT:
            raise PromptTooLong(f"The prompt has {prompt_tokens} tokens, and echo takes {CONTEXT}.")
        text, pace = messages[-1].content, 0.0
        if command := COMMAND.match(text):
            words = [f"{i} " for i in range(1, int(command[1]) + 1)]
            pace = float(command[2] or 0) / (1 if command[3] == "s" else 1000)
        else:
            words = re.findall(r"\s*\S+\s*", text)
        yield EchoPieces(self, words, sampling.max_tokens, pace, prompt_tokens, len(said))

    async def close(self) -> None:
        """Nothing to free."""


async def open_engine(options: EngineOptions, progress: Progress) -> EchoEngine:
    """Ready at once."""
    progress(100)
    return EchoEngine((model.name for model in options.models), options.slots)
