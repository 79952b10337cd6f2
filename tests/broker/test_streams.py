import asyncio

import pytest

from broker import keys, queues, streams
from broker.connection import Broker
from broker.errors import WorkerLost
from broker.messages import Frame
from broker.queues import Claim
from broker.streams import Written
from helpers import claim, eventually, request

pytestmark = pytest.mark.usefixtures("card")


def frame(held: Claim, seq: int, text: str | None = None, *, last: bool = False) -> Written:
    made = Frame(
        held.request_id, seq, held.epoch, f"{seq} " if text is None else text, end={"reason": "stop"} if last else None
    )
    return Written(held.request_id, held.token, seq, made.encode(), seq.to_bytes(4, "little"), last=last)


async def started(broker: Broker) -> Claim:
    await queues.enqueue(broker, request())
    return (await claim(broker))[0]


async def read_all(broker: Broker, request_id: str, start: int = 0, **options) -> list[int]:
    async with streams.read(broker, request_id, start, **options) as reader:
        return [f.seq async for f in reader]


async def test_a_reader_gets_every_frame_once_and_in_order(broker):
    held = await started(broker)
    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(read_all(broker, held.request_id)) for _ in range(5)]
        for seq in range(50):
            await streams.append(broker, [frame(held, seq, last=seq == 49)])
    assert all(r.result() == list(range(50)) for r in readers)


@pytest.mark.parametrize("start", [0, 3, 9])
async def test_a_late_reader_gets_every_frame_from_where_it_stood(broker, start):
    held = await started(broker)
    await streams.append(broker, [frame(held, seq, last=seq == 9) for seq in range(10)])
    assert await read_all(broker, held.request_id, start) == list(range(start, 10))


async def test_more_than_a_mailbox_holds_is_read_from_the_list(broker):
    held = await started(broker)
    async with streams.read(broker, held.request_id, limit=3) as reader:
        assert await queues.renew(broker, [held]) == []
        for i in range(0, 1200, 100):
            await streams.append(broker, [frame(held, seq, last=seq == 1199) for seq in range(i, i + 100)])
        assert [f.seq async for f in reader] == list(range(1200))


async def test_a_lost_subscription_is_made_again_and_the_gap_filled(broker):
    held = await started(broker)
    async with streams.read(broker, held.request_id) as reader:
        await streams.append(broker, [frame(held, 0)])
        assert [f.seq for f in await reader.take()] == [0]
        async with broker.redis.client() as other:
            killed = await other.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        assert killed >= 1
        await streams.append(broker, [frame(held, 1), frame(held, 2)])  # published to nobody
        got = []
        while len(got) < 2:
            got += [f.seq for f in await reader.take()]
        assert got == [1, 2]
        await streams.append(broker, [frame(held, 3, last=True)])
        assert [f.seq async for f in reader] == [3]


async def test_appending_twice_writes_once(broker):
    held = await started(broker)
    await streams.append(broker, [frame(held, 0), frame(held, 1)])
    assert await streams.append(broker, [frame(held, 0), frame(held, 1), frame(held, 2)]) == [0, 0, 0]
    assert await broker.redis.llen(keys.frames(held.request_id)) == 3
    assert await broker.redis.strlen(keys.tokens(held.request_id)) == 12


async def test_a_list_that_is_shorter_asks_for_the_missing_frames(broker):
    """Bug C: Redis came back without its last second."""
    held = await started(broker)
    await streams.append(broker, [frame(held, seq) for seq in range(5)])
    await broker.redis.ltrim(keys.frames(held.request_id), 0, 2)
    assert await streams.append(broker, [frame(held, 5)]) == [streams.GAP - 3]


async def test_append_says_how_many_listen(broker):
    held = await started(broker)
    assert await streams.append(broker, [frame(held, 0)]) == [0]
    async with streams.read(broker, held.request_id):
        assert await streams.append(broker, [frame(held, 1)]) == [1]


async def test_a_cancelled_request_takes_no_more_frames(broker):
    held = await started(broker)
    await streams.append(broker, [frame(held, 0)])
    await queues.cancel(broker, held.request_id, "")
    assert await streams.append(broker, [frame(held, 1)]) == [streams.ENDED]
    assert await read_all(broker, held.request_id) == [0, 1]


