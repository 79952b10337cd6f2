import pytest

from broker import conversations, queues, streams
from broker.conversations import StoredMessage
from broker.errors import BadRequest, Conflict, NoSuchConversation
from broker.messages import Frame, Message, pack
from broker.queues import Turn
from broker.streams import Written
from helpers import claim, request
from talk import begin, say

pytestmark = pytest.mark.usefixtures("card")


async def test_an_answer_is_in_its_conversation_although_nobody_watched(broker):
    turn, request_id = await begin(broker)
    conversation, _ = await conversations.load(broker, turn.conversation, "anna")
    assert (conversation.title, conversation.leaf, conversation.requests) == ("hello there", turn.parent, (request_id,))
    await say(broker, request_id, "I think. ", "你", "好", " 🙂", kind="reasoning")
    conversation, messages = await conversations.load(broker, turn.conversation, "anna")
    assert (conversation.leaf, conversation.requests) == (request_id, ())
    path = conversations.path(messages, conversation.leaf)
    assert [m.role for m in path] == ["user", "assistant"]
    assert path[1].parts == ({"kind": "reasoning", "text": "I think. "}, {"kind": "text", "text": "你好 🙂"})
    assert (path[1].text, path[1].model, path[1].usage["completion_tokens"]) == ("你好 🙂", "m", 2)


async def test_a_stopped_answer_keeps_what_was_said(broker):
    turn, request_id = await begin(broker)
    (held,) = await claim(broker)
    frame = Frame(request_id, 0, 1, "half")
    await streams.append(broker, [Written(request_id, held.token, 0, frame.encode())])
    await queues.cancel(broker, request_id, "anna")
    _, messages = await conversations.load(broker, turn.conversation, "anna")
    assert (messages[request_id].text, messages[request_id].reason) == ("half", "cancelled")


async def test_a_long_answer_is_whole(broker):
    turn, request_id = await begin(broker)
    texts = [f"{i} " * 40 for i in range(2000)]
    (held,) = await claim(broker)
    written = [
        Written(
            request_id,
            held.token,
            i,
            Frame(request_id, i, 1, t, end={"reason": "stop"} if i == 1999 else None).encode(),
            last=i == 1999,
        )
        for i, t in enumerate(texts)
    ]
    for i in range(0, 2000, 250):
        await streams.append(broker, written[i : i + 250])
    _, messages = await conversations.load(broker, turn.conversation, "anna")
    assert messages[request_id].text == "".join(texts)


async def test_nobody_else_sees_or_changes_a_conversation(broker):
    turn, _ = await begin(broker)
    for attempt in (
        conversations.load(broker, turn.conversation, "ben"),
        begin(broker, "ben", conversation=turn.conversation),
    ):
        with pytest.raises(NoSuchConversation):
            await attempt


async def test_four_answers_at_a_time_in_a_conversation(broker):
    turn, first = await begin(broker)
    others = [request(owner="anna") for _ in range(4)]
    for other in others[:3]:
        await queues.enqueue(broker, other, Turn(turn.conversation, turn.parent))
    with pytest.raises(Conflict):
        await queues.enqueue(broker, others[3], Turn(turn.conversation, turn.parent))
    conversation, _ = await conversations.load(broker, turn.conversation, "anna")
    assert conversation.requests == (first, *(r.request_id for r in others[:3]))
    await queues.cancel(broker, others[0].request_id, "anna")
    await queues.enqueue(broker, others[3], Turn(turn.conversation, turn.parent))
    conversation, messages = await conversations.load(broker, turn.conversation, "anna")
    assert conversation.requests == (first, *(r.request_id for r in others[1:]))
    assert set(messages) == {turn.parent, others[0].request_id}


