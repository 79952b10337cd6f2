import asyncio
from collections import Counter

import pytest

from broker import arena, keys, queues, registry, streams, votes
from broker.arena import Battle, Started, Voter
from broker.connection import Broker
from broker.errors import AnswerUnchecked, BadRequest, NoSuchBattle, PromptTooLarge, RoundOver, RoundUnderWay, VotesUsed
from broker.messages import ChatRequest, Frame, Message, ModelCard
from broker.queues import Bout
from broker.rules import Rules
from broker.streams import Written
from broker.votes import decompress
from helpers import eventually

RULES = Rules()
CHECKED = Rules.model_validate({"moderation": {"model": "judge", "fails": "open"}})
CLOSED = Rules.model_validate({"moderation": {"model": "judge", "fails": "closed"}})
VOTER = Voter.of(b"salt", "anna", "10.1.2.3")


@pytest.fixture(autouse=True)
async def models(broker: Broker) -> None:
    """`left` and `right`, served by a worker that the tests play."""
    cards = [ModelCard(name, state="ready", context=100) for name in ("left", "right")]
    await registry.beat(broker, "w", "ready", {"models": "left right", "slots": 8}, cards)


async def enqueue(broker: Broker, started: Started, owner: str = "anna") -> None:
    """Both requests of a turn."""
    for side, model, request_id in zip(arena.SIDES, ("left", "right"), started.requests, strict=True):
        request = ChatRequest(model, (Message("user", "hi"),), request_id=request_id, owner=owner, keep=True)
        await queues.enqueue(broker, request, Bout(started.battle_id, side, started.turn))


async def write(broker: Broker, request_id: str, text: str = "fine", reason: str = "stop", **end: object) -> None:
    """One answer, by the worker that the tests play."""
    model = (await broker.redis.hget(keys.request(request_id), "model")).decode()
    claims = await queues.claim(broker, "w", request_id, 8, [model], [])
    (held,) = [claim for claim in claims if claim.request_id == request_id]
    frame = Frame(request_id, 0, held.epoch, text, end={"reason": reason, **end})
    await streams.append(broker, [Written(request_id, held.token, 0, frame.encode(), last=True)])


async def turn(broker: Broker, text: str = "hi", rules: Rules = RULES, **more: object) -> Started:
    """A turn with both answers."""
    more = {"models": ("left", "right"), "probability": 0.25} | more if "battle_id" not in more else more
    started = await arena.begin(broker, rules, "anna", text, **more)
    await enqueue(broker, started)
    for request_id in started.requests:
        await write(broker, request_id)
    return started


async def cast(
    broker: Broker, started: Started, winner: str = "a", voter: Voter = VOTER, rules: Rules = RULES
) -> Battle:
    return await arena.vote(broker, rules, started.battle_id, "anna", winner, voter)


async def all_votes(broker: Broker) -> list[votes.Vote]:
    return [vote async for batch in votes.read(broker) for _, vote in batch]


async def test_a_round_is_answered_voted_on_and_only_then_has_names(broker):
    started = await turn(broker, "first")
    await turn(broker, "second", battle_id=started.battle_id)
    battle = await arena.load(broker, started.battle_id, "anna")
    assert battle.votable
    assert [t.text for t in battle.turns] == ["first", "second"]
    assert "left" not in str(battle.shown())
    assert battle.history("a", 1) == (Message("user", "first"), Message("assistant", "fine"))
    after = await cast(broker, started, "b")
    assert (after.state, after.winner, after.names) == ("voted", "b", ("left", "right"))
    (vote,) = await all_votes(broker)
    assert (vote.battle, vote.kind, vote.winner, vote.a, vote.b) == (started.battle_id, "blind", "b", "left", "right")
    assert (vote.p, vote.turns, vote.voter) == (0.25, 2, VOTER.voter)
    (said,) = await votes.said(broker, [started.battle_id])
    assert said == {"turns": [{"text": t, "a": "fine", "b": "fine"} for t in ("first", "second")]}


async def test_the_same_vote_raced_a_hundred_times_counts_once(broker):
    started = await turn(broker)
    casts = [cast(broker, started, "ab"[i % 2]) for i in range(100)]
    outcomes = Counter(type(one) for one in await asyncio.gather(*casts, return_exceptions=True))
    assert outcomes == {Battle: 1, RoundOver: 99}
    assert len(await all_votes(broker)) == 1


