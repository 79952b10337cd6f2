import asyncio

import pytest

from broker import keys, queues
from broker.messages import Frame
from helpers import claim, eventually, request
from workers.engine import Piece, TokenLogprob
from workers.publisher import Outgoing, Publisher

pytestmark = pytest.mark.usefixtures("card")


@pytest.fixture
async def publisher(broker):
    lost: list[tuple[str, bool]] = []
    made = Publisher(broker, lambda request_id, hand_over: lost.append((request_id, hand_over)))
    made.lost = lost
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def outgoing(broker, publisher) -> Outgoing:
    await queues.enqueue(broker, request())
    (held,) = await claim(broker)
    return Outgoing(publisher, held, 0, 0)


async def frames(broker, out: Outgoing) -> list[Frame]:
    return [Frame.decode(f) for f in await broker.redis.lrange(keys.frames(out.claim.request_id), 0, -1)]


async def test_the_first_piece_leaves_at_once_and_later_ones_merge(broker, publisher):
    out = await outgoing(broker, publisher)
    out.prompt_tokens = 7
    out.add(Piece("a", (1,)))
    await eventually(lambda: broker.redis.llen(keys.frames(out.claim.request_id)))
    for text in "bcd":
        out.add(Piece(text, (ord(text),)))
    await out.end({"reason": "stop"})
    written = await frames(broker, out)
    assert [f.text for f in written] == ["a", "bcd"]
    assert [f.seq for f in written] == [0, 1]
    assert await broker.redis.hget(keys.request(out.claim.request_id), "prompt_tokens") == b"7"


async def test_no_time_to_merge_means_a_frame_a_token(broker, publisher):
    publisher.merges, publisher._coalesce = False, 0
    out = await outgoing(broker, publisher)
    for text in "abcd":
        out.add(Piece(text, (1,)))
    await out.end({"reason": "stop"})
    assert [f.text for f in await frames(broker, out)] == ["a", "b", "c", "d"]


async def test_data_is_not_in_the_last_frame(broker, publisher):
    """Scripts unpack that one, and data may be large."""
    out = await outgoing(broker, publisher)
    out.add(Piece("a", (1,), data={"tokens": [1]}))
    await out.end({"reason": "stop"})
    assert [(f.text, f.data, f.end) for f in await frames(broker, out)] == [
        ("a", {"tokens": [1]}, None),
        ("", None, {"reason": "stop"}),
    ]


async def test_kinds_do_not_merge(broker, publisher):
    out = await outgoing(broker, publisher)
    out.add(Piece("hm", (1,), kind="reasoning"))
    out.add(Piece("yes", (2,)))
    await out.end({"reason": "stop"})
    assert [(f.kind, f.text) for f in await frames(broker, out)] == [("reasoning", "hm"), ("text", "yes")]


async def test_logprobs_of_merged_pieces_travel_in_one_frame(broker, publisher):
    half = TokenLogprob(9, b"\xf0\x9f", -0.25, (TokenLogprob(9, b"\xf0\x9f", -0.25), TokenLogprob(2, b"c", -3.5)))
    tokens = [TokenLogprob(1, b"a", -0.5), half, TokenLogprob(3, b"d", float("-inf"))]
    out = await outgoing(broker, publisher)
    out.add(Piece("a", (1,), logprobs=(tokens[0],)))
    out.add(Piece("", (9,), logprobs=(half,)))
    out.add(Piece("d", (3,), logprobs=(tokens[2],)))
    await out.end({"reason": "stop"})
    (frame,) = await frames(broker, out)
    assert (frame.text, frame.end) == ("ad", {"reason": "stop"})
    assert frame.logprobs == [token.to_map() for token in tokens]


async def test_data_shares_its_frame_with_nothing(broker, publisher):
    out = await outgoing(broker, publisher)
    for piece in (Piece("a", (1,)), Piece("b", (2,), data={"x": 1}), Piece("", data=[2]), Piece("c"), Piece("d")):
        out.add(piece)
    await out.end({"reason": "stop"})
    written = await frames(broker, out)
    assert [(f.text, f.data) for f in written] == [("a", None), ("b", {"x": 1}), ("", [2]), ("cd", None)]
    assert await broker.redis.strlen(keys.tokens(out.claim.request_id)) == 0, "gone with the last frame"


async def test_pieces_without_ids_count_for_the_rate_and_not_for_the_usage(broker, publisher):
    out = await outgoing(broker, publisher)
    for text in "abc":
        out.add(Piece(text))
    await out.end({"reason": "stop"})
    assert "".join(f.text for f in await frames(broker, out)) == "abc"
    assert (publisher.tokens, out.tokens) == (3, 0)


async def test_ids_are_logged_with_their_text(broker, publisher):
    out = await outgoing(broker, publisher)
    for i in (5, 70_000, 4_000_000_000):
        out.add(Piece(str(i), (i,)))
    await eventually(lambda: _ids(broker, out))


async def _ids(broker, out) -> bool:
    logged = await broker.redis.get(keys.tokens(out.claim.request_id))
    return logged == b"".join(i.to_bytes(4, "little") for i in (5, 70_000, 4_000_000_000))


async def test_what_redis_lost_is_sent_again(broker, publisher):
    """Bug C: the list is shorter than what was acknowledged."""
    publisher.merges, publisher._coalesce = False, 0
    out = await outgoing(broker, publisher)
    for i in range(5):
        out.add(Piece(f"{i}", (i,)))
    await eventually(lambda: _length(broker, out, 5))
    await broker.redis.ltrim(keys.frames(out.claim.request_id), 0, 1)
    out.add(Piece("5", (5,)))
    await out.end({"reason": "stop"})
    assert "".join(f.text for f in await frames(broker, out)) == "012345"
    assert not publisher.lost


async def _length(broker, out, length) -> bool:
    return await broker.redis.llen(keys.frames(out.claim.request_id)) == length


async def test_an_answer_that_was_stopped_is_reported_and_its_end_does_not_hang(broker, publisher):
    out = await outgoing(broker, publisher)
    out.add(Piece("a", (1,)))
    await eventually(lambda: _length(broker, out, 1))
    await queues.cancel(broker, out.claim.request_id, "")
    out.add(Piece("b", (2,)))
    await out.end({"reason": "stop"})
    assert publisher.lost == [(out.claim.request_id, False)]
    assert [f.text for f in await frames(broker, out)] == ["a", ""]


async def test_a_frame_that_redis_refuses_stops_only_its_own_answer(broker, publisher):
    broken, whole = await outgoing(broker, publisher), await outgoing(broker, publisher)
    await broker.redis.set(keys.frames(broken.claim.request_id), "not a list")
    broken.add(Piece("a", (1,)))
    whole.add(Piece("b", (1,)))
    await whole.end({"reason": "stop"})
    assert [f.text for f in await frames(broker, whole)] == ["b"]
    assert publisher.lost == [(broken.claim.request_id, False)]


async def test_an_answer_whose_beginning_redis_lost_is_handed_over(broker, publisher):
    await queues.enqueue(broker, request())
    (held,) = await claim(broker)
    resumed = Outgoing(publisher, held, 3, 3)  # an earlier worker wrote frames 0 to 2, and Redis has none of them
    resumed.add(Piece("d", (4,)))
    await resumed.ended.wait()
    assert publisher.lost == [(held.request_id, True)]
