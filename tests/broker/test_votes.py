import pytest

from broker import keys, votes
from broker.votes import Vote

VOTE = Vote(
    "b1",
    "blind",
    "tie",
    "left",
    "right",
    0.125,
    3,
    "f" * 18,
    1_700_000_000_123,
    ("coding", "zh"),
    (5, 1, 2, 3),
    (7, 0, 0, 1),
    True,
)


async def add(broker, vote: Vote) -> None:
    await broker.redis.execute_command("XADD", keys.VOTES, "*", *vote.encode())


async def test_a_vote_is_read_as_it_was_written(broker):
    await add(broker, VOTE)
    await add(broker, Vote("b2", "named", "a", "x", "y"))
    ((first, second),) = [batch async for batch in votes.read(broker)]
    assert first[1] == VOTE
    assert second[1] == Vote("b2", "named", "a", "x", "y")


async def test_an_entry_is_text_for_people(broker):
    await add(broker, VOTE)
    ((_, entry),) = await broker.redis.xrange(keys.VOTES)
    assert entry == {
        b"battle": b"b1", b"kind": b"blind", b"winner": b"tie", b"a": b"left", b"b": b"right", b"p": b"0.125", b"turns": b"3",
        b"voter": b"f" * 18, b"at": b"1700000000123", b"categories": b"coding zh", b"style_a": b"5 1 2 3", b"style_b": b"7 0 0 1",
        b"leak": b"1",
    }  # fmt: skip


@pytest.mark.parametrize(
    "entry",
    [
        {"battle": "b", "kind": "blind", "winner": "c", "a": "x", "b": "y"},
        {"battle": "b", "kind": "open", "winner": "a", "a": "x", "b": "y"},
        {"battle": "b", "winner": "a", "a": "x", "b": "y"},
        {"battle": "b", "kind": "blind", "winner": "a", "a": "x", "b": "y", "at": "soon"},
        {"battle": "b", "kind": "blind", "winner": "a", "a": "x", "b": "y", "style_a": "1 2"},
        {"hello": "world"},
    ],
)
async def test_what_is_no_vote_is_left_out_and_the_others_are_there(broker, entry):
    await broker.redis.xadd(keys.VOTES, entry)
    await add(broker, VOTE)
    assert [vote async for batch in votes.read(broker) for _, vote in batch] == [VOTE]


async def test_votes_come_in_order_in_batches_and_from_any_place_on(broker):
    for n in range(10):
        await add(broker, Vote(f"b{n}", "blind", "a", "x", "y"))
    batches = [batch async for batch in votes.read(broker, batch=4)]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    flat = [one for batch in batches for one in batch]
    assert [vote.battle for _, vote in flat] == [f"b{n}" for n in range(10)]
    later = [vote async for batch in votes.read(broker, after=flat[6][0]) for _, vote in batch]
    assert [vote.battle for vote in later] == ["b7", "b8", "b9"]


async def test_what_was_said_is_none_where_it_is_not_here(broker):
    said = {"turns": [{"text": "問", "a": "答" * 1000, "b": ""}]}
    await broker.redis.hset(keys.VOTED, mapping={"here": votes.compress(said), "in a file": b""})
    assert await votes.said(broker, ["nowhere", "here", "in a file"]) == [None, said, None]
    assert await votes.said(broker, []) == []
    assert len(votes.compress(said)) < 200


def test_bytes_that_are_something_else_are_said_to_be():
    with pytest.raises(ValueError, match="not compressed"):
        votes.decompress(b"something else")