async def test_a_vote_after_the_names_is_kept_apart(broker):
    started = await turn(broker)
    shown = await arena.reveal(broker, started.battle_id, "anna")
    assert shown.names == ("left", "right")
    await cast(broker, started)
    assert [vote.kind for vote in await all_votes(broker)] == ["late"]
    with pytest.raises(RoundOver):
        await arena.begin(broker, RULES, "anna", "more", battle_id=started.battle_id)


async def test_a_named_battle_goes_on_after_its_vote(broker):
    started = await turn(broker, kind="named", models=("left", "right"))
    assert (await arena.load(broker, started.battle_id, "anna")).names == ("left", "right")
    await cast(broker, started, "tie")
    await turn(broker, "more", battle_id=started.battle_id)
    await cast(broker, started, "bad")
    assert [(v.kind, v.winner, v.turns) for v in await all_votes(broker)] == [("named", "tie", 1), ("named", "bad", 2)]
    said = await votes.said(broker, [vote.battle for vote in await all_votes(broker)])
    assert [len(one["turns"]) for one in said] == [1, 2], "each vote has the conversation that it is about"


async def test_a_turn_that_was_not_accepted_opens_no_vote_again(broker):
    started = await turn(broker, kind="named")
    await cast(broker, started)
    more = await arena.begin(broker, RULES, "anna", "more", battle_id=started.battle_id)
    await arena.withdraw(broker, more, "anna")
    with pytest.raises(RoundOver):
        await cast(broker, started)


async def test_there_is_no_vote_before_both_answers_are_finished(broker):
    started = await arena.begin(broker, RULES, "anna", "hi", models=("left", "right"))
    with pytest.raises(RoundUnderWay):
        await cast(broker, started)
    await enqueue(broker, started)
    await write(broker, started.requests[0])
    for act in (
        cast(broker, started),
        arena.reveal(broker, started.battle_id, "anna"),
        arena.again(broker, RULES, "anna", started.battle_id),
    ):
        with pytest.raises(RoundUnderWay):
            await act
    await write(broker, started.requests[1], "half", "cancelled")
    with pytest.raises(RoundUnderWay):
        await cast(broker, started)
    redone = await arena.again(broker, RULES, "anna", started.battle_id)
    assert redone.turn == 0
    await enqueue(broker, redone)
    for request_id in redone.requests:
        await write(broker, request_id, "better")
    await cast(broker, started)
    (said,) = await votes.said(broker, [started.battle_id])
    assert said["turns"] == [{"text": "hi", "a": "better", "b": "better"}]


async def test_a_side_that_fails_makes_the_round_void(broker):
    started = await arena.begin(broker, RULES, "anna", "hi", models=("left", "right"))
    await enqueue(broker, started)
    error = {"code": "engine_failed", "message": "left has failed", "status": 500}
    await write(broker, started.requests[0], "", "error", error=error)
    await write(broker, started.requests[1])
    battle = await arena.load(broker, started.battle_id, "anna")
    assert battle.state == "void"
    assert "left" not in str(battle.shown())
    with pytest.raises(RoundOver):
        await cast(broker, started)
    assert await all_votes(broker) == []


async def test_which_side_had_ended_when_both_were_stopped_is_not_said(broker):
    started = await arena.begin(broker, RULES, "anna", "hi", models=("left", "right"))
    await enqueue(broker, started)
    await write(broker, started.requests[0], "all of it")
    await queues.cancel(broker, started.requests[1], "anna")
    (shown,) = (await arena.load(broker, started.battle_id, "anna")).shown()["turns"]
    assert shown["a"] == shown["b"] == {"text": "", "done": False}


async def test_a_turn_that_was_not_accepted_leaves_no_trace(broker):
    started = await turn(broker)
    second = await arena.begin(broker, RULES, "anna", "second", battle_id=started.battle_id)
    await arena.withdraw(broker, second, "anna")
    battle = await arena.load(broker, started.battle_id, "anna")
    assert [t.text for t in battle.turns] == ["hi"]
    redone = await arena.again(broker, RULES, "anna", started.battle_id)
    await arena.withdraw(broker, redone, "anna")
    after = await arena.load(broker, started.battle_id, "anna")
    assert (after.turns[0].a.text, after.turns[0].b.text) == ("fine", "fine")
    assert after.votable


