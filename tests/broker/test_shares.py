import pytest

from broker import conversations, keys, shares, shelf
from broker.errors import BadRequest, NoSuchConversation, NotFound
from broker.imports import Imported
from broker.messages import new_id
from broker.transcripts import store
from talk import begin, say, talk

pytestmark = pytest.mark.usefixtures("card")


async def test_a_link_shows_what_was_there_and_nothing_about_its_owner(broker):
    one = await talk(broker, "hello 🙂", "General!")
    share = await shares.create(broker, one, "anna")
    conversation, _ = await conversations.load(broker, one, "anna")
    _, request_id = await begin(broker, conversation=one, parent=conversation.leaf, text="more")
    await say(broker, request_id, "secret")
    snapshot = await shares.read(broker, share.share_id)
    assert (snapshot.title, len(snapshot.messages)) == ("hello 🙂", 2)
    assert [m["parts"][0]["text"] for m in snapshot.messages] == ["hello 🙂", "General!"]
    assert not {"owner", "message_id", "parent", "request_id", "usage"} & set(snapshot.messages[1])
    assert "anna" not in repr(snapshot)


async def test_the_shown_branch_is_shared_and_of_a_file_its_name_alone(broker):
    def message(role, parent, *parts):
        return {"role": role, "parent": parent, "created": 1, "parts": list(parts), "note": "private"}

    file = {"kind": "file", "text": "the contents", "name": "a.py"}
    messages = {
        "q": message("user", "", file, {"kind": "text", "text": "hi"}),
        "a": message("assistant", "q", {"kind": "text", "text": "first"}),
        "b": message("assistant", "q", {"kind": "text", "text": "second"}),
    }
    await store(broker, "anna", [Imported("t", 1, 1, "a", messages)])
    (found,) = (await shelf.listed(broker, "anna")).conversations
    _, stored = await conversations.load(broker, found.conversation_id, "anna")
    other = next(name for name, one in stored.items() if one.text == "second")
    share = await shares.create(broker, found.conversation_id, "anna", other)
    snapshot = await shares.read(broker, share.share_id)
    assert snapshot.messages[1]["parts"][0]["text"] == "second"
    assert snapshot.messages[0]["parts"][0] == {"kind": "file", "text": "", "name": "a.py"}
    assert "private" not in repr(snapshot)
    with pytest.raises(BadRequest):
        await shares.create(broker, found.conversation_id, "anna", new_id())


async def test_links_are_listed_and_revoked_by_their_owner_alone(broker):
    one = await talk(broker)
    first, second = [await shares.create(broker, one, "anna") for _ in range(2)]
    assert {s.share_id for s in await shares.listed(broker, "anna")} == {first.share_id, second.share_id}
    assert await shares.listed(broker, "ben") == []
    for share_id, owner in ((first.share_id, "ben"), ("nothing", "anna"), ("", "anna")):
        with pytest.raises(NotFound):
            await shares.revoke(broker, share_id, owner)
    await shares.revoke(broker, first.share_id, "anna")
    with pytest.raises(NotFound):
        await shares.read(broker, first.share_id)
    assert [s.share_id for s in await shares.listed(broker, "anna")] == [second.share_id]
    with pytest.raises(NoSuchConversation):
        await shares.create(broker, one, "ben")
    assert len(first.share_id) >= 22


async def test_a_deleted_conversation_takes_its_links_with_it_and_brings_them_back(broker):
    one = await talk(broker)
    share = await shares.create(broker, one, "anna")
    await shelf.delete(broker, one, "anna")
    with pytest.raises(NotFound):
        await shares.read(broker, share.share_id)
    assert await shares.listed(broker, "anna") == []
    assert 0 < await broker.redis.pttl(keys.share(share.share_id)) <= 60_000
    await shelf.restore(broker, one, "anna")
    assert await shares.listed(broker, "anna") == [share]
    assert (await shares.read(broker, share.share_id)).title == "hello there"
    assert await broker.redis.ttl(keys.share(share.share_id)) == -1


async def test_an_expired_link_leaves_the_list(broker):
    share = await shares.create(broker, await talk(broker), "anna")
    await broker.redis.delete(keys.share(share.share_id))
    assert await shares.listed(broker, "anna") == []
    assert not await broker.redis.exists(keys.shares("anna"))


async def test_an_owner_has_so_many_links(broker, monkeypatch):
    monkeypatch.setattr(shares, "MOST", 1)
    one = await talk(broker)
    await shares.create(broker, one, "anna")
    with pytest.raises(BadRequest, match="Revoke one"):
        await shares.create(broker, one, "anna")
