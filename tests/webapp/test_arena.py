"""Rounds over a real websocket and HTTP: what is said of a blind one, votes, names, links, and what may not be."""

import asyncio
import re
from collections.abc import AsyncIterator
from itertools import pairwise

import aiohttp
import msgpack
import pytest

from broker import keys, votes
from broker.messages import pack
from helpers import eventually
from webapp.arena import ARENA, address_of
from webclient import REF, Contender, contender

NAMES = ("betrayer", "treacherous")


@pytest.fixture
async def workers(worker_in) -> AsyncIterator[None]:
    """Two models that repeat what was said."""
    async with worker_in(model=f"{NAMES[0]}=echo"), worker_in(model=f"{NAMES[1]}=echo"):
        yield


@pytest.fixture
async def anna(site, workers) -> AsyncIterator[Contender]:
    async with contender(site.make_url("/")) as one:
        yield one


async def test_nothing_on_the_wire_of_a_blind_round_betrays_a_side(site, workers, broker):
    """Every byte that comes to the page until the vote: frames, headers and bodies, and all ids in them."""
    wire: list[bytes] = []

    async def note(session, context, params) -> None:
        response = params.response
        wire.append(b"\n".join(b"%s: %s" % pair for pair in response.raw_headers))
        wire.append(await response.read())

    tracing = aiohttp.TraceConfig()
    tracing.on_request_end.append(note)
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(site.make_url("/"), cookie_jar=jar, trace_configs=[tracing]) as session:
        async with session.get("/arena") as response:
            token = re.search(r'data-token="(\w+)"', await response.text())[1]
        ws = await session.ws_connect("/ws?blind")
        maps: list[dict] = []

        async def hear(kind: str) -> dict:
            while not any(one["type"] == kind for one in maps):
                message = await ws.receive(8)
                wire.append(message.data)
                unpacker = msgpack.Unpacker()
                unpacker.feed(message.data)
                maps.extend(unpacker)
            return next(one for one in maps if one["type"] == kind)

        await ws.send_bytes(pack({"type": "battle", "ref": REF, "token": token, "text": "/echo 40 10ms"}))
        battle = (await hear("bout"))["battle"]
        async with session.get(f"/battles/{battle}") as response:
            assert response.status == 200
        await hear("bout-end")
        async with session.get(f"/battles/{battle}") as response:
            assert (await response.json())["models"] == ["", ""]
        ids = [
            one.decode()
            for name, one in (await broker.redis.hgetall(keys.battle(battle))).items()
            if name.startswith(b"run:")
        ]
        assert len(ids) == 2
        for secret in (*NAMES, *ids):
            assert not any(secret.encode() in one for one in wire)
        told = b"".join(one for one in wire if b"<!doctype" not in one)  # the page itself says other things, too
        for word in (b"usage", b"timings", b"tokens", b"running", b"waiting", b"epoch", b"reason", b"request_id"):
            assert word not in told
        side = {"type", "battle", "turn", "side", "seq", "text"}
        allowed = {"side": [side, side | {"end"}], "bout": [{"type", "ref", "battle", "turn"}], "bout-end": [{"type", "battle", "turn", "vote"}]}  # fmt: skip
        assert all(set(one) in allowed[one["type"]] for one in maps), maps
        for one in ("a", "b"):
            mine = [m for m in maps if m.get("side") == one]
            assert [m["seq"] for m in mine] == list(range(len(mine)))
            assert "".join(m["text"] for m in mine).split() == [str(i) for i in range(1, 41)]
        async with session.post(f"/battles/{battle}/vote", json={"token": token, "winner": "a"}) as response:
            assert sorted((await response.json())["models"]) == sorted(NAMES), "the wire does carry them once it may"
        await ws.close()


