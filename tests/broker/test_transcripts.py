import json

import pytest

from broker import conversations, keys, shelf, transcripts
from broker.errors import NoSuchConversation, StorageFull
from talk import begin, parse, say, talk

pytestmark = pytest.mark.usefixtures("card")


async def only(broker, owner, **more):
    (found,) = (await shelf.listed(broker, owner, **more)).conversations
    return await conversations.load(broker, found.conversation_id, owner)


async def test_what_was_exported_is_imported_with_all_its_branches(broker):
    one = await talk(broker, "hello 🙂", "General!")
    conversation, messages = await conversations.load(broker, one, "anna")
    question = messages[conversation.leaf].parent
    turn, request_id = await begin(broker, conversation=one, parent=question, text="or so")
    await say(broker, request_id, "I think.", "so", kind="reasoning")
    await shelf.tag(broker, one, "anna", ["t"])
    await shelf.archive(broker, one, "anna", True)
    before = await conversations.load(broker, one, "anna")
    path = conversations.path(before[1], before[0].leaf)
    text = transcripts.to_json(*before, path)
    file = json.loads(text)
    assert file["messages"][0] == {"role": "user", "content": "hello 🙂"}
    assert file["messages"][-1] == {"role": "assistant", "content": "so", "reasoning_content": "I think."}
    assert "anna" not in text

    (stored,) = await transcripts.store(broker, "ben", parse(text))
    after = await only(broker, "ben", archived=True)
    assert after[0].conversation_id == stored != one
    assert (after[0].title, after[0].created, after[0].updated, after[0].tags) == (before[0].title, before[0].created, before[0].updated, ("t",))  # fmt: skip
    assert len(after[1]) == len(before[1]) == 4
    assert [(m.role, m.parts, m.created, m.model, m.usage) for m in conversations.path(after[1], after[0].leaf)] == [
        (m.role, m.parts, m.created, m.model, m.usage) for m in path
    ]
    assert not set(after[1]) & set(before[1])
    with pytest.raises(NoSuchConversation):
        await conversations.load(broker, after[0].conversation_id, "anna")
    assert turn.conversation == one


async def test_an_import_can_be_gone_on_with(broker):
    await transcripts.store(broker, "anna", parse(json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]})))  # fmt: skip
    conversation, messages = await only(broker, "anna")
    assert [m.content for m in conversations.history(conversations.path(messages, conversation.leaf))] == ["hi", "ho"]
    _, request_id = await begin(broker, conversation=conversation.conversation_id, parent=conversation.leaf)
    await say(broker, request_id, "on")
    conversation, messages = await only(broker, "anna")
    assert len(conversations.path(messages, conversation.leaf)) == 4


async def test_the_system_prompt_of_a_file_is_kept(broker):
    await transcripts.store(broker, "anna", parse(json.dumps({"messages": [{"role": "system", "content": "Be 短."}, {"role": "user", "content": "hi"}]})))  # fmt: skip
    (found,) = (await shelf.listed(broker, "anna")).conversations
    stored = await broker.redis.hget(keys.conversation(found.conversation_id), "settings")
    assert json.loads(stored) == {"system": "Be 短."}


async def test_markdown_is_made_to_be_read(broker):
    one = await talk(broker, "Show **me**", "```py\nprint()\n```")
    conversation, messages = await conversations.load(broker, one, "anna")
    path = conversations.path(messages, conversation.leaf)
    text = transcripts.to_markdown(conversation, path)
    assert text.startswith("# Show me\n\n20")
    assert "\n\n## You\n\nShow **me**\n\n## m\n\n```py\nprint()\n```\n" in text
    file = {"kind": "file", "name": "a.md", "text": "```\nx\n```"}
    from dataclasses import replace

    text = transcripts.to_markdown(conversation, [replace(path[0], parts=(file, *path[0].parts))])
    assert "a.md\n````md\n```\nx\n```\n````\n\nShow **me**" in text


async def test_a_full_server_takes_no_file(broker):
    broker.nearly_full = True
    with pytest.raises(StorageFull):
        await transcripts.store(broker, "anna", parse('{"messages": [{"role": "user", "content": "x"}]}'))
