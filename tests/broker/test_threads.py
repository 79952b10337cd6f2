import time

import pytest

from broker import conversations, keys, queues, threads
from broker.errors import BadRequest, NoSuchConversation, NotFound
from broker.messages import new_id, pack
from broker.queues import Turn
from helpers import request

pytestmark = pytest.mark.usefixtures("card")


async def store(broker, messages, leaf="", owner="anna"):
    """A conversation with these (id, parent, role); each is a millisecond newer than the one before."""
    conversation = new_id()
    stored = {
        i: pack({"role": role, "parent": parent, "parts": [{"kind": "text", "text": i}], "created": at})
        for at, (i, parent, role) in enumerate(messages, 1)
    }
    await broker.redis.hset(
        keys.conversation(conversation), mapping={"owner": owner, "title": "t", "leaf": leaf or messages[-1][0]}
    )
    await broker.redis.hset(keys.messages(conversation), mapping=stored)
    return conversation


TREE = [
    ("q1", "", "user"),
    ("a1", "q1", "assistant"),
    ("q2", "a1", "user"),
    ("a2", "q2", "assistant"),
    ("b1", "q1", "assistant"),  # q1 was answered again
    ("b2", "q2", "assistant"),  # and q2
    ("r1", "", "user"),  # q1 was edited
    ("c1", "r1", "assistant"),
]


async def shown(broker, conversation, **which):
    page = await threads.show(broker, conversation, "anna", **which)
    return [(m["message_id"], m["versions"]) for m in page.messages]


async def test_a_path_with_the_versions_of_each_message(broker):
    conversation = await store(broker, TREE)
    assert await shown(broker, conversation) == [("r1", ["q1", "r1"]), ("c1", ["c1"])]
    assert await shown(broker, conversation, leaf="b1") == [("q1", ["q1", "r1"]), ("b1", ["a1", "b1"])]


async def test_a_version_is_shown_with_the_newest_that_is_below_it(broker):
    conversation = await store(broker, TREE)
    for leaf in ("a1", "q2", "b2"):
        assert [i for i, _ in await shown(broker, conversation, leaf=leaf)] == ["q1", "a1", "q2", "b2"]
    assert [i for i, _ in await shown(broker, conversation, leaf="a2")] == ["q1", "a1", "q2", "a2"]


async def test_pages_of_a_path(broker):
    conversation = await store(broker, TREE)
    first = await threads.show(broker, conversation, "anna", leaf="b2", count=2)
    assert ([m["message_id"] for m in first.messages], first.more) == (["q2", "b2"], True)
    second = await threads.show(broker, conversation, "anna", leaf="b2", before="q2", count=2)
    assert ([m["message_id"] for m in second.messages], second.more) == (["q1", "a1"], False)


async def test_unknown_ids_are_refused(broker):
    conversation = await store(broker, TREE)
    for attempt in (
        threads.show(broker, conversation, "anna", leaf="nope"),
        threads.show(broker, conversation, "anna", leaf="b2", before="r1"),
        threads.choose(broker, conversation, "anna", "nope"),
        threads.rate(broker, conversation, "anna", "a1", "great"),
        threads.rate(broker, conversation, "anna", "q1", "up"),
        threads.rate(broker, conversation, "anna", "a1", "up", "x" * 2001),
    ):
        with pytest.raises(BadRequest):
            await attempt
    for attempt in (
        threads.delete(broker, conversation, "anna", "nope"),
        threads.rate(broker, conversation, "anna", "nope", "up"),
    ):
        with pytest.raises(NotFound):
            await attempt


async def test_nobody_else_may_do_anything(broker):
    conversation = await store(broker, TREE)
    for attempt in (
        threads.show(broker, conversation, "ben"),
        threads.choose(broker, conversation, "ben", "b2"),
        threads.delete(broker, conversation, "ben", "a1"),
        threads.rate(broker, conversation, "ben", "a1", "up"),
    ):
        with pytest.raises(NoSuchConversation):
            await attempt
    assert await broker.redis.exists(keys.RATINGS) == 0
    assert await broker.redis.hlen(keys.messages(conversation)) == len(TREE)


@pytest.mark.parametrize(
    ("messages", "path"),
    [
        ([("a", "b", "user"), ("b", "a", "assistant")], []),  # a circle
        ([("q", "", "user"), ("a", "q", "assistant"), ("x", "gone", "user")], ["q", "a"]),  # its parent was deleted
        ([("x", "x", "user")], []),
    ],
)
async def test_a_broken_tree_is_still_shown_as_far_as_it_goes(broker, messages, path):
    conversation = await store(broker, messages)
    assert [i for i, _ in await shown(broker, conversation)] == path


