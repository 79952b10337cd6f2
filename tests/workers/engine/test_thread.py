"""The thread beside the event loop: what work gives and raises, and how it is given up and ended."""

import asyncio
import threading

import pytest

from workers.engine import Progress
from workers.engine.thread import Thread


def named() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "engine-work"]


async def test_work_gives_and_raises_one_after_the_other_in_one_thread() -> None:
    before = set(named())
    with Thread() as thread:
        done = await asyncio.gather(*(thread.do(threading.current_thread) for _ in range(3)))
        assert set(done) == set(named()) - before
        for error in (ValueError, SystemExit, asyncio.CancelledError):

            def fails(error: type[BaseException] = error) -> None:
                raise error("no")

            with pytest.raises(error, match="no"):
                await thread.do(fails)
        assert await thread.do(lambda: 5) == 5
    await asyncio.to_thread(done[0].join, 5)
    assert set(named()) == before


async def test_work_is_given_up_with_its_caller() -> None:
    begun, go_on, told = asyncio.Event(), threading.Event(), list[int]()
    loop = asyncio.get_running_loop()

    def work(tell: Progress) -> None:
        tell(1)
        loop.call_soon_threadsafe(begun.set)
        go_on.wait()
        tell(2)

    with Thread() as thread:
        loading = asyncio.create_task(thread.load(work, told.append))
        await begun.wait()
        loading.cancel()
        await asyncio.wait({loading})
        go_on.set()
        assert await thread.do(lambda: told) == [1]