async def test_a_round_goes_from_question_to_vote(anna, broker):
    battle = await anna.round("first")
    bout = await anna.say("second", battle)
    assert bout == {"type": "bout", "ref": REF, "battle": battle, "turn": 1}
    texts, maps = await anna.hear()
    assert texts == {"a": "second", "b": "second"}
    assert maps[-1] == {"type": "bout-end", "battle": battle, "turn": 1, "vote": True}
    shown = await anna.get(battle)
    assert [turn["text"] for turn in shown["turns"]] == ["first", "second"]
    assert shown["turns"][1]["a"] == {"text": "second", "done": True}
    voted = await anna.post(f"{battle}/vote", winner="b")
    assert (voted["state"], voted["winner"], sorted(voted["models"])) == ("voted", "b", sorted(NAMES))
    assert (await anna.post(f"{battle}/vote", 409, winner="a"))["error"]["code"] == "round_over"
    assert (await anna.say("third", battle))["code"] == "round_over"
    (vote,) = [vote async for batch in votes.read(broker) for _, vote in batch]
    assert (vote.kind, vote.winner, vote.p, vote.turns) == ("blind", "b", 1.0, 2)
    assert {vote.a, vote.b} == set(NAMES)


async def test_a_vote_after_the_names_is_late_and_names_come_without_one(anna, broker):
    battle = await anna.round()
    assert sorted((await anna.post(f"{battle}/reveal"))["models"]) == sorted(NAMES)
    await anna.post(f"{battle}/vote", winner="tie")
    (vote,) = [vote async for batch in votes.read(broker) for _, vote in batch]
    assert vote.kind == "late"


async def test_nothing_is_chosen_in_a_blind_round_that_goes_on(anna):
    battle = await anna.round("first")
    refused = await anna.say("second", battle, settings={"system": "Say what you are called."})
    assert refused["code"] == "bad_request"
    await anna.page.send(type="battle-again", ref=REF, token=anna.token, battle=battle, settings={"seed": 1})
    assert (await anna.page.next_of("bout", "error"))["code"] == "bad_request"
    shown = await anna.get(battle)
    assert (len(shown["turns"]), shown["vote"]) == (1, True)


async def test_both_answer_again(anna):
    battle = await anna.round("once more")
    await anna.page.send(type="battle-again", ref=REF, token=anna.token, battle=battle)
    assert (await anna.page.next_of("bout"))["turn"] == 0
    texts, maps = await anna.hear()
    assert texts == {"a": "once more", "b": "once more"}
    assert maps[-1]["vote"]
    assert len((await anna.get(battle))["turns"]) == 1


async def test_stop_ends_both_alike_and_another_message_goes_on(anna):
    bout = await anna.say("/echo 3000 10ms")
    while (await anna.page.next_of("side"))["seq"] < 3:
        pass
    await anna.page.send(type="battle-stop", battle=bout["battle"])
    texts, maps = await anna.hear()
    assert not maps[-1]["vote"]
    shown = (await anna.get(bout["battle"]))["turns"][0]
    assert len(shown["a"]["text"]) == len(shown["b"]["text"]), "which one was ahead is not said"
    assert (await anna.post(f"{bout['battle']}/vote", 409, winner="a"))["error"]["code"] == "round_under_way"
    bout = await anna.say("on", bout["battle"])
    texts, maps = await anna.hear()
    assert texts == {"a": "on", "b": "on"}
    assert maps[-1]["vote"]


async def test_a_page_that_goes_ends_both_answers(anna, broker):
    bout = await anna.say("/echo 3000 20ms")
    await anna.page.next_of("side")
    await anna.page.ws.close()

    async def both() -> bool:
        turn = (await anna.get(bout["battle"]))["turns"][0]
        return bool(turn["a"] and turn["b"])

    await eventually(both)
    assert not (await anna.get(bout["battle"]))["vote"]


async def test_a_side_that_fails_makes_the_round_void_and_no_word_says_which(anna, monkeypatch, broker):
    monkeypatch.setenv("FLEETCHAT_ECHO_FAULTS", "1")
    bout = await anna.say("/echo 5 1ms fail")
    _, maps = await anna.hear()
    assert [one["type"] for one in maps if one["type"] != "side"] == ["void", "bout-end"]
    void = next(one for one in maps if one["type"] == "void")
    assert void["message"].startswith("One of the two answers has failed")
    assert not any(name in str(maps) for name in NAMES)
    assert not maps[-1]["vote"]
    shown = await anna.get(bout["battle"])
    assert (shown["state"], shown["models"]) == ("void", ["", ""])
    assert (await anna.say("on", bout["battle"]))["code"] == "round_over"
    assert (await anna.post(f"{bout['battle']}/vote", 409, winner="a"))["error"]["code"] == "round_over"