async def test_the_branch_that_was_chosen_is_shown_next_time(broker):
    conversation = await store(broker, TREE)
    await threads.choose(broker, conversation, "anna", "b1")
    assert [i for i, _ in await shown(broker, conversation)] == ["q1", "b1"]


async def test_the_branch_of_an_answer_under_way_may_be_chosen(broker):
    conversation = await store(broker, TREE)
    asked = request(owner="anna")
    await queues.enqueue(broker, asked, Turn(conversation, "q2"))
    await threads.choose(broker, conversation, "anna", asked.request_id)
    assert [i for i, _ in await shown(broker, conversation)] == ["q1", "a1", "q2"]


async def test_deleting_takes_what_is_below_and_shows_another_version(broker):
    conversation = await store(broker, TREE)
    assert await threads.delete(broker, conversation, "anna", "a1") == "b1"
    assert [i for i, _ in await shown(broker, conversation)] == ["q1", "b1"]
    assert await threads.delete(broker, conversation, "anna", "b1") == "q1"
    assert await threads.delete(broker, conversation, "anna", "q1") == "c1"
    assert await threads.delete(broker, conversation, "anna", "r1") == ""
    assert await shown(broker, conversation) == []
    _, left = await conversations.load(broker, conversation, "anna")
    assert left == {}


async def test_deleting_a_question_ends_its_answer(broker):
    conversation = await store(broker, TREE[:2])
    question, asked = new_id(), request(owner="anna")
    turn = Turn(conversation, question, "", conversations.user_message("more", "a1", 9))
    await queues.enqueue(broker, asked, turn)
    assert await threads.delete(broker, conversation, "anna", question) == "a1"
    assert await broker.redis.hget(keys.request(asked.request_id), "state") == b"ended"
    _, left = await conversations.load(broker, conversation, "anna")
    assert set(left) == {"q1", "a1"}


async def test_answers_under_way_are_versions_and_have_a_path(broker):
    conversation = await store(broker, TREE)
    asked = [request(owner="anna") for _ in range(2)]
    for one, parent in zip(asked, ("q2", "q1"), strict=True):
        await queues.enqueue(broker, one, Turn(conversation, parent))
    page = await threads.show(broker, conversation, "anna", leaf=asked[0].request_id)
    assert page.leaf == "q2"
    first, second = [one.request_id for one in asked]
    assert [(r["request_id"], r["message"], r["model"], r["begun"], r["versions"]) for r in page.running] == [
        (first, "q2", "m", (), ["a2", "b2", first]),
        (second, "q1", "m", (), ["a1", "b1", second]),
    ]
    assert (await shown(broker, conversation, leaf="b2"))[3] == ("b2", ["a2", "b2", first])
    assert (await shown(broker, conversation, leaf="b1"))[1] == ("b1", ["a1", "b1", second])
    assert [i for i, _ in await shown(broker, conversation)] == ["q1"]  # the newest one is an answer to it
    await queues.cancel(broker, second, "anna")
    assert [i for i, _ in await shown(broker, conversation)] == ["q1", second]


async def test_a_rating_is_kept_with_the_answer_and_for_operators(broker):
    conversation = await store(broker, TREE)
    await threads.rate(broker, conversation, "anna", "a1", "down", "too long")
    page = await threads.show(broker, conversation, "anna", leaf="a1")
    assert (page.messages[1]["rating"], page.messages[1]["note"], page.messages[1]["parts"]) == (
        "down",
        "too long",
        ({"kind": "text", "text": "a1"},),
    )
    await threads.rate(broker, conversation, "anna", "a1", "", "ignored")
    page = await threads.show(broker, conversation, "anna", leaf="a1")
    assert (page.messages[1]["rating"], page.messages[1]["note"]) == ("", "")
    entries = [fields for _, fields in await broker.redis.xrange(keys.RATINGS)]
    assert [(e[b"rating"], e[b"note"], e[b"message"]) for e in entries] == [
        (b"down", b"too long", b"a1"),
        (b"", b"", b"a1"),
    ]


async def test_a_page_of_a_long_conversation_is_quick(broker):
    turns = [(f"m{i}", f"m{i - 1}" if i else "", ("user", "assistant")[i % 2]) for i in range(1000)]
    conversation = await store(broker, turns)
    text = pack({"role": "assistant", "parent": "m500", "parts": [{"kind": "text", "text": "word " * 400}]})
    await broker.redis.hset(keys.messages(conversation), mapping={f"other{i}": text for i in range(100)})
    times = []
    for _ in range(5):
        begun = time.process_time()
        page = await threads.show(broker, conversation, "anna")
        times.append(time.process_time() - begun)
    assert len(page.messages) == threads.PAGE
    assert page.more
    assert min(times) < 0.05
