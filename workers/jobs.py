"""The worker without a model: `FLEETCHAT_ROLE=jobs arq workers.Settings`. It computes what other parts of the fleet need.

It claims from `queue:jobs` like any worker, under a lease, with heartbeats, and drains; in place of an engine it has
`Jobs`. A job is a request (a class under `broker.messages.JobRequest`) and a function that gives its answer, which
travels as a frame's `data`: the table HANDLERS has both. Beside the queue it keeps the leaderboard.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from arq.worker import Function, func

from broker import rules
from broker.connection import Broker
from broker.errors import Unavailable
from broker.leaderboard import BoardRequest
from broker.messages import JOBS, JobRequest, ModelCard
from broker.moderation import ModerationRequest
from broker.tasks import stop
from workers import chat
from workers.chat import Earlier
from workers.engine import Piece
from workers.leaderboard import Leaderboard
from workers.moderation import Check, open_check
from workers.publisher import Outgoing

Handler = Callable[["Jobs", Any], Awaitable[Any]]
"""Gives what msgpack knows; what it raises of ours becomes the answer's error."""


class Jobs:
    """What the jobs have; it stands where other workers have an engine (see `workers.engine.Engine`)."""

    cards = (ModelCard(JOBS, kind=JOBS),)
    device = "cpu"
    dtype = ""
    resumable = False
    cache_use = 0.0
    steps = 0
    busy = False  # a job that takes long is no hung engine; its time limit ends it

    def __init__(self, broker: Broker, arena: rules.Rules, moderation: Check | None) -> None:
        self.broker = broker
        self.rules = arena
        self.slots = broker.config.slots
        self.moderation = moderation
        self.leaderboard = Leaderboard(broker, arena)
        self._work = asyncio.create_task(self.leaderboard.run())

    @property
    def alive(self) -> bool:
        """Whether what it does beside the queue goes on."""
        return not self._work.done()

    async def close(self) -> None:
        """Stop what it does beside the queue."""
        await stop(self._work)
        if self.moderation:
            await self.moderation.close()
        if not self._work.cancelled() and (error := self._work.exception()):
            raise error


async def open_jobs(broker: Broker) -> Jobs:
    """The jobs, ready.

    Raises:
        SetupError: the arena's rules cannot be read, or what they need for moderation cannot be used.
    """
    arena = await asyncio.to_thread(rules.read, broker.config.arena_file)
    return Jobs(broker, arena, await open_check(broker, arena.moderation))


async def _board(jobs: Jobs, request: BoardRequest) -> Any:
    return {"board": await jobs.leaderboard.compute(request)}


async def _moderate(jobs: Jobs, request: ModerationRequest) -> Any:
    if jobs.moderation is None:
        raise Unavailable("This jobs worker has an arena file without [moderation]. It reads it only when it starts.")
    return {"why": await jobs.moderation.why(request.texts)}


HANDLERS: Mapping[type[JobRequest], Handler] = {BoardRequest: _board, ModerationRequest: _moderate}


def functions() -> list[Function]:
    """arq's functions, one for each kind of request."""
    return [_function(kind) for kind in HANDLERS]


def _function(kind: type[JobRequest]) -> Function:
    async def run(ctx: dict[str, Any], request_id: str) -> None:
        await chat.serve(ctx, request_id, kind.decode, _write)

    return func(run, name=kind.JOB)


async def _write(jobs: Jobs, request: JobRequest, earlier: Earlier, outgoing: Outgoing) -> str:
    if not earlier.frames:
        outgoing.add(Piece("", data=await HANDLERS[type(request)](jobs, request)))
    return "stop"
