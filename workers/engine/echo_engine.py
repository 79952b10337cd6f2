"""An engine without a model: it repeats the last message, or counts. For development, load tests and fault tests.

Of a prompt it repeats the text, or each token's id as a word. It is sure of all that it says: log-probabilities are 0.
A word is a token. A message or prompt that begins with `/echo 100 20ms` is answered by the words 1 to 100, one every
20 ms; one whose first line is `/echo 20ms`, by the lines below it, at that pace. An answer that is to be continued goes
on with the words that it has not said. Where FLEETCHAT_ECHO_FAULTS is set (anybody may write to an echo), behind a
number of words may stand what happens after the last one, instead of the end:

    /echo 5 20ms crash    the process kills itself (SIGKILL)
    /echo 5 20ms fail     the step fails, with all answers that are being written in it
    /echo 5 20ms hang     no step is made any more, of no answer: the engine hangs
"""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from broker.errors import PromptTooLong, StepFailed
from broker.messages import ChatRequest, ModelCard, Sampling, TokenRequest
from workers.engine import EngineOptions, Piece, Progress, TokenLogprob

CONTEXT = 131_072
FAULTS = "FLEETCHAT_ECHO_FAULTS"
SENDING_SECONDS = 0.1  # until what was said has left, before the process kills itself
WORD = re.compile(r"\s*\S+\s*")
NUMBER = r"(\d{1,6}(?:\.\d+)?)"
PACED = re.compile(rf"/echo\s+{NUMBER}\s*(ms|s)[ \t]*\n")
COMMAND = re.compile(rf"/echo\s+(\d{{1,6}})(?:\s+{NUMBER}\s*(ms|s)?)?(?:\s+(crash|fail|hang)\b)?")


class EchoPieces:
    """One answer of the echo."""

    completion_tokens = None

    def __init__(
        self,
        engine: "EchoEngine",
        words: list[str],
        sampling: Sampling,
        pace: float,
        prompt: list[str],
        said: int,
        deed: str | None,
    ) -> None:
        self.prompt_tokens = len(prompt)
        self._prompt = prompt if sampling.prompt_logprobs is not None and not said else []
        self._sampling = sampling
        self._engine = engine
        self._failures = engine.failures
        self._deed = deed  # crash, fail or hang, instead of the end
        self._words = words[: sampling.max_tokens]
        self._finish = "stop" if len(self._words) == len(words) else "length"
        self._pace = pace  # seconds between two words
        self._said = said

    async def __aiter__(self) -> AsyncIterator[Piece]:
        if self._prompt:
            scores = [_sure(i, word, self._sampling.prompt_logprobs).to_map() for i, word in enumerate(self._prompt)]
            yield Piece("", data={"prompt_logprobs": [None, *scores[1:]], "prompt_first": scores[0]})
        for i in range(self._said, len(self._words)):
            await self._step()
            sure = None if self._sampling.logprobs is None else (_sure(i, self._words[i], self._sampling.logprobs),)
            yield Piece(self._words[i], (i,), logprobs=sure)
        if self._deed == "crash":
            await asyncio.sleep(SENDING_SECONDS)
            os.kill(os.getpid(), signal.SIGKILL)
        if self._deed == "fail":
            self._engine.failures += 1
        if self._deed == "hang":
            self._engine.busy = True
        if self._deed:
            await self._step()
        yield Piece("", finish=self._finish)

    async def _step(self) -> None:
        await asyncio.sleep(self._pace)
        if self._engine.failures != self._failures:
            raise StepFailed
        if self._engine.busy:
            await asyncio.Event().wait()
        self._engine.steps += 1


class EchoEngine:
    """See `workers.engine.Engine`."""

    device = "cpu"
    dtype = ""
    resumable = True
    alive = True
    cache_use = 0.0
    busy = False  # a word that comes late is no hung engine; True once it has been told to hang

    def __init__(self, names: Iterable[str], slots: int) -> None:
        self.cards = tuple(ModelCard(name, context=CONTEXT, abilities=("continue",)) for name in names)
        self.slots = slots
        self.steps = 0
        self.failures = 0  # steps that have failed

    @asynccontextmanager
    async def generate(self, request: ChatRequest, said: Sequence[int] = ()) -> AsyncIterator[EchoPieces]:
        texts = _texts(request)
        prompt = [word for text in texts for word in _words(text)]
        if len(prompt) >= CONTEXT:
            raise PromptTooLong(f"The prompt has {len(prompt)} tokens, and echo takes {CONTEXT}.")
        begun = _words(texts.pop()) if request.continue_final_message and len(texts) > 1 else []
        text, pace, deed = texts[-1], 0.0, None
        if paced := PACED.match(text):
            words, pace = _words(text[paced.end() :]), _seconds(paced[1], paced[2])
        elif command := COMMAND.match(text):
            words = [f"{i} " for i in range(1, int(command[1]) + 1)]
            pace = _seconds(command[2] or "0", command[3])
            deed = command[4] if FAULTS in os.environ else None
        else:
            words = _words(text)
        yield EchoPieces(self, words[len(begun) :], request.sampling, pace, prompt, len(said), deed)

    async def tokens(self, request: TokenRequest) -> dict[str, Any]:
        """Words and their places, since a word is a token. Of ids it says what it would repeat: their numbers."""
        texts = _texts(request.of)
        words = [word for text in texts for word in _words(text)]
        room = {"max_model_len": CONTEXT}
        match request.op:
            case "tokenize":
                return {"tokens": list(range(len(words)))} | room | ({"token_strs": words} if request.strings else {})
            case "detokenize":
                return {"prompt": texts[0]}
            case "count":
                return {"count": len(words)} | room
        names = ("bos_token", "eos_token", "pad_token", "chat_template")
        return {"tokenizer_class": "echo", "model_max_length": CONTEXT} | dict.fromkeys(names)

    async def close(self) -> None:
        """Nothing to free."""


def _texts(request: ChatRequest) -> list[str]:
    if isinstance(request.prompt, tuple):
        return ["".join(f"{i} " for i in request.prompt)]
    return [m.content for m in request.messages] if request.prompt is None else [request.prompt]


def _words(text: str) -> list[str]:
    """The words with the blanks around them."""
    return [] if text.isspace() else WORD.findall(text)  # of blanks alone the pattern tries every part


def _seconds(number: str, unit: str | None) -> float:
    return float(number) / (1 if unit == "s" else 1000)


def _sure(token_id: int, word: str, alternatives: int | None) -> TokenLogprob:
    own = TokenLogprob(token_id, word.encode(), 0.0)
    return TokenLogprob(token_id, own.token, 0.0, (own,)) if alternatives else own


async def open_engine(options: EngineOptions, progress: Progress) -> EchoEngine:
    """Ready at once."""
    progress(100)
    return EchoEngine((model.name for model in options.models), options.slots)
