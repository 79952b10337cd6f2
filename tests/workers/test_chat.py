"""The chat job by itself, with an engine that says what the test tells it to."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from broker import chat, keys, queues, streams
from broker.connection import Broker
from broker.errors import WorkerLost
from broker.messages import ChatRequest, Frame
from broker.streams import Written
from helpers import claim, request
from workers import chat as job
from workers.engine import Piece, TokenLogprob
from workers.publisher import Publisher

pytestmark = pytest.mark.usefixtures("card")


class Scripted:
    """An engine and its only answer: the given pieces, and counts that are known with the last one."""

    def __init__(self, *pieces: Piece, resumable: bool = False, counts: tuple[int, int | None] = (0, None)) -> None:
        self.resumable = resumable
        self.prompt_tokens = 0
        self.completion_tokens: int | None = None
        self.said: Sequence[int] | None = None  # None: it was never asked
        self._pieces, self._counts = pieces, counts

    @asynccontextmanager
    async def generate(self, request: ChatRequest, said: Sequence[int] = ()) -> AsyncIterator["Scripted"]:
        self.said = said
        yield self

    async def __aiter__(self) -> AsyncIterator[Piece]:
        for piece in self._pieces:
            if piece is self._pieces[-1]:
                self.prompt_tokens, self.completion_tokens = self._counts
            yield piece


Serve = Callable[[Scripted], Awaitable[list[Frame]]]


@pytest.fixture
async def serve(broker: Broker) -> AsyncIterator[Serve]:
    """`await serve(engine)`: a worker takes the one request there is; gives all its frames."""
    publisher = Publisher(broker, lambda request_id, hand_over: None)
    task = asyncio.create_task(publisher.run())

    async def once(engine: Scripted) -> list[Frame]:
        (held,) = await claim(broker)
        await job.chat(
            {
                "broker": broker,
                "engine": engine,
                "publisher": publisher,
                "claims": {held.request_id: held},
                "worker_id": "w",
            },
            held.request_id,
        )
        return [Frame.decode(f) for f in await broker.redis.lrange(keys.frames(held.request_id), 0, -1)]

    yield once
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def begin_elsewhere(broker: Broker, *frames: tuple[str, int]) -> None:
    """Another worker takes the request, writes frames of a text and a token id, and hands it over."""
    (held,) = await claim(broker)
    for seq, (text, i) in enumerate(frames):
        frame = Frame(held.request_id, seq, held.epoch, text).encode()
        await streams.append(broker, [Written(held.request_id, held.token, seq, frame, i.to_bytes(4, "little"))])
    assert await queues.release(broker, held)


STOP = Piece("", finish="stop")


async def test_an_answer_that_its_model_cannot_go_on_with_ends_with_worker_lost(broker, serve):
    await queues.enqueue(broker, request())
    await begin_elsewhere(broker, ("one ", 1))
    engine = Scripted(Piece("again", (1,)), STOP)
    first, last = await serve(engine)
    assert (first.text, engine.said) == ("one ", None)
    with pytest.raises(WorkerLost, match="Ask again"):
        chat.finished(last, "")


async def test_an_answer_of_which_nothing_was_published_starts_anew(broker, serve):
    await queues.enqueue(broker, request())
    await begin_elsewhere(broker)
    frames = await serve(Scripted(Piece("whole", (1,)), STOP))
    assert "".join(f.text for f in frames) == "whole"
    assert (frames[-1].epoch, frames[-1].end["reason"]) == (2, "stop")


async def test_an_answer_goes_on_behind_what_was_said(broker, serve):
    await queues.enqueue(broker, request())
    await begin_elsewhere(broker, ("one ", 1), ("two ", 70_000))
    engine = Scripted(Piece("three", (3,)), STOP, resumable=True)
    frames = await serve(engine)
    assert "".join(f.text for f in frames) == "one two three"
    assert [f.seq for f in frames] == list(range(len(frames)))
    assert engine.said == (1, 70_000)
    assert frames[-1].end["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        ((Piece("Well", kind="reasoning"), Piece("so", kind="reasoning"), Piece("one"), STOP), True),
        ((Piece("Well", kind="reasoning"), Piece("", finish="length")), True),
        ((Piece("one"), STOP), False),
    ],
)
async def test_how_long_it_thought_is_told_with_the_end(broker, serve, pieces, told):
    await queues.enqueue(broker, request())
    last = (await serve(Scripted(*pieces)))[-1]
    assert ("reasoning" in last.end["timings"]) == told
    if told:
        assert 0 < last.end["timings"]["reasoning"] < last.end["timings"]["total"]


async def test_what_the_server_behind_counts_goes_before_the_token_ids(broker, serve):
    await queues.enqueue(broker, request())
    frames = await serve(Scripted(Piece("a"), Piece("b"), STOP, counts=(12, 34)))
    assert "".join(f.text for f in frames) == "ab"
    assert frames[-1].end["usage"] == {"prompt_tokens": 12, "completion_tokens": 34}


async def test_prompt_logprobs_tool_calls_and_their_reason_travel(broker, serve):
    likely = [None, TokenLogprob(5, b"hi", -0.5).to_map()]
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    await queues.enqueue(broker, request())
    frames = await serve(
        Scripted(
            Piece("", data={"prompt_logprobs": likely}),
            Piece("look"),
            Piece("", kind="tool", data={"tool_calls": calls}, finish="tool_calls"),
        )
    )
    assert [(f.kind, f.text, f.data) for f in frames if f.text or f.data] == [
        ("text", "", {"prompt_logprobs": likely}),
        ("text", "look", None),
        ("tool", "", {"tool_calls": calls}),
    ]
    assert frames[-1].end["reason"] == "tool_calls"