async def lose_two(broker, held):
    """Redis forgets all frames but the first two, and another worker has the request."""
    await broker.redis.ltrim(keys.frames(held.request_id), 0, 1)
    await queues.release(broker, held)
    (new,) = await claim(broker, worker="w2", token="t2")
    return new


async def test_a_higher_epoch_replaces_what_redis_lost(broker):
    held = await started(broker)
    async with streams.read(broker, held.request_id) as reader:
        await streams.append(broker, [frame(held, seq) for seq in range(4)])
        while reader.next < 4:
            await reader.take()
        new = await lose_two(broker, held)
        await streams.append(broker, [frame(new, 2, "again", last=True)])
        (replaced,) = [f async for f in reader]
        assert (replaced.seq, replaced.epoch, replaced.decode().text) == (2, 2, "again")


@pytest.mark.parametrize("anew", [1, 2, 9])
async def test_what_was_written_anew_while_the_reader_was_away_is_read_from_where_it_differs(broker, anew):
    """Redis lost frames 2 and 3; whether the list is shorter than before or longer by now makes no difference."""
    held = await started(broker)
    async with streams.read(broker, held.request_id, limit=1) as reader:
        await streams.append(broker, [frame(held, seq) for seq in range(4)])
        while reader.next < 4:
            await reader.take()
        new = await lose_two(broker, held)
        last = 2 + anew
        await streams.append(broker, [frame(new, seq, "anew", last=seq == last) for seq in range(2, last + 1)])
        assert [(f.seq, f.epoch) async for f in reader] == [(seq, 2) for seq in range(2, last + 1)]


async def test_a_reader_that_has_more_than_the_list_gets_all_that_there_is(broker):
    """A page comes back with a number that Redis has lost; by the epochs it knows what is new."""
    held = await started(broker)
    await streams.append(broker, [frame(held, seq, last=seq == 2) for seq in range(3)])
    assert await read_all(broker, held.request_id, 5) == [0, 1, 2]


async def test_a_reader_that_comes_back_with_its_epoch_gets_what_was_written_in_place_of_what_it_has(broker):
    held = await started(broker)
    await streams.append(broker, [frame(held, seq) for seq in range(4)])
    new = await lose_two(broker, held)  # which a page had seen
    await streams.append(broker, [frame(new, seq, "anew", last=seq == 6) for seq in range(2, 7)])
    async with streams.read(broker, held.request_id, 4, epoch=1) as reader:
        assert [(f.seq, f.epoch) async for f in reader] == [(seq, 2) for seq in range(2, 7)]


async def test_the_end_of_an_answer_whose_frames_redis_lost_is_heard(broker):
    held = await started(broker)
    async with streams.read(broker, held.request_id) as reader:
        await streams.append(broker, [frame(held, seq) for seq in range(4)])
        while reader.next < 4:
            await reader.take()
        await broker.redis.ltrim(keys.frames(held.request_id), 0, 1)
        await asyncio.sleep(0.01)  # a restart takes longer
        await broker.redis.hset(keys.request(held.request_id), "history", "another server's")
        await queues.cancel(broker, held.request_id, "")
        (last,) = [f async for f in reader]
        assert last.seq == 2
        assert last.epoch > 1


async def test_a_claim_after_a_restart_has_an_epoch_that_no_forgotten_one_had(broker):
    await queues.enqueue(broker, asked := request())
    await asyncio.sleep(0.01)
    await broker.redis.hset(keys.request(asked.request_id), "history", "another server's")
    (first,) = await claim(broker)
    assert first.epoch >= 10
    await broker.redis.hset(keys.request(asked.request_id), "epoch", 0)  # forgotten once more
    await queues.release(broker, first)
    await asyncio.sleep(0.002)
    (second,) = await claim(broker, token="t2")
    assert second.epoch > first.epoch


async def test_a_request_that_redis_forgot_is_an_error_and_no_wait(broker):
    with pytest.raises(WorkerLost):
        await read_all(broker, "0" * 26)


async def test_leaving_unsubscribes(broker):
    held = await started(broker)
    async with streams.read(broker, held.request_id), streams.read(broker, held.request_id):
        assert (await broker.redis.pubsub_numsub(keys.stream(held.request_id)))[0][1] == 1
    await eventually(lambda: _unheard(broker, held.request_id))


async def _unheard(broker: Broker, request_id: str) -> bool:
    return (await broker.redis.pubsub_numsub(keys.stream(request_id)))[0][1] == 0
