"""Asking a model: the one function behind the chat page, the command line, and every later feature.

`ask` subscribes, enqueues, and gives the answer's frames. It is entered, so that leaving early lets go at once: a
request that nobody keeps ends with its reader. `answer` is the same, collected.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from broker import queues, streams
from broker.connection import Broker
from broker.errors import FleetError, PromptEmpty, PromptTooLarge, from_map
from broker.messages import ChatRequest, EmbedRequest, Frame, JobRequest, Request, TokenRequest
from broker.queues import Bout, Turn
from broker.streams import Reader

ADVICE = {
    ChatRequest: ("The conversation", "Shorten the message, or start a new conversation."),
    EmbedRequest: ("The input", "Send fewer texts at once."),
    TokenRequest: ("What was sent", "Send less at once."),
    JobRequest: ("What was sent", "Send less at once."),
}
"""What is too large, and what to do."""


@asynccontextmanager
async def ask(
    broker: Broker,
    request: Request,
    turn: Turn | Bout | None = None,
    *,
    low_priority: bool = False,
    at_once: int | None = None,
) -> AsyncIterator[Reader]:
    """The frames of one answer, from the moment it is accepted; for the arguments see `queues.enqueue`.

    Raises:
        FleetError: on entering, if it is not accepted; nothing has been queued then.
    """
    check_size(broker, request)
    request.check()
    async with streams.read(broker, request.request_id) as reader:
        enqueued = asyncio.create_task(
            queues.enqueue(broker, request, turn, low_priority=low_priority, at_once=at_once)
        )
        try:
            reader.place = await asyncio.shield(enqueued)  # cut off half-way, nobody would know whether it is accepted
            reader.behind = reader.place is None  # a new answer's frames all come after the subscription
            yield reader
        finally:
            if not reader.ended:
                broker.later(_leave(broker, request, enqueued))


async def _leave(broker: Broker, request: Request, enqueued: asyncio.Task[int | None]) -> None:
    """End an accepted request that nobody keeps."""
    await asyncio.wait({enqueued})
    if not request.keep and enqueued.exception() is None:
        await queues.cancel(broker, request.request_id, request.owner)


def check_size(broker: Broker, request: Request) -> None:
    """Raises PromptEmpty or PromptTooLarge: what can be refused without a tokenizer is refused before the queue."""
    param = "input" if isinstance(request, EmbedRequest) else None
    if request.empty:
        raise PromptEmpty("An input is empty. Leave it out.", param=param) if param else PromptEmpty
    size, limit = request.size, request.ROOM * broker.config.prompt_bytes
    if size > limit:
        what, advice = next(advice for kind, advice in ADVICE.items() if isinstance(request, kind))
        times = f"{request.ROOM} times " if request.ROOM > 1 else ""
        raise PromptTooLarge(
            f"{what} has {size} bytes, and this server takes {limit} ({times}FLEETCHAT_PROMPT_BYTES). {advice}",
            param=param,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer."""

    text: str
    reason: str
    usage: dict[str, Any]
    timings: dict[str, Any]  # seconds


class Text:
    """An answer's text of one kind as its frames come in, right also when frames are replaced (see `streams.Reader`)."""

    def __init__(self, kind: str = "text") -> None:
        self._kind = kind
        self._parts: list[str] = []

    def add(self, frame: Frame) -> None:
        del self._parts[frame.seq :]
        self._parts.append(frame.text if frame.kind == self._kind else "")

    def __str__(self) -> str:
        return "".join(self._parts)


async def answer(broker: Broker, request: ChatRequest, *, low_priority: bool = False) -> Answer:
    """The whole answer.

    Raises:
        FleetError: the one it ended with.
    """
    text = Text()
    async with ask(broker, request, low_priority=low_priority) as frames:
        async for received in frames:
            frame = received.decode()
            text.add(frame)
            if frame.end is not None:
                return finished(frame, str(text))
    raise FleetError("The answer ended without a last frame.")


async def job(broker: Broker, request: JobRequest) -> Any:
    """What the `jobs` worker answers.

    Raises:
        FleetError: the one it ended with.
    """
    given: Any = None
    async with ask(broker, request) as frames:
        async for received in frames:
            frame = received.decode()
            given = given if frame.data is None else frame.data
            if frame.end is not None:
                finished(frame, "")
                return given
    raise FleetError("The answer ended without a last frame.")


def finished(last: Frame, text: str) -> Answer:
    """The answer whose last frame this is; raises the error it ended with."""
    end = last.end or {}
    if error := end.get("error"):
        raise from_map(error)
    return Answer(text, str(end.get("reason", "")), dict(end.get("usage") or {}), dict(end.get("timings") or {}))
