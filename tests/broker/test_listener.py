import asyncio
from contextlib import AsyncExitStack

from helpers import eventually


async def calls(broker, command: str) -> int:
    return (await broker.redis.info("commandstats")).get(f"cmdstat_{command}", {"calls": 0})["calls"]


async def heard(broker, channel: str) -> int:
    return (await broker.redis.pubsub_numsub(channel))[0][1]


async def test_subscriptions_of_one_moment_leave_in_one_call(broker):
    before = await calls(broker, "subscribe")
    async with AsyncExitStack() as stack:
        entered = (stack.enter_async_context(broker.listener.subscribe(f"stream:{{{i}}}")) for i in range(50))
        mailboxes = await asyncio.gather(*entered)
        assert await calls(broker, "subscribe") == before + 1
        for i in range(50):
            assert await broker.redis.publish(f"stream:{{{i}}}", str(i)) == 1
        assert [await mailbox.take(5) for mailbox in mailboxes] == [([str(i).encode()], False) for i in range(50)]


async def test_what_nobody_hears_is_left(broker):
    async with broker.listener.subscribe("stream:{x}"):
        assert await heard(broker, "stream:{x}") == 1

    async def left() -> bool:
        return await heard(broker, "stream:{x}") == 0

    await eventually(left)


async def test_a_channel_that_is_left_and_joined_again_at_once_is_heard(broker):
    for i in range(3):
        async with broker.listener.subscribe("stream:{x}") as mailbox:
            await broker.redis.publish("stream:{x}", str(i))
            messages, gap = await mailbox.take(5)
            assert (messages, gap) == ([str(i).encode()], False)


async def test_who_leaves_before_the_confirmation_leaves_nothing_behind(broker):
    async def join() -> None:
        async with broker.listener.subscribe("stream:{x}"):
            raise AssertionError("it was confirmed before it was asked for")

    task = asyncio.create_task(join())
    await asyncio.sleep(0)  # it has begun, and waits
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with broker.listener.subscribe("stream:{y}"):  # behind it in the same connection
        assert (await heard(broker, "stream:{x}"), await heard(broker, "stream:{y}")) == (0, 1)
