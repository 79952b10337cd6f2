"""arq's Worker with our loop, claim and finish.

What stays arq's: the settings, running a job with its limits and log lines, signals as the way to stop. What is
ours: a job is picked up when a wake message comes and not at the next poll (the poll stays as safety net); the claim
takes it out of the queue under a lease, from any of this worker's queues, as many as it has slots and some beside them
that need none; finish and failure go through the scripts that end a request, whichever way arq takes; `arq --check`
also fails when the engine is dead or silent. A lost Redis is waited for, and no job can end the process.
"""

import asyncio
import logging
import math
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from signal import Signals
from typing import Any

from arq.worker import Worker
from redis.exceptions import RedisError, ResponseError

from broker import logs, metrics, queues
from broker.connection import Broker, keep_trying, redis_errors
from broker.errors import BadRequest, FleetError, RedisAway, SetupError, StorageFull
from broker.queues import Claim
from broker.tasks import happens, stop
from workers import lifecycle
from workers.health import Pulse

logger = logging.getLogger("fleetchat.worker")

POLL_SECONDS = 0.5  # a lost wake message costs this at most
BESIDE = 16  # jobs at once that take no slot


class FleetWorker(Worker):
    """The worker that `arq workers.Settings` runs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.broker: Broker  # once `main` runs
        self.claims: dict[str, Claim] = {}
        self.models: Sequence[str] = ()
        self.pulse: Pulse | None = None  # once the engine is there
        self.draining = False
        self._free_since = math.inf  # time.monotonic(); without a break until now
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()

    def run(self) -> None:
        """Serve until a signal; SetupError is one sentence and exit code 2, a broken engine exit code 1."""
        logs.configure(self.ctx["config"].log)  # again, for arq's command has given its own logger a handler
        try:
            self.loop.run_until_complete(self.main())
        except SetupError as error:
            logger.error("%s", error)
            raise SystemExit(2) from None
        except lifecycle.EngineStopped as error:
            logger.error("the engine has stopped: %s", error)
            raise SystemExit(1) from None
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        if self.pulse is None:  # told to stop while it loaded
            logging.shutdown()  # the loading thread may be in torch's code, where Python's own end would abort the process
            os._exit(0)

    async def main(self) -> None:
        """Load, serve, drain."""
        async with lifecycle.serving(self) as broker:
            self.broker = broker
            self._pool = broker.redis
            self._free_since = time.monotonic()
            while not self._stop.is_set():
                try:
                    await self._poll_iteration()
                    await self.record_health()
                except (RedisError, OSError) as error:
                    logger.warning("Redis is away, waiting for it: %s", error)
                await happens(self._wake, POLL_SECONDS)
                self._wake.clear()
            await self._drain()

    async def record_health(self) -> None:
        """arq's, but not while the engine is dead or silent: after 6 s `arq --check` fails."""
        if self.pulse is None or not self.pulse.trouble:
            await super().record_health()

    @property
    def busy(self) -> int:
        """Slots in use."""
        return sum(not claim.beside for claim in self.claims.values())

    def wake(self) -> None:
        """Look for work now."""
        self._wake.set()

    async def _poll_iteration(self) -> None:
        free, beside = self.max_jobs - self.busy, BESIDE - len(self.claims) + self.busy
        if max(free, beside) <= 0 or any(claim.crashes >= 2 for claim in self.claims.values()):
            return  # a request that brought down two workers runs alone
        if not self.ctx["engine"].alive:
            return  # what it would take comes to nothing here; the process is about to end
        models = list(self.models)
        self.models = models[1:] + models[:1]  # no model of this worker is always served last
        claims = await queues.claim(
            self.broker, self.ctx["worker_id"], secrets.token_hex(8), free, models, list(self.claims), beside=beside
        )
        now = time.monotonic()
        for claim in claims:
            if claim.epoch == 1 and not claim.beside:
                metrics.QUEUED.labels(claim.model).observe(claim.waited)
                if claim.waited <= now - self._free_since:
                    metrics.PICKUP.labels(claim.model).observe(claim.waited)
            self._start(claim)
        if self.busy >= self.max_jobs:
            self._free_since = math.inf

    def _start(self, claim: Claim) -> None:
        self.claims[claim.request_id] = claim
        task = self.loop.create_task(self._run(claim))
        self.tasks[claim.request_id] = task
        task.add_done_callback(lambda _: self._done(claim))

    def _done(self, claim: Claim) -> None:
        self.claims.pop(claim.request_id, None)
        del self.tasks[claim.request_id]
        if not claim.beside:
            self._free_since = min(self._free_since, time.monotonic())
        self.aborting_tasks.discard(claim.request_id)
        self._wake.set()

    async def _run(self, claim: Claim) -> None:
        """arq's run_job; what it raises (a job whose bytes are of a wrong shape) ends the request and not the worker."""
        try:
            async with redis_errors():
                await self.run_job(claim.request_id, int((time.time() - claim.waited) * 1000))
        except RedisAway:
            logger.warning("Redis went away before job %s began, which is handed back", claim.request_id)
            await self._hand_back(claim)
        except StorageFull as error:
            await self._end(claim.request_id, error)
        except Exception:
            logger.exception("job %s broke", claim.request_id)
            await self._end(claim.request_id, FleetError(), inspect=True)

    async def finish_job(self, job_id: str, finish: bool, *args: Any, **kwargs: Any) -> None:
        """The job returned, failed or was stopped (finish), or it is to be run again, elsewhere."""
        if finish:
            await self._end(job_id, FleetError(), inspect=True)  # nothing happens if it has written its last frame
        elif claim := self.claims.get(job_id):
            await self._hand_back(claim)

    async def finish_failed_job(self, job_id: str, result_data: bytes | None) -> None:
        """arq could not start the job: expired, not msgpack, or an unknown function."""
        await self._end(job_id, BadRequest("The queued job could not be read, so it was given up."), inspect=True)

    async def _hand_back(self, claim: Claim) -> None:
        if await self._insist(lambda: queues.release(self.broker, claim)):
            metrics.REQUEUED.labels(claim.model).inc()

    async def _end(self, request_id: str, error: FleetError, *, inspect: bool = False) -> None:
        if claim := self.claims.get(request_id):
            await self._insist(lambda: queues.end(self.broker, claim, error, inspect=inspect))

    async def _insist(self, call: Callable[[], Awaitable[bool]]) -> bool:
        try:
            return await keep_trying(call)
        except ResponseError as error:
            logger.error("Redis refuses to end a request, its limits will: %s", error)
            return False

    def stop_job(self, request_id: str, hand_over: bool = False) -> None:
        """Stop computing a request: it was cancelled, or another worker has it, or is to have it."""
        if task := self.job_tasks.get(request_id):
            if not hand_over:
                self.aborting_tasks.add(request_id)
            task.cancel()

    def handle_sig(self, signum: Signals) -> None:
        """SIGTERM and SIGINT: drain. A second one: hand over at once."""
        if self.draining:
            for task in self.tasks.values():
                task.cancel()
        self.drain(Signals(signum).name)

    def drain(self, why: str) -> None:
        """Take nothing new, finish what is written or hand it over, and end."""
        if not self.draining:
            logger.info("draining: %s", why)
        self.draining = True
        self._stop.set()
        self._wake.set()

    async def stopped(self) -> None:
        """Returns once the worker has been told to stop."""
        await self._stop.wait()

    async def _drain(self) -> None:
        grace = self.ctx["config"].drain_seconds
        if self.tasks:
            await asyncio.wait(self.tasks.values(), timeout=grace)
        running = list(self.tasks.values())
        await stop(*running, again=3)  # handing over takes a moment that a second cancellation would cut off
        logger.info("drained, %d answers handed over", len(running))

    async def close(self) -> None:
        """arq's way to close; `main` has closed everything when it returns."""