async def test_answers_are_neither_shown_nor_voted_on_before_they_are_approved(broker):
    started = await turn(broker, rules=CHECKED)
    battle = await arena.load(broker, started.battle_id, "anna")
    assert not battle.votable
    assert battle.shown()["turns"] == [{"text": "hi", "a": None, "b": None}]
    assert "fine" not in str(battle.snapshot())
    with pytest.raises(RoundUnderWay):
        await cast(broker, started)
    with pytest.raises(NoSuchBattle):
        await arena.approve(broker, CHECKED, started, "eve")
    assert await arena.approve(broker, CHECKED, started, "anna") is None
    battle = await arena.load(broker, started.battle_id, "anna")
    assert battle.shown()["turns"][0]["b"] == {"text": "fine", "done": True}
    assert (await cast(broker, started)).state == "voted"


async def test_a_vote_that_was_written_before_the_check_is_written_anew(broker):
    started = await turn(broker, rules=CHECKED)
    before = await arena.load(broker, started.battle_id, "anna")
    await arena.approve(broker, CHECKED, started, "anna")
    written = [started.battle_id, "anna", "a", before.revision, b"without the answers", 0]
    assert await broker.scripts.settle(args=written) == [-5]


async def test_answers_that_are_not_approved_are_forgotten_and_their_round_is_void(broker):
    first = await turn(broker, rules=CHECKED)
    await arena.approve(broker, CHECKED, first, "anna")
    second = await turn(broker, "more", CLOSED, battle_id=first.battle_id)
    assert isinstance(await arena.approve(broker, CLOSED, second, "anna"), AnswerUnchecked)
    battle = await arena.load(broker, first.battle_id, "anna")
    assert (battle.state, battle.why) == ("void", AnswerUnchecked.sentence)
    assert [(t.a and t.a.text, t.b and t.b.text) for t in battle.turns] == [("fine", "fine"), (None, None)]
    with pytest.raises(RoundOver):
        await cast(broker, second)


async def test_what_was_never_checked_is_in_no_prompt_and_no_vote(broker):
    first = await turn(broker, rules=CHECKED)
    second = await turn(broker, "more", CHECKED, battle_id=first.battle_id)
    battle = await arena.load(broker, first.battle_id, "anna")
    assert battle.history("a", 1) == ()
    await arena.approve(broker, CHECKED, second, "anna")
    await cast(broker, second)
    (said,) = await votes.said(broker, [first.battle_id])
    assert said["turns"] == [{"text": "hi"}, {"text": "more", "a": "fine", "b": "fine"}]


async def test_a_check_says_nothing_of_answers_that_came_after_it(broker):
    started = await turn(broker, rules=CHECKED)
    redone = await arena.again(broker, CHECKED, "anna", started.battle_id)
    await arena.approve(broker, CLOSED, started, "anna")
    await enqueue(broker, redone)
    for request_id in redone.requests:
        await write(broker, request_id, "better")
    battle = await arena.load(broker, started.battle_id, "anna")
    assert (battle.state, battle.turns[0].unchecked) == ("open", True)
    assert await arena.approve(broker, CHECKED, redone, "anna") is None
    assert (await arena.load(broker, started.battle_id, "anna")).votable


@pytest.mark.parametrize("approved", [True, False])
async def test_only_approved_answers_come_back_when_others_were_not_accepted(broker, approved):
    started = await turn(broker, rules=CHECKED)
    if approved:
        await arena.approve(broker, CHECKED, started, "anna")
    redone = await arena.again(broker, CHECKED, "anna", started.battle_id)
    await arena.withdraw(broker, redone, "anna")
    battle = await arena.load(broker, started.battle_id, "anna")
    assert battle.votable is approved
    assert ("fine" in str(battle.shown())) is approved


async def test_a_request_that_no_turn_expects_is_refused(broker):
    started = await arena.begin(broker, RULES, "anna", "hi", models=("left", "right"))
    with pytest.raises(NoSuchBattle):
        await queues.enqueue(
            broker, ChatRequest("left", (Message("user", "hi"),), owner="anna"), Bout(started.battle_id, "a", 0)
        )