async def test_named_models_side_by_side_say_all_and_their_votes_are_apart(site, workers, broker):
    async with contender(site.make_url("/"), "/compare") as anna:
        bout = await anna.say("hello", kind="named", models=list(NAMES))
        assert tuple(bout["models"]) == NAMES
        texts, maps = await anna.hear()
        assert texts == {"a": "hello", "b": "hello"}
        end = next(one for one in maps if one.get("end"))
        assert end["usage"]["completion_tokens"] == 1
        assert (await anna.get(bout["battle"]))["models"] == list(NAMES)
        await anna.post(f"{bout['battle']}/vote", winner="bad")
        await anna.round("more", battle=bout["battle"])
        assert (await anna.get(bout["battle"]))["state"] == "open"
        (vote,) = [vote async for batch in votes.read(broker) for _, vote in batch]
        assert (vote.kind, vote.p, vote.a, vote.b) == ("named", 0.0, *NAMES)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"text": "hi", "models": list(NAMES)}, "bad_request"),
        ({"text": "hi", "settings": {"temperature": 0.1}}, "bad_request"),
        ({"text": "hi", "kind": "named", "models": [NAMES[0], NAMES[0]]}, "bad_request"),
        ({"text": "hi", "kind": "named", "models": [NAMES[0], "nobody"]}, "model_not_found"),
        ({"text": "  "}, "bad_request"),
        ({"text": "x" * 30_001}, "prompt_too_large"),
        ({"text": "hi", "kind": "named", "models": NAMES, "settings": {"system": "x" * 30_001}}, "prompt_too_large"),
        ({"text": "hi", "battle": "0" * 26}, "battle_not_found"),
        ({"text": "hi", "token": "0" * 64}, "forbidden"),
    ],
)
async def test_what_cannot_be_asked_is_refused_with_its_ref(anna, message, code):
    await anna.page.send(type="battle", ref=REF, **({"token": anna.token} | message))
    error = await anna.page.next_of("error")
    assert (error["code"], error["ref"]) == (code, REF)


async def test_a_script_without_the_token_gets_nothing(anna, site):
    battle = await anna.round()
    for token in ("", "0" * 64):
        for path in ("vote", "reveal", "share"):
            body = {"token": token} | ({"winner": "a"} if path == "vote" else {})
            assert (await anna.post(f"{battle}/{path}", 403, **body))["error"]["code"] == "forbidden"
    async with contender(site.make_url("/")) as eve:
        assert eve.token != anna.token
        async with eve.session.get(f"/battles/{battle}") as response:
            assert response.status == 404
        await eve.post(f"{battle}/vote", 404, winner="a")
        await eve.post(f"{battle}/vote", 403, winner="a", token=anna.token)
    assert (await anna.get(battle))["state"] == "open"
    for body in ({}, {"winner": 1}, {"winner": "a", "why": "x"}):
        await anna.post(f"{battle}/vote", 400, **body)


async def test_votes_are_limited_by_session_and_by_network(site, workers, anna):
    state = site.app[ARENA]
    limited = {"session": 1, "address": 2, "network": 2}
    state.rules = state.rules.model_copy(update={"votes": state.rules.votes.model_copy(update=limited)})
    one, two = await anna.round(), await anna.round()
    await anna.post(f"{one}/vote", winner="a")
    assert (await anna.post(f"{two}/vote", 429, winner="a"))["error"]["code"] == "votes_used"
    async with contender(site.make_url("/")) as bert, contender(site.make_url("/")) as eve:
        await bert.post(f"{await bert.round()}/vote", winner="a")
        await eve.post(f"{await eve.round()}/vote", 429, winner="a")


