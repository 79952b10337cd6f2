"""The chat job: the engine's pieces for one request, on their way to its reader.

Comes in: a request id whose claim this worker holds. Goes out: its frames, and exactly one last one. What goes wrong
becomes that last frame; a cancelled job (drain, stop) writes nothing, since whoever cancelled it sees to the rest.
"""

import logging
import time
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from broker import keys, metrics, queues
from broker.connection import Broker, keep_trying
from broker.errors import BadRequest, EngineFailed, FleetError, StepFailed, WorkerLost
from broker.messages import ChatRequest
from broker.queues import Claim
from workers.engine import Engine, Pieces
from workers.publisher import Outgoing, Publisher

logger = logging.getLogger("fleetchat.chat")

R = TypeVar("R")

ABORT = "abort"  # as vLLM calls what did not end by itself: it was stopped, or goes on elsewhere


@dataclass(frozen=True, slots=True)
class Earlier:
    """What workers before this one have delivered."""

    frames: int
    ids: tuple[int, ...]
    first: float | None  # seconds from enqueue to the first frame


async def chat(ctx: dict[str, Any], request_id: str) -> None:
    """arq's job. `ctx` has the broker, the engine, the publisher, and this worker's id and claims."""
    await serve(ctx, request_id, ChatRequest.decode, _write)


async def serve(
    ctx: dict[str, Any],
    request_id: str,
    decode: Callable[[bytes], R],
    write: Callable[[Any, R, Earlier, Outgoing], Awaitable[str]],
) -> None:
    """A job of any kind: `write` says what there is to say of a request, and gives the reason why that ends."""
    broker: Broker = ctx["broker"]
    claim: Claim = ctx["claims"][request_id]
    begun = time.monotonic() - claim.waited
    encoded, earlier = await keep_trying(partial(_load, broker, claim))
    if encoded is None:
        return  # it was stopped between the claim and here
    try:
        request = decode(encoded)
    except BadRequest as error:
        await keep_trying(partial(queues.end, broker, claim, error, inspect=True))
        return
    publisher: Publisher = ctx["publisher"]
    outgoing = Outgoing(publisher, claim, earlier.frames, len(earlier.ids))

    def timings() -> dict[str, Any]:
        first = earlier.first if earlier.first is not None or outgoing.first is None else outgoing.first - begun
        return {"waited": claim.waited, "first": first, "total": time.monotonic() - begun}

    async def end(reason: str, error: FleetError | None = None) -> str:
        last: dict[str, Any] = {
            "reason": reason,
            "usage": {"prompt_tokens": outgoing.prompt_tokens or 0, "completion_tokens": outgoing.tokens},
            "timings": timings() | ({} if outgoing.reasoning is None else {"reasoning": outgoing.reasoning}),
        }
        await outgoing.end(last if error is None else last | {"error": error.to_map()})
        if outgoing.lost:
            return ABORT
        ctx["claims"].pop(request_id, None)  # Redis has its last frame, so there is nothing to end any more
        return reason

    outcome = ABORT
    try:
        finish = await write(ctx["engine"], request, earlier, outgoing)
    except StepFailed as error:
        outgoing.give_back()
        if await keep_trying(partial(queues.release, broker, claim, error)):
            metrics.REQUEUED.labels(claim.model).inc()
    except FleetError as error:
        outcome = await end("error", error)
    except Exception:
        logger.exception("request %s failed", request_id, extra={"request_id": request_id})
        outcome = await end("error", EngineFailed())
    else:
        outcome = await end(finish)
    finally:
        _note(ctx["worker_id"], claim, outgoing, outcome, timings())


def _note(worker_id: str, claim: Claim, outgoing: Outgoing, outcome: str, timings: dict[str, Any]) -> None:
    """An answer has left this worker: the line in its log, and the metrics."""
    facts = {
        "request_id": claim.request_id,
        "model": claim.model,
        "outcome": outcome,
        "prompt_tokens": outgoing.prompt_tokens or 0,
        "tokens": outgoing.tokens,
        "epoch": claim.epoch,
    } | {name: seconds and round(seconds, 4) for name, seconds in timings.items()}
    text = "request %s of %s: %s, %d tokens in, %d out, epoch %d, waited %s s, first %s s, total %s s"
    logger.info(text, *facts.values(), extra=facts | {"worker": worker_id})
    if claim.beside:
        return  # no answer, and these are counts of answers
    metrics.ENDED.labels(claim.model, outcome).inc()
    if outcome != ABORT:
        metrics.WHOLE.labels(claim.model).observe(timings["total"])
    if claim.epoch == 1:
        metrics.PROMPT_TOKENS.labels(claim.model).inc(outgoing.prompt_tokens or 0)
        if outgoing.first is not None:
            metrics.FIRST_TOKEN.labels(claim.model).observe(timings["first"])


async def _write(engine: Engine, request: ChatRequest, earlier: Earlier, outgoing: Outgoing) -> str:
    if earlier.frames and not (engine.resumable and earlier.ids):  # a remote worker leaves no ids to another engine
        raise WorkerLost(
            "The worker that wrote this answer has gone, and this model cannot go on where it stopped. Ask again."
        )
    async with engine.generate(request, earlier.ids) as pieces:
        return await relay(pieces, outgoing)


async def relay(pieces: Pieces, outgoing: Outgoing) -> str:
    """Send all pieces on; gives why they end."""
    outgoing.prompt_tokens = pieces.prompt_tokens
    async for piece in pieces:
        if piece.text or piece.token_ids or piece.logprobs or piece.data is not None:
            outgoing.add(piece)
        outgoing.prompt_tokens = pieces.prompt_tokens  # a server behind may count late, and by itself
        if pieces.completion_tokens is not None:
            outgoing.count(pieces.completion_tokens)
        if piece.finish:
            return piece.finish
    raise EngineFailed("The model ended without saying why. Please try again.")


async def _load(broker: Broker, claim: Claim) -> tuple[bytes | None, Earlier]:
    if claim.encoded:
        return claim.encoded, Earlier(0, (), None)
    async with broker.redis.pipeline(transaction=True) as pipe:
        pipe.get(keys.prompt(claim.request_id))
        pipe.llen(keys.frames(claim.request_id))
        pipe.get(keys.tokens(claim.request_id))
        pipe.hmget(keys.request(claim.request_id), ["created", "first"])
        encoded, frames, ids, (created, first) = await pipe.execute()
    seconds = (int(first) - int(created)) / 1000 if first else None
    return encoded, Earlier(frames, tuple(array("I", ids or b"")), seconds)
