import asyncio
from dataclasses import replace

import pytest

from broker import conversations, keys, registry, shelf, streams
from broker.connection import Broker
from broker.errors import BadRequest, NoSuchConversation
from broker.messages import Frame, new_id
from broker.streams import Written
from broker.tasks import stop
from helpers import claim, eventually
from talk import begin, imported, say, talk

pytestmark = pytest.mark.usefixtures("card")

DAY_MS = 86_400_000


async def listed(broker, owner="anna", **more):
    return [c.conversation_id for c in (await shelf.listed(broker, owner, **more)).conversations]


async def all_keys(broker, *but):
    prefixes = (
        "models",
        "serving",
        "workers",
        "worker:",
        "counts",
        "turns",
        "pace",
        "swept",
        "since",
        "retained",
        *but,
    )
    return sorted(k for key in await broker.redis.keys("*") if not (k := key.decode()).startswith(prefixes))


async def test_the_list_is_latest_first_and_paged_also_among_equals(broker):
    made = await imported(broker, *[1000 * (i // 4) + 1 for i in range(25)])
    for count in (1, 3, 4, 7, 25, 60):
        found, before = [], ""
        while True:
            page = await shelf.listed(broker, "anna", before, count=count)
            found += page.conversations
            before = page.after
            if not before:
                break
        assert [c.conversation_id for c in found] == made
    assert [c.updated for c in found] == sorted((c.updated for c in found), reverse=True)
    assert await listed(broker, before="2001") == made[-8:]
    assert await listed(broker, "ben") == []


@pytest.mark.parametrize("before", ["never", "-1", "1e3", "nan", "9" * 400, "١٢", "12.5"])
async def test_a_bad_cursor_is_refused(broker, before):
    with pytest.raises(BadRequest):
        await shelf.listed(broker, "anna", before)


async def test_pinned_ones_come_first_once_and_only_on_the_first_page(broker):
    made = await imported(broker, 1, 2, 3, 4, 5, 6)
    await shelf.pin(broker, made[4], "anna", True)
    await shelf.pin(broker, made[1], "anna", True)
    page = await shelf.listed(broker, "anna", count=3)
    assert [c.conversation_id for c in page.conversations] == [made[1], made[4], made[0], made[2]]
    assert [bool(c.pinned) for c in page.conversations] == [True, True, False, False]
    rest = await shelf.listed(broker, "anna", page.after, count=3)
    assert [c.conversation_id for c in rest.conversations] == [made[3], made[5]]
    await shelf.pin(broker, made[1], "anna", False)
    assert await listed(broker) == [made[4], *made[:4], made[5]]


async def test_as_many_are_pinned_as_may_be(broker):
    made = await imported(broker, *range(shelf.MOST_PINNED + 1))
    for one in made[1:]:
        await shelf.pin(broker, one, "anna", True)
    with pytest.raises(BadRequest, match="Unpin one"):
        await shelf.pin(broker, made[0], "anna", True)
    await shelf.pin(broker, made[1], "anna", True)  # it is pinned already


async def test_an_archived_one_stands_apart_until_it_is_spoken_in_again(broker):
    first, second = await imported(broker, 2, 1)
    await shelf.pin(broker, first, "anna", True)
    await shelf.archive(broker, first, "anna", True)
    assert (await listed(broker), await listed(broker, archived=True)) == ([second], [first])
    conversation, messages = await conversations.load(broker, first, "anna")
    assert (bool(conversation.archived), conversation.pinned) == (True, 0)
    _, request_id = await begin(broker, conversation=first, parent=next(iter(messages)))
    assert (await listed(broker), await listed(broker, archived=True)) == ([first, second], [])
    await shelf.archive(broker, first, "anna", True)
    await say(broker, request_id, "done")
    assert (await listed(broker), await listed(broker, archived=True)) == ([second], [first]), (
        "an answer's end does not"
    )
    await shelf.pin(broker, first, "anna", True)
    assert (await listed(broker), await listed(broker, archived=True)) == ([first, second], [])


async def test_tags_filter_the_list(broker):
    a, b, c = await imported(broker, 3, 2, 1)
    await shelf.tag(broker, a, "anna", ["work", " #Zürich  trip ", "work", "", "字"])
    await shelf.tag(broker, c, "anna", ["work", "🎸"])
    assert (await conversations.load(broker, a, "anna"))[0].tags == ("work", "Zürich trip", "字")
    assert await shelf.tags(broker, "anna") == ["work", "Zürich trip", "字", "🎸"]
    assert (await listed(broker, tag="work"), await listed(broker, tag="🎸")) == ([a, c], [c])
    page = await shelf.listed(broker, "anna", tag="work", count=1)
    assert await listed(broker, tag="work", before=page.after) == [c]
    await shelf.archive(broker, a, "anna", True)
    assert (await listed(broker, tag="work"), await listed(broker, tag="work", archived=True)) == ([c], [a])
    await shelf.tag(broker, c, "anna", [])
    assert await listed(broker, tag="work") == []
    assert await listed(broker, tag="nowhere") == [] == await listed(broker, "ben", tag="work")
    for bad in (["x" * 41], [str(i) for i in range(21)]):
        with pytest.raises(BadRequest):
            await shelf.tag(broker, b, "anna", bad)


async def test_renaming(broker):
    turn, _ = await begin(broker)
    await shelf.rename(broker, turn.conversation, "anna", "  A better\n title ")
    found = (await conversations.load(broker, turn.conversation, "anna"))[0]
    assert (found.title, found.titled) == ("A better title", "user")
    await shelf.rename(broker, turn.conversation, "anna", "👩‍👩‍👧 " * 5000)
    assert len((await conversations.load(broker, turn.conversation, "anna"))[0].title) <= 61
    with pytest.raises(BadRequest):
        await shelf.rename(broker, turn.conversation, "anna", " ")


async def test_a_models_title_never_replaces_another(broker):
    one = await talk(broker)
    assert await shelf.propose_title(broker, one, "anna", "By the model")
    assert not await shelf.propose_title(broker, one, "anna", "Again")
    await shelf.rename(broker, one, "anna", "Mine")
    assert not await shelf.propose_title(broker, one, "anna", "Better")
    assert not await shelf.propose_title(broker, new_id(), "anna", "Nobody's")
    assert (await conversations.load(broker, one, "anna"))[0].title == "Mine"


async def test_nobody_else_changes_a_conversation(broker):
    one = await talk(broker)
    before = await broker.redis.hgetall(keys.conversation(one))
    for name in (one, new_id(), "x", "*", "../" + one, ""):
        owner = "ben" if name == one else "anna"
        for attempt in (
            shelf.rename(broker, name, owner, "mine"),
            shelf.pin(broker, name, owner, True),
            shelf.archive(broker, name, owner, True),
            shelf.tag(broker, name, owner, ["mine"]),
            shelf.delete(broker, name, owner),
            shelf.restore(broker, name, "ben"),
        ):
            with pytest.raises(NoSuchConversation):
                await attempt
    assert await broker.redis.hgetall(keys.conversation(one)) == before
    assert [key for key in await all_keys(broker) if "ben" in key] == []


async def test_a_deleted_one_is_gone_and_undo_brings_it_back_as_it_was(broker):
    one = await talk(broker, "hello", "General!")
    await shelf.tag(broker, one, "anna", ["t"])
    await shelf.pin(broker, one, "anna", True)
    before = await conversations.load(broker, one, "anna")
    await shelf.delete(broker, one, "anna")
    assert await listed(broker) == [] == await listed(broker, tag="t")
    assert await shelf.tags(broker, "anna") == []
    for attempt in (
        conversations.load(broker, one, "anna"),
        shelf.delete(broker, one, "anna"),
        shelf.pin(broker, one, "anna", True),
        shelf.restore(broker, one, "ben"),
        begin(broker, conversation=one, parent=before[0].leaf),
    ):
        with pytest.raises(NoSuchConversation):
            await attempt
    for key in await all_keys(broker, "request:", "frames:"):
        assert 0 < await broker.redis.pttl(key) <= 60_000, key
    await shelf.restore(broker, one, "anna")
    await shelf.restore(broker, one, "anna")
    assert await conversations.load(broker, one, "anna") == before
    assert await listed(broker) == [one] == await listed(broker, tag="t")
    assert await broker.redis.ttl(keys.conversation(one)) == -1 == await broker.redis.ttl(keys.messages(one))


async def test_after_a_minute_nothing_is_left(broker, monkeypatch):
    monkeypatch.setattr(shelf, "UNDO_SECONDS", 0.05)
    one = await talk(broker)
    await shelf.delete(broker, one, "anna")
    await eventually(lambda: _gone(broker, keys.messages(one)))
    with pytest.raises(NoSuchConversation):
        await shelf.restore(broker, one, "anna")
    assert await all_keys(broker, "request:", "frames:") == []


async def _gone(broker, key):
    return not await broker.redis.exists(key)


async def test_deleting_stops_the_answer_and_undo_has_what_it_had_said(broker):
    turn, request_id = await begin(broker)
    await shelf.delete(broker, turn.conversation, "anna")
    assert await broker.redis.hget(keys.request(request_id), "state") == b"ended"
    assert await claim(broker) == []
    assert await listed(broker) == []
    await shelf.restore(broker, turn.conversation, "anna")
    conversation, messages = await conversations.load(broker, turn.conversation, "anna")
    assert messages[request_id].reason == "cancelled"
    assert conversation.leaf == request_id


async def test_wherever_deleting_is_cut_off_no_answer_goes_on_in_what_is_gone(broker):
    found = set()
    for steps in range(40):  # of the event loop, within which it is deleted
        turn, request_id = await begin(broker, owner=f"anna-{steps}")
        deleting = asyncio.create_task(shelf.delete(broker, turn.conversation, f"anna-{steps}"))
        for _ in range(steps):
            await asyncio.sleep(0)
        await stop(deleting)
        ended = await broker.redis.hget(keys.request(request_id), "state") == b"ended"
        assert ended != await broker.redis.exists(keys.conversation(turn.conversation)), steps
        found.add(ended)
    assert found == {False, True}


async def test_an_answer_that_ends_after_a_deletion_brings_nothing_back(broker):
    turn, request_id = await begin(broker)
    (held,) = await claim(broker)
    await shelf.delete(broker, turn.conversation, "anna")
    late = Written(request_id, held.token, 0, Frame(request_id, 0, 1, "too late").encode(), last=True)
    assert await streams.append(broker, [late]) == [streams.ENDED]
    assert await listed(broker) == []
    assert not await broker.redis.exists(keys.conversation(turn.conversation))


async def test_pages_are_told(broker):
    one = await talk(broker)
    async with broker.listener.subscribe(keys.events_of("anna"), limit=64) as mailbox:
        await shelf.pin(broker, one, "anna", True)
        await shelf.delete(broker, one, "anna")
        await shelf.restore(broker, one, "anna")
        heard = 0
        while heard < 3:
            heard += len((await mailbox.take(2))[0])


@pytest.fixture
async def keeping(broker, config):
    """A broker that keeps conversations for one day."""
    async with Broker.open(replace(config, keep_days=1)) as opened:
        yield opened


async def lives(broker, key):
    """Days until a key expires; 0: never."""
    return round(max(0, await broker.redis.pttl(key)) / DAY_MS, 2)


async def test_what_is_not_changed_for_so_long_expires_and_a_pinned_one_never(keeping):
    one = await talk(keeping)
    assert [await lives(keeping, key(one)) for key in (keys.conversation, keys.messages)] == [1, 1]
    assert await lives(keeping, keys.conversations("anna")) == 2
    await shelf.pin(keeping, one, "anna", True)
    for key in await all_keys(keeping, "request:", "frames:"):
        assert await lives(keeping, key) == 0, key
    await shelf.delete(keeping, one, "anna")
    await shelf.restore(keeping, one, "anna")
    assert await lives(keeping, keys.messages(one)) == 0
    await shelf.pin(keeping, one, "anna", False)
    for key in await all_keys(keeping, "request:", "frames:"):
        assert await lives(keeping, key) in (1, 2), key


async def test_an_answer_gives_the_conversation_its_time_again(keeping):
    turn, request_id = await begin(keeping)
    for key in (keys.conversation(turn.conversation), keys.messages(turn.conversation)):
        await keeping.redis.pexpire(key, 3_600_000)
    await say(keeping, request_id, "done")
    assert await lives(keeping, keys.conversation(turn.conversation)) == 1
    assert await lives(keeping, keys.messages(turn.conversation)) == 1


async def test_a_conversation_from_before_expires_once_it_is_changed(broker, keeping):
    one = await talk(broker)
    assert await lives(broker, keys.messages(one)) == 0
    await shelf.rename(keeping, one, "anna", "new")
    assert await lives(broker, keys.messages(one)) == 1


async def test_another_setting_reaches_every_conversation(broker, keeping):
    now = 1000 * (await broker.redis.time())[0]
    old, young = await imported(broker, 5, owner="ben"), await imported(broker, now - DAY_MS // 2)
    pinned = await imported(broker, 7, owner="cleo")
    for one in (*old, *young, *pinned):
        await broker.redis.hdel(keys.conversation(one), "imported")
    await shelf.pin(broker, *pinned, "cleo", True)
    await shelf.retain(keeping)
    assert await lives(broker, keys.messages(*young)) == 0.5
    assert await lives(broker, keys.messages(*pinned)) == 0
    assert not await broker.redis.exists(keys.messages(*old), keys.conversation(*old))
    await shelf.retain(broker)
    assert await lives(broker, keys.messages(*young)) == 0
    assert await listed(broker) == young


async def test_an_imported_one_is_kept_from_its_import_on(keeping):
    (one,) = await imported(keeping, 5)
    assert await lives(keeping, keys.messages(one)) == 1
    await shelf.retain(keeping)
    assert await lives(keeping, keys.messages(one)) == 1


async def test_lists_never_show_what_has_expired_and_forget_it(broker):
    made = await imported(broker, *range(6))
    await shelf.pin(broker, made[0], "anna", True)
    await shelf.tag(broker, made[1], "anna", ["t"])
    await shelf.archive(broker, made[2], "anna", True)
    await broker.redis.delete(*(keys.conversation(one) for one in made[:5]))
    assert await listed(broker) == made[5:]
    assert await listed(broker, tag="t") == [] == await listed(broker, archived=True)
    await eventually(lambda: _forgotten(broker, set(made[:5])))


async def _forgotten(broker, gone):
    left = [await broker.redis.zrange(key("anna"), 0, -1) for key in (keys.conversations, keys.archived, keys.pinned)]
    return not {one.decode() for part in left for one in part} & gone and not await broker.redis.exists(
        keys.tagged("anna")
    )


@pytest.mark.timeout(30)
async def test_thousands_are_listed_quickly(broker):
    await imported(broker, *range(3000), tags=("t",))
    await registry.models(broker)
    async with asyncio.timeout(0.5):
        page = await shelf.listed(broker, "anna", "1500")
    async with asyncio.timeout(0.5):
        await shelf.listed(broker, "anna", tag="t")
    assert len(page.conversations) == shelf.PAGE
