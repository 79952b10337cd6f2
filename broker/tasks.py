"""Tasks that run beside something, and end with it: whoever starts a task stops it."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


async def stop(*tasks: asyncio.Task[Any], again: float = 0.2) -> None:
    """Cancel tasks and return when they have ended, with whatever result.

    One cancellation is not enough: redis-py can swallow it while it connects (seen with 5.3), and the task goes on. So
    it is repeated every `again` seconds.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=again)


async def happens(event: asyncio.Event, seconds: float | None) -> bool:
    """Whether the event is set by then; None waits for ever."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


@asynccontextmanager
async def beside(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run each coroutine as a task while the block runs. One that fails cancels the block, which then raises its error."""
    block = asyncio.current_task()
    assert block is not None
    failures: list[BaseException] = []

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            failures.append(error)
            block.cancel()

    tasks = [asyncio.create_task(one, name=getattr(one, "__qualname__", None)) for one in work]
    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
    except asyncio.CancelledError:
        if failures:
            block.uncancel()
            raise failures[0] from None
        raise
    finally:
        for task in tasks:
            task.remove_done_callback(ended)
        await stop(*tasks)