async def test_without_two_models_a_round_says_so_and_with_them_it_begins(site, worker_in):
    async with contender(site.make_url("/")) as anna:
        assert (await anna.say("hi"))["code"] == "two_models"
        async with anna.session.get("/arena") as page:
            assert "hero-few" in await page.text()
        async with worker_in(model="one=echo"):
            assert (await anna.say("hi"))["code"] == "two_models"
            async with worker_in(model="two=echo"):
                await anna.round("hi")
                async with anna.session.get("/arena") as page:
                    assert "hero-few" not in await page.text()


async def test_a_model_that_leaves_during_a_round_is_not_named(site, worker_in, broker):
    async with contender(site.make_url("/")) as anna, worker_in(model=f"{NAMES[0]}=echo"):
        async with worker_in(model=f"{NAMES[1]}=echo"):
            battle = await anna.round("first")
        await eventually(lambda: gone(broker, NAMES[1]))
        refused = await anna.say("second", battle)
        assert refused["code"] == "bout_refused"
        assert not any(name in str(refused) for name in NAMES)
        shown = await anna.get(battle)
        assert len(shown["turns"]) == 1
        assert shown["vote"], "what was said before can still be voted on"


async def gone(broker, name: str) -> bool:
    from broker import registry

    return all(m.state != "ready" for m in await registry.models(broker) if m.card.name == name)


async def test_a_link_shows_the_round_to_anybody_and_names_only_if_its_owner_knows_them(site, anna):
    battle = await anna.round("# Which *one*?")
    blind = await anna.post(f"{battle}/share", 201)
    assert blind["title"] == "Which *one*?"
    await anna.post(f"{battle}/vote", winner="a")
    named = await anna.post(f"{battle}/share", 201)
    async with aiohttp.ClientSession(site.make_url("/")) as nobody:
        for share, known in ((blind, False), (named, True)):
            async with nobody.get(f"/s/{share['share_id']}") as response:
                text = await response.text()
                assert response.status == 200
            assert text.count("Which *one*?") >= 3
            assert all((name in text) is known for name in NAMES)
    async with anna.session.get("/shares") as response:
        assert len((await response.json())["shares"]) == 2
    async with anna.session.delete(f"/shares/{blind['share_id']}") as response:
        assert response.status == 204
    async with anna.session.get(f"/s/{blind['share_id']}") as response:
        assert response.status == 404


async def test_deep_links_lead_where_fastchats_do(browser):
    for query, place in (("arena", "/arena"), ("compare", "/compare"), ("leaderboard", "/leaderboard")):
        async with browser.get(f"/?{query}", allow_redirects=False) as response:
            assert (response.status, response.headers["Location"]) == (302, place)
    async with browser.get("/?model=echo", allow_redirects=False) as response:
        assert response.status == 200


def test_an_address_is_what_the_outermost_proxy_has_seen():
    from aiohttp.test_utils import make_mocked_request

    request = make_mocked_request("POST", "/", headers={"X-Forwarded-For": "6.6.6.6, 1.2.3.4, 10.0.0.1"})
    request = request.clone(remote="10.0.0.2")
    assert [address_of(request, n) for n in range(5)] == ["10.0.0.2", "10.0.0.1", "1.2.3.4", "6.6.6.6", "10.0.0.2"]
    for written, address in [("1.2.3.4:5678", "1.2.3.4"), ("[2001:db8::1]:443", "2001:db8::1"), ("2001:db8::1",) * 2]:
        request = make_mocked_request("POST", "/", headers={"X-Forwarded-For": written})
        assert address_of(request, 1) == address


async def test_both_sides_are_shown_at_one_speed(anna):
    await anna.say("/echo 60 15ms")
    loop, shown = asyncio.get_running_loop(), {"a": [], "b": []}
    while True:
        one = await anna.page.next_of("side", "bout-end")
        if one["type"] == "bout-end":
            break
        shown[one["side"]].append((round(loop.time(), 2), len(one["text"])))
    assert [n for _, n in shown["a"]] == [n for _, n in shown["b"]]
    assert len(shown["a"]) > 5
    assert all(b >= a for (a, _), (b, _) in pairwise(shown["a"]))
