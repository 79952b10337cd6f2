"""The token job: what a model's tokenizer says of a text or of ids, as one frame with data and no text.

What goes wrong, and how a request ends, is as in `workers.chat`. It runs beside the worker's slots, so it waits for no
answer; `workers.fleet_worker` has how many do at once.
"""

from typing import Any

from broker.errors import BadRequest
from broker.messages import TokenRequest
from workers.chat import Earlier, serve
from workers.engine import Piece, Tokenizing
from workers.publisher import Outgoing


async def tokens(ctx: dict[str, Any], request_id: str) -> None:
    """arq's job; see `workers.chat.chat`."""
    await serve(ctx, request_id, TokenRequest.decode, _write)


async def _write(engine: Any, request: TokenRequest, earlier: Earlier, outgoing: Outgoing) -> str:
    if not isinstance(engine, Tokenizing):
        raise BadRequest(
            f"{request.model} runs on another server, and its tokenizer with it. Ask that server.", param="model"
        )
    if not earlier.frames:
        outgoing.add(Piece("", data=await engine.tokens(request)))
    return "stop"