async def test_a_round_is_its_owners_alone(broker):
    started = await turn(broker)
    for act in (
        arena.load(broker, started.battle_id, "eve"),
        arena.vote(broker, RULES, started.battle_id, "eve", "a", VOTER),
        arena.reveal(broker, started.battle_id, "eve"),
        arena.begin(broker, RULES, "eve", "hi", battle_id=started.battle_id),
        arena.again(broker, RULES, "eve", started.battle_id),
        arena.load(broker, started.battle_id, ""),
        arena.begin(broker, RULES, "anna", "hi", battle_id="0" * 26),
    ):
        with pytest.raises(NoSuchBattle):
            await act
    await arena.void(broker, started.battle_id, "eve", "mine")
    assert (await arena.load(broker, started.battle_id, "anna")).state == "open"


async def test_limits_of_messages_turns_and_winners(broker):
    short = Rules.model_validate({"battle": {"turns": 1, "characters": 3}})
    with pytest.raises(BadRequest):
        await arena.begin(broker, short, "anna", "  ", models=("left", "right"))
    with pytest.raises(PromptTooLarge):
        await arena.begin(broker, short, "anna", "four", models=("left", "right"))
    started = await turn(broker)
    with pytest.raises(RoundOver, match="1 turns"):
        await arena.begin(broker, short, "anna", "hi", battle_id=started.battle_id)
    with pytest.raises(BadRequest):
        await cast(broker, started, "c")


@pytest.mark.parametrize("limit", ["session", "address", "network"])
async def test_votes_of_a_day_are_limited(broker, limit):
    rules = Rules.model_validate({"votes": {limit: 2}})
    others = {  # who share nothing but what is limited
        "session": ("anna", "9.9.9.9"),
        "address": ("ben", "10.1.2.3"),
        "network": ("ben", "10.1.2.99"),
    }
    voters = [VOTER, Voter.of(b"salt", *others[limit])]
    for voter in voters:
        await cast(broker, await turn(broker), voter=voter, rules=rules)
    last = await turn(broker)
    with pytest.raises(VotesUsed) as refused:
        await cast(broker, last, voter=voters[1], rules=rules)
    assert 86_000 < refused.value.retry_after <= 86_400
    assert len(await all_votes(broker)) == 2
    await cast(broker, last, voter=Voter.of(b"salt", "chris", "99.0.0.1"), rules=rules)


def test_nobody_is_found_by_a_voters_hashes_and_networks_are_wide():
    assert Voter.of(b"salt", "anna", "10.1.2.3") == VOTER
    assert Voter.of(b"other", "anna", "10.1.2.3") != VOTER
    assert Voter.of(b"salt", "x", "10.1.2.200").network == VOTER.network
    assert Voter.of(b"salt", "x", "::ffff:10.1.2.9").network == VOTER.network
    assert Voter.of(b"salt", "x", "2001:db8:1::1").network == Voter.of(b"salt", "x", "2001:db8:1:ffff::1").network
    assert Voter.of(b"salt", "x", "unix").network != VOTER.network


async def test_an_answer_that_is_left_ends_and_can_be_asked_again(broker):
    """A battle is not kept: with its reader gone the sweep ends it, and the round lives."""
    started = await arena.begin(broker, RULES, "anna", "hi", models=("left", "right"))
    await enqueue(broker, started)
    for request_id in started.requests:
        await queues.cancel(broker, request_id, "anna", "abandoned")
    battle = await arena.load(broker, started.battle_id, "anna")
    assert (battle.state, battle.turns[0].a.reason) == ("open", "abandoned")
    assert (await arena.again(broker, RULES, "anna", started.battle_id)).turn == 0


async def test_a_round_is_forgotten_after_a_day_and_a_vote_never(broker):
    started = await turn(broker)
    ttl = await broker.redis.pttl(keys.battle(started.battle_id))
    assert 86_000_000 < ttl <= 86_400_000
    await cast(broker, started)
    assert await broker.redis.ttl(keys.VOTES) == await broker.redis.ttl(keys.VOTED) == -1
    assert await eventually(lambda: broker.redis.exists(keys.voting(VOTER.voter)))


def test_what_is_compressed_comes_back():
    assert decompress(votes.compress({"turns": ["文" * 1000]})) == {"turns": ["文" * 1000]}
    with pytest.raises(ValueError, match="compressed"):
        decompress(b"nothing of the kind")
