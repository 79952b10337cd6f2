"""What moderation lets into a round: over a real websocket, by a real jobs worker, with a server that has the endpoint."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from playwright.async_api import Page as Tab
from playwright.async_api import expect

from broker import keys
from broker.config import Config
from broker.connection import Broker
from broker.errors import AnswerRefused, AnswerUnchecked, TextRefused
from broker.messages import pack, unpack
from helpers import eventually
from tests.workers.engine import moderation_server
from tests.workers.engine.moderation_server import ModerationServer
from webapp.arena import ARENA
from webapp.languages import LANGUAGES
from webclient import REF, Contender, Page, contender
from workers.engine import remote_engine

pytestmark = pytest.mark.timeout(60)

NAMES = ("betrayer", "treacherous")
NAMED = {"kind": "named", "models": list(NAMES)}
BAD = "a very bad thing"


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ModerationServer]:
    """Flags what has "bad" in it; and a model, which says "fine" until told otherwise."""
    monkeypatch.setattr(remote_engine, "PAUSE_SECONDS", 0.01)
    async with moderation_server.running() as server:
        server.says = lambda text: "fine"
        yield server


@pytest.fixture
def config(config: Config, server: ModerationServer, tmp_path: Path) -> Config:
    file = tmp_path / "arena.toml"
    file.write_text(f'[moderation]\nurl = "{server.url}"\n')
    return replace(config, arena_file=file)


@pytest.fixture
async def workers(worker_in: Any, server: ModerationServer) -> AsyncIterator[None]:
    """One model that repeats what was said, one that says what the server says, and what checks it."""
    one, two = f"{NAMES[0]}=echo", f"{NAMES[1]}={server.url}"
    async with worker_in(model=one), worker_in(model=two), worker_in(role="jobs"):
        yield


@pytest.fixture
async def anna(site: TestServer, workers: None) -> AsyncIterator[Contender]:
    async with contender(site.make_url("/")) as one:
        yield one


def rule(site: TestServer, **changes: object) -> None:
    """Other rules for this web process."""
    state = site.app[ARENA]
    changed = state.rules.moderation.model_copy(update=changes)
    state.rules = state.rules.model_copy(update={"moderation": changed})


async def nothing_of(broker: Broker, *models: str) -> bool:
    """No round was begun, and none of these asked."""
    rounds = [key async for key in broker.redis.scan_iter(match="battle:*")]
    return not rounds and not await broker.redis.exists(*map(keys.counts, models))


async def test_a_round_of_harmless_texts_is_checked_as_a_whole_and_goes_on(
    anna: Contender, server: ModerationServer
) -> None:
    server.says = lambda text: "something else"
    bout = await anna.say("hello")
    texts, maps = await anna.hear()
    assert sorted(texts.values()) == ["hello", "something else"]
    assert sum("end" in one for one in maps) == 2
    assert maps[-1]["vote"]
    assert [sorted(body["input"]) for body in server.bodies] == [["hello"], ["hello", "something else"]]
    shown = await anna.get(bout["battle"])
    assert shown["turns"][0]["a"]["text"] == texts["a"]
    assert (await anna.post(f"{bout['battle']}/vote", winner="a"))["state"] == "voted"


async def test_a_bad_question_is_refused_and_nothing_is_asked_or_kept(anna: Contender, broker: Broker) -> None:
    refused = await anna.say(BAD)
    assert (refused["code"], refused["ref"]) == ("text_refused", REF)
    assert await nothing_of(broker, *NAMES)
    battle = await anna.round("hello")
    assert (await anna.say(BAD, battle))["code"] == "text_refused"
    shown = await anna.get(battle)
    assert (len(shown["turns"]), shown["vote"]) == (1, True), "what was said before can still be voted on"


async def test_a_bad_system_prompt_is_refused(site: TestServer, workers: None, broker: Broker) -> None:
    async with contender(site.make_url("/"), "/compare") as anna:
        refused = await anna.say("hello", settings={"system": BAD}, **NAMED)
        assert refused["code"] == "text_refused"
        assert await nothing_of(broker, *NAMES)
        battle = await anna.round("hello", **NAMED)
        again = {"ref": REF, "token": anna.token, "battle": battle, "settings": {"system": BAD}}
        await anna.page.send(type="battle-again", **again)
        assert (await anna.page.next_of("bout", "error"))["code"] == "text_refused"


@pytest.mark.parametrize("models", [NAMES, NAMES[::-1]])
async def test_one_side_alone_that_is_bad_ends_the_round_whichever_it_is(
    site: TestServer, workers: None, server: ModerationServer, broker: Broker, models: tuple[str, str]
) -> None:
    server.says = lambda text: BAD
    async with contender(site.make_url("/"), "/compare") as anna:
        bout = await anna.say("hello", kind="named", models=list(models))
        _, maps = await anna.hear()
        assert [one["type"] for one in maps if one["type"] != "side"] == ["void", "bout-end"]
        assert not any("end" in one for one in maps)
        assert next(one for one in maps if one["type"] == "void")["message"] == AnswerRefused.sentence
        shown = await anna.get(bout["battle"])
        assert (shown["state"], shown["why"], shown["vote"]) == ("void", AnswerRefused.sentence, False)
        assert shown["turns"] == [{"text": "hello", "a": None, "b": None}]
        await anna.post(f"{bout['battle']}/vote", 409, winner="a")
        assert (await anna.say("on", bout["battle"]))["code"] == "round_over"
        record = await broker.redis.hgetall(keys.battle(bout["battle"]))
        assert not any(BAD.encode() in value for value in record.values())


async def test_of_a_blind_round_nothing_says_which_side_it_was(anna: Contender, server: ModerationServer) -> None:
    server.says = lambda text: BAD
    bout = await anna.say("hello")
    texts, maps = await anna.hear()
    assert next(one for one in maps if one["type"] == "void")["message"] == AnswerRefused.sentence
    assert not any("end" in one for one in maps)
    assert not any(name in str(maps) for name in NAMES)
    assert len(texts["a"]) == len(texts["b"]), "neither goes on alone while the other is checked"
    shown = await anna.get(bout["battle"])
    assert (shown["models"], shown["turns"]) == (["", ""], [{"text": "hello", "a": None, "b": None}])


async def test_earlier_turns_stay_when_a_later_one_is_bad(anna: Contender, server: ModerationServer) -> None:
    battle = await anna.round("hello")
    server.says = lambda text: BAD
    await anna.round("more", battle=battle)
    shown = await anna.get(battle)
    assert shown["state"] == "void"
    assert {shown["turns"][0][side]["text"] for side in "ab"} == {"hello", "fine"}
    assert shown["turns"][1] == {"text": "more", "a": None, "b": None}


async def test_the_reasoning_is_checked_too(anna: Contender, server: ModerationServer) -> None:
    server.thinks = BAD
    await anna.say("hello")
    _, maps = await anna.hear()
    assert next(one for one in maps if one["type"] == "void")["message"] == AnswerRefused.sentence


async def test_a_check_of_a_question_that_fails_is_as_the_rules_say(
    site: TestServer, anna: Contender, server: ModerationServer, broker: Broker
) -> None:
    server.failures = [503] * 3
    assert (await anna.say("hello"))["code"] == "text_unchecked"
    assert await nothing_of(broker, *NAMES)
    rule(site, fails="open")
    server.failures = [503] * 3
    assert (await anna.say("hello"))["type"] == "bout"


async def test_a_check_of_answers_that_fails_is_as_the_rules_say(
    site: TestServer, anna: Contender, server: ModerationServer
) -> None:
    server.answer = lambda texts: moderation_server.as_openai(texts) if len(texts) < 2 else {}
    bout = await anna.say("hello")
    _, maps = await anna.hear()
    assert next(one for one in maps if one["type"] == "void")["message"] == AnswerUnchecked.sentence
    assert (await anna.get(bout["battle"]))["turns"] == [{"text": "hello", "a": None, "b": None}]
    rule(site, fails="open")
    await anna.say("hello")
    texts, maps = await anna.hear()
    assert maps[-1]["vote"]
    assert sorted(texts.values()) == ["fine", "hello"]


async def test_without_a_jobs_worker_nothing_is_asked_unless_it_fails_open(site: TestServer, worker_in: Any) -> None:
    async with worker_in(model="one=echo"), worker_in(model="two=echo"), contender(site.make_url("/")) as anna:
        assert (await anna.say("hello"))["code"] == "text_unchecked"
        rule(site, fails="open")
        await anna.round("hello")


async def test_answers_are_seen_while_they_come_and_have_no_end_before_the_check(
    anna: Contender, server: ModerationServer
) -> None:
    bout = await asked_until_the_check(anna, server)
    texts = {"a": "", "b": ""}
    while len("".join(texts.values())) < len("fine" + "hello"):
        one = await anna.page.next_of("side", "void", "bout-end")
        assert "end" not in one
        texts[one["side"]] += one["text"]
    assert sorted(texts.values()) == ["fine", "hello"]
    battle = bout["battle"]
    shown = await anna.get(battle)
    assert (shown["vote"], shown["turns"][0]) == (False, {"text": "hello", "a": None, "b": None})
    assert (await anna.post(f"{battle}/vote", 409, winner="a"))["error"]["code"] == "round_under_way"
    share = await anna.post(f"{battle}/share", 201)
    async with anna.session.get(f"/s/{share['share_id']}") as response:
        assert "fine" not in await response.text()
    server.open.set()
    assert (await anna.hear())[1][-1]["vote"]
    assert (await anna.get(battle))["turns"][0]["a"]["done"]


async def asked_until_the_check(anna: Contender, server: ModerationServer) -> dict[str, Any]:
    """A turn whose answers are being checked."""
    server.free = 1
    bout = await anna.say("hello")
    await eventually(lambda: len(server.bodies) == 2)
    return bout


async def test_with_before_nothing_is_shown_until_the_check(
    site: TestServer, anna: Contender, server: ModerationServer
) -> None:
    rule(site, before=True)
    await asked_until_the_check(anna, server)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):  # of text that is not held back the first comes within a twentieth of a second
            await anna.page.next_of("side", "bout-end")
    server.open.set()
    texts, maps = await anna.hear()
    assert sorted(texts.values()) == ["fine", "hello"]
    assert maps[-1]["vote"]


async def test_with_before_a_bad_answer_is_never_shown(
    site: TestServer, anna: Contender, server: ModerationServer
) -> None:
    rule(site, before=True)
    server.says = lambda text: BAD
    await anna.say("hello")
    _, maps = await anna.hear()
    assert [one["type"] for one in maps] == ["void", "bout-end"]


@pytest.mark.parametrize("before", [False, True])
async def test_what_was_stopped_is_checked_as_far_as_it_came(
    site: TestServer, anna: Contender, server: ModerationServer, broker: Broker, before: bool
) -> None:
    rule(site, before=before)
    bout = await anna.say("/echo 3000 10ms")
    await eventually(lambda: broker.redis.hexists(keys.battle(bout["battle"]), "run:b:0"))
    await anna.page.send(type="battle-stop", battle=bout["battle"])
    _, maps = await anna.hear()
    assert [one["side"] for one in maps if one.get("end")] == ["a", "b"]
    assert not maps[-1]["vote"]
    assert len(server.bodies) == 1 + bool(await said(broker, bout["battle"]))
    assert not (await broker.redis.hexists(keys.battle(bout["battle"]), "unchecked:0"))


async def said(broker: Broker, battle: str) -> str:
    record = await broker.redis.hmget(keys.battle(battle), "a:0", "b:0")
    return "".join(str(unpack(answer)["text"]) for answer in record)


async def test_the_check_is_noted_when_the_page_has_gone(anna: Contender, server: ModerationServer) -> None:
    bout = await asked_until_the_check(anna, server)
    await anna.page.ws.close()
    server.open.set()
    assert (await eventually(lambda: votable(anna, bout["battle"])))["turns"][0]["a"]["done"]


async def votable(anna: Contender, battle: str) -> dict[str, Any] | None:
    shown = await anna.get(battle)
    return shown if shown["vote"] else None


async def test_what_a_page_left_before_the_check_is_not_shown_and_can_be_asked_again(
    site: TestServer, anna: Contender, broker: Broker
) -> None:
    bout = await anna.say("/echo 3000 20ms")
    await anna.page.next_of("side")
    await anna.page.ws.close()
    stored = keys.battle(bout["battle"])
    await eventually(lambda: broker.redis.hexists(stored, "a:0"))
    await eventually(lambda: broker.redis.hexists(stored, "b:0"))
    assert (await anna.get(bout["battle"]))["turns"][0]["a"] is None
    async with anna.session.ws_connect("/ws?blind") as ws:
        message = {"type": "battle-again", "ref": REF, "token": anna.token, "battle": bout["battle"]}
        await ws.send_bytes(pack(message))
        assert (await Page(ws).next_of("bout", "error"))["type"] == "bout"


@pytest.mark.parametrize("language", ["en", "zh-Hant"])
async def test_on_the_page_a_bad_answer_goes_and_a_bad_question_comes_back(
    site: TestServer, workers: None, server: ModerationServer, tab: Tab, language: str
) -> None:
    said = {"en": str, "zh-Hant": translations().__getitem__}[language]
    await tab.set_extra_http_headers({"Accept-Language": language})
    await tab.set_viewport_size({"width": 390, "height": 844})
    await tab.goto(str(site.make_url("/arena")))
    prompt = tab.locator("#prompt")
    await prompt.fill(BAD)
    await tab.keyboard.press("Enter")
    await expect(tab.locator("#notice")).to_contain_text(said(TextRefused.sentence))
    await expect(prompt).to_have_value(BAD)
    await expect(tab.locator(".bout")).to_have_count(0)
    server.says = lambda text: BAD
    server.free = 2
    await prompt.fill("hello")
    await tab.keyboard.press("Enter")
    await expect(tab.locator("#turns")).to_contain_text(BAD)
    await expect(tab.locator("#votes button").first).to_have_attribute("aria-disabled", "true")
    server.open.set()
    await expect(tab.locator("#verdict-text")).to_have_text(said(AnswerRefused.sentence))
    await expect(tab.locator("#turns")).not_to_contain_text(BAD)
    await expect(tab.locator("#turns")).to_contain_text("hello")
    await expect(tab.locator(".side").first).to_contain_text(said("Not shown"))
    await tab.reload()
    await expect(tab.locator("#verdict-text")).to_have_text(said(AnswerRefused.sentence))
    await expect(tab.locator("#turns")).not_to_contain_text(BAD)


def translations() -> dict[str, str]:
    """What is said in the other language."""
    (other,) = (language for language in LANGUAGES if language.tag == "zh-Hant")
    return {str(message.id): str(message.string) for message in other.read()}
