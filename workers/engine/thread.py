"""A thread for PyTorch's work, which would block the event loop: one for all of an engine's, since each new one brings
threads of its own. It does not keep the process alive.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Self, TypeVar

from workers.engine import Progress

logger = logging.getLogger("fleetchat.engine")

T = TypeVar("T")


class Thread:
    """Does one thing after the other, until the block that it is entered for ends, or `end` is called."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        threading.Thread(target=self._run, name="engine-work", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    async def do(self, work: Callable[[], T]) -> T:
        """The result of blocking work."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def job() -> None:
            result, error = None, None
            try:
                result = work()
            except BaseException as raised:
                error = raised
            loop.call_soon_threadsafe(settle, result, error)

        self._jobs.put(job)
        return await future

    async def load(self, work: Callable[[Progress], T], progress: Progress) -> T:
        """The result of work that tells its progress; when the caller is cancelled, that is where the work ends, too."""
        given_up = threading.Event()

        def tell(percent: int) -> None:
            if (
                given_up.is_set()
            ):  # transformers drops the tensors that it has not read yet, so that the process can end
                raise asyncio.CancelledError
            progress(percent)

        try:
            return await self.do(lambda: work(tell))
        except asyncio.CancelledError:
            given_up.set()
            raise

    def end(self) -> None:
        """Once it has done what it was given."""
        self._jobs.put(None)

    def _run(self) -> None:
        while job := self._jobs.get():
            try:
                job()
            except RuntimeError:
                logger.debug("the event loop was closed while a thread worked for it")
