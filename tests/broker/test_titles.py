import asyncio

import pytest

from broker import conversations, keys, queues, registry, shelf, titles
from broker.errors import FleetError
from broker.messages import ChatRequest, ModelCard
from helpers import eventually
from talk import begin, say, talk

pytestmark = pytest.mark.usefixtures("card")


@pytest.mark.parametrize(
    ("said", "title"),
    [
        ("A trip to Rome", "A trip to Rome"),
        ('\n "A trip to Rome."\nThis title says it all.', "A trip to Rome"),
        ("Title: **A trip**", "A trip"),
        ("標題：《羅馬之旅》。", "羅馬之旅"),
        ("“Ünïcode 🙂”", "Ünïcode 🙂"),
        ("x" * 80, "x" * 60 + "…"),
        ("word " * 30, ""),
        ("", ""),
        ("<think>", ""),
        ("...", ""),
        ("🙂", ""),
    ],
)
def test_a_title_is_one_short_line(said, title):
    assert titles.clean(said) == title


async def title_of(broker, one):
    return (await conversations.load(broker, one, "anna"))[0].title


async def asked(broker):
    """The request for a title, once it waits."""
    return (await eventually(lambda: broker.redis.zrange(keys.queue("m"), 0, -1)))[0].decode()


async def test_the_model_is_asked_behind_everybody_else_and_without_a_share(broker):
    one = await talk(broker, "Where is Rome?", "In Italy.")
    suggested = asyncio.create_task(titles.suggest(broker, one, "anna", "m"))
    request_id = await asked(broker)
    request = ChatRequest.decode(await broker.redis.get(keys.prompt(request_id)))
    assert [m.role for m in request.messages] == ["user", "assistant", "user"]
    assert (request.owner, request.keep) == ("", False)
    _, later = await begin(broker, "ben")
    assert await broker.redis.zrank(keys.queue("m"), later) == 0
    await queues.cancel(broker, later, "ben")
    await say(broker, request_id, "I think", '"Rome', ' in Italy"', kind="reasoning")
    assert await suggested == "Rome in Italy" == await title_of(broker, one)
    assert await titles.suggest(broker, one, "anna", "m") == "", "it has one"


async def test_a_chinese_conversation_is_asked_in_chinese(broker):
    one = await talk(broker, "羅馬在哪裡？", "在義大利。")
    suggested = asyncio.create_task(titles.suggest(broker, one, "anna", "m"))
    request_id = await asked(broker)
    request = ChatRequest.decode(await broker.redis.get(keys.prompt(request_id)))
    assert request.messages[-1].content == titles.ASKED_IN_CHINESE
    await say(broker, request_id, "thoughts and nothing else", "", kind="reasoning")
    assert await suggested == ""
    assert await title_of(broker, one) == "羅馬在哪裡？"


async def test_a_title_that_the_user_writes_meanwhile_stays(broker):
    one = await talk(broker)
    suggested = asyncio.create_task(titles.suggest(broker, one, "anna", "m"))
    request_id = await asked(broker)
    await shelf.rename(broker, one, "anna", "Mine")
    await say(broker, request_id, "Better")
    assert await suggested == ""
    assert await title_of(broker, one) == "Mine"


async def test_nothing_happens_when_it_fails(broker):
    one = await talk(broker)
    suggested = asyncio.create_task(titles.suggest(broker, one, "anna", "m"))
    await queues.cancel(broker, await asked(broker), "")
    assert await suggested == ""
    await shelf.delete(broker, one, "anna")
    with pytest.raises(FleetError):
        await titles.suggest(broker, one, "anna", "m")


async def test_models_in_the_box_and_empty_answers_are_not_asked(broker):
    turn, request_id = await begin(broker)
    await queues.cancel(broker, request_id, "anna")
    assert await titles.suggest(broker, turn.conversation, "anna", "m") == ""
    one = await talk(broker)
    await registry.beat(broker, "w", "ready", {"models": "m", "slots": 4}, [ModelCard("m", state="ready", rank=2)])
    assert await titles.suggest(broker, one, "anna", "m") == ""
    assert await broker.redis.zcard(keys.queue("m")) == 0
