"""The embedding job: an encoder's vectors for one request, on their way to its reader, as frames with data and no text.

What goes wrong, and how a request ends, is as in `workers.chat`. A frame is as large as a chunk, so a request that
moves to another worker goes on with the chunk behind the last one that arrived.
"""

from typing import Any

from broker.messages import EmbedRequest, wrong_kind
from workers.chat import Earlier, relay, serve
from workers.engine import Embedder
from workers.publisher import Outgoing


async def embed(ctx: dict[str, Any], request_id: str) -> None:
    """arq's job; see `workers.chat.chat`."""
    await serve(ctx, request_id, EmbedRequest.decode, _write)


async def _write(engine: Any, request: EmbedRequest, earlier: Earlier, outgoing: Outgoing) -> str:
    if not isinstance(engine, Embedder):
        raise wrong_kind(request)
    async with engine.embed(request, earlier.frames) as pieces:
        return await relay(pieces, outgoing)