async def test_the_same_request_again_changes_nothing_while_it_runs_and_afterwards(broker):
    turn, _ = await begin(broker)
    asked = request(owner="anna")
    await queues.enqueue(broker, asked, Turn(turn.conversation, turn.parent))
    await queues.enqueue(broker, asked, Turn(turn.conversation, turn.parent))
    await queues.cancel(broker, asked.request_id, "anna")
    await broker.redis.delete(f"request:{{{asked.request_id}}}")  # as time does
    await queues.enqueue(broker, asked, Turn(turn.conversation, turn.parent))
    assert await broker.redis.zcard("queue:m") == 1


async def test_an_answer_that_goes_on_begins_with_what_was_said(broker):
    turn, first = await begin(broker)
    await queues.cancel(broker, first, "anna")
    begun = [{"kind": "reasoning", "text": "Well. "}, {"kind": "text", "text": "one "}]
    asked = request(owner="anna")
    await queues.enqueue(broker, asked, Turn(turn.conversation, turn.parent, begun=pack(begun)))
    await say(broker, asked.request_id, "two ", "three")
    _, messages = await conversations.load(broker, turn.conversation, "anna")
    assert messages[asked.request_id].parts == (begun[0], {"kind": "text", "text": "one two three"})


async def test_calls_of_tools_are_kept_as_parts(broker):
    turn, request_id = await begin(broker)
    (held,) = await claim(broker)
    deltas = [
        [{"index": 0, "id": "a", "type": "function", "function": {"name": "sum", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"x": '}}],
        [
            {"index": 0, "function": {"arguments": "1}"}},
            {"index": 0, "function": {"arguments": None}},
            "nonsense",
            {"index": 2, "function": 5},
            {"index": 1, "id": "b", "type": "function", "function": {"name": "now", "arguments": "{}"}},
        ],
    ]
    frames = [Frame(request_id, 0, 1, "I ask. ")]
    frames += [Frame(request_id, i + 1, 1, "", "tool", data=data) for i, data in enumerate(deltas)]
    frames.append(Frame(request_id, 4, 1, "", end={"reason": "tool_calls"}))
    await streams.append(
        broker, [Written(request_id, held.token, f.seq, f.encode(), last=f.end is not None) for f in frames]
    )
    _, messages = await conversations.load(broker, turn.conversation, "anna")
    assert messages[request_id].parts == (
        {"kind": "text", "text": "I ask. "},
        {"kind": "tool", "name": "sum", "text": '{"x": 1}'},
        {"kind": "tool", "name": "now", "text": "{}"},
    )


def test_a_model_sees_files_in_fences_that_nothing_in_them_closes():
    parts = conversations.parts_of("What is this?", [("a.py", "x = '```'"), ("notes", "line\n")])
    assert conversations.shown_to_model(parts) == (
        "a.py\n````py\nx = '```'\n````\n\nnotes\n```\nline\n```\n\nWhat is this?"
    )


def test_a_path_that_leads_in_a_circle_or_nowhere_is_refused():
    def message(name: str, parent: str) -> StoredMessage:
        return StoredMessage(name, "user", parent, ())

    with pytest.raises(BadRequest):
        conversations.path({"a": message("a", "b"), "b": message("b", "a")}, "a")
    with pytest.raises(BadRequest):
        conversations.path({"a": message("a", "gone")}, "a")


def test_history_leaves_out_what_came_to_nothing():
    def message(name: str, role: str, text: str) -> StoredMessage:
        return StoredMessage(name, role, "", ({"kind": "text", "text": text},))

    path = [
        message("1", "user", "a"),
        message("2", "assistant", ""),
        message("3", "user", "b"),
        message("4", "assistant", "c"),
    ]
    assert conversations.history(path) == (Message("user", "b"), Message("assistant", "c"))


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("hi", "hi"),
        ("# A **bold** `x`", "A bold x"),
        ("**", "**"),
        ("a\n b", "a b"),
        ("word " * 30, "word " * 11 + "word…"),
        ("字" * 80, "字" * 60 + "…"),
    ],
)
def test_a_title_is_the_first_words(text, title):
    assert conversations.title_of(text) == title
