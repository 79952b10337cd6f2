import json
import random
from typing import Any

import pytest

import battles
from broker import voteforms
from broker.voteforms import ARENA_RANK, CLEAN, FASTCHAT, FORMS, OURS, Found, NotOne, Source, Unusable
from broker.votes import Vote

SOURCE = Source(b"salt", lambda: "file:7")
SAID = {"turns": [{"text": "Write a haiku, please, about rain", "a": "I am Vicuna.", "b": "**Rain**"}]}
VOTE = Vote(
    "0123456789abcdef", "blind", "bad", "left", "right", 0.25, 1, "a" * 18, 1_700_000_000_123, ("creative", "en")
)


def read(record: dict[str, Any]) -> Found:
    return voteforms.read(record, SOURCE)


def written(form: str, found: Found) -> dict[str, Any]:
    record = voteforms.write(form, found.vote, found.said)
    assert record is not None
    return json.loads(json.dumps(record))


def test_fastchats_records_come_back_as_they_were_but_for_the_address():
    for number in range(50):
        record = battles.vote(number, unknown={"": 3, "deep": [{"": ["x"]}, None, 1.5]}, more="x" * 30)
        found = read(record)
        assert written(FASTCHAT, found) == record | {"ip": found.vote.voter}
        assert found.vote.voter != record["ip"]
        assert record["ip"] not in json.dumps([found.said, found.vote.encode()])


def test_what_fastchat_says_of_a_vote():
    a, b = battles.MODELS[:2]
    states = [
        battles.state(a, "c1", [("q1", "x1"), ("q2", "x2")]),
        battles.state(b, "c2", [("q1", "y1"), ("q2", "y2")]),
    ]
    record = {"tstamp": 1680000000.1234, "type": "rightvote", "models": ["", ""], "states": states, "ip": "192.0.2.1"}
    found = read(record)
    vote = found.vote
    assert (vote.kind, vote.winner, vote.a, vote.b, vote.turns, vote.at) == ("blind", "b", a, b, 2, 1_680_000_000_123)
    assert found.said["turns"] == [{"text": "q1", "a": "x1", "b": "y1"}, {"text": "q2", "a": "x2", "b": "y2"}]
    assert "multi-turn" in vote.categories
    for labels, kind in (
        (["Model A", "Model B"], "blind"),
        ([a, b], "named"),
        ([f"### Model A: {a}", f"### Model B: {b}"], "late"),
    ):
        again = read(record | {"models": labels}).vote
        assert (again.kind, again.a, again.b) == (kind, a, b)
    assert [read(record | {"type": kind}).vote.winner for kind in battles.TYPES] == ["a", "b", "tie", "bad"]


def test_examples_before_the_conversation_and_pictures_are_no_part_of_it():
    states = [
        battles.state("x", "c", [("few", "shot"), (["look", ["md5"]], "a cat")], offset=2),
        battles.state("y", "d", [(["look", ["md5"]], "a dog")]),
    ]
    record = battles.vote(1, states=states, models=["", ""])
    found = read(record)
    assert found.said["turns"] == [{"text": "look", "a": "a cat", "b": "a dog"}]
    assert written(FASTCHAT, found)["states"] == states


def test_the_categories_style_and_leak_of_an_imported_vote_are_looked_for():
    states = [
        battles.state("x", "c", [("Write a Python function", "# Head\n\n- I am Vicuna, trained by LMSYS.\n- **so**")]),
        battles.state("y", "d", [("Write a Python function", "no")]),
    ]
    vote = read(battles.vote(1, states=states, models=["", ""])).vote
    assert "coding" in vote.categories
    assert vote.style_a[1:] == (1, 2, 1)
    assert vote.leak


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"states": []}, "two objects"),
        ({"tstamp": "yesterday"}, "no time"),
        ({"tstamp": -5}, "no time"),
        ({"tstamp": 1e300}, "a number of seconds"),
        ({"models": ["", "koala"]}, "only one"),
        ({"models": ["gpt-4", "koala"]}, "stands over what"),
        ({"models": "both"}, "two texts"),
        ({"states": [battles.state("x", "c", []), battles.state("y", "d", [])]}, "side A: there is no answer"),
        ({"states": [battles.state("x", "c", [("q", None)]), battles.state("y", "d", [("q", "a")])]}, "never written"),
        ({"states": [battles.state("x", "c", [("q", "a")]), battles.state("y", "d", [("q", "a▌")])]}, "side B: an answer is not finished"),
        (
            {"states": [battles.state("x", "c", [("q", "a")]), battles.state("y", "d", [("q", "**NETWORK ERROR DUE TO HIGH TRAFFIC.")])]},
            "error message",
        ),
        ({"states": [battles.state("x", "c", [("q", "a")] * 2), battles.state("y", "d", [("q", "a")])]}, "2 turns"),
        ({"states": [battles.state("x", "c", [("q", "a")]), battles.state("x", "d", [("q", "a")])], "models": ["", ""]}, "both sides"),
        ({"states": [battles.state(None, "c", [("q", "a")]), battles.state("x", "d", [("q", "a")])]}, "model's name"),
        ({"more": float("inf")}, "a number that JSON does not know"),
    ],
)  # fmt: skip
def test_what_is_no_fair_vote_is_refused_with_a_reason(changes, why):
    with pytest.raises(Unusable, match=why):
        read(battles.vote(0, models=["", ""]) | changes)


def test_chats_ratings_and_shares_are_no_votes():
    for record in (battles.chat(1), {"type": "upvote", "state": {}}, {"type": "share"}, {"type": ["leftvote"]}):
        with pytest.raises(NotOne):
            read(record)


@pytest.mark.parametrize("kind", ["blind", "named", "late"])
@pytest.mark.parametrize("form", FORMS)
def test_our_votes_come_back_from_every_form(form, kind):
    from dataclasses import replace

    for winner in ("a", "b", "tie", "bad"):
        vote = replace(VOTE, kind=kind, winner=winner)
        found = read(written(form, Found(vote, SAID)))
        same = ("battle", "kind", "winner", "a", "b", "p", "turns", "voter", "at")
        assert [getattr(found.vote, name) for name in same] == [getattr(vote, name) for name in same]
        if form == OURS:
            assert found == Found(vote, SAID)
        if form != ARENA_RANK:
            assert found.said["turns"] == SAID["turns"]


@pytest.mark.parametrize("form", [OURS, CLEAN, ARENA_RANK])
def test_a_vote_whose_conversation_is_elsewhere_keeps_what_is_known(form):
    found = read(written(form, Found(VOTE, None)))
    assert found.vote.battle == VOTE.battle
    assert "en" in found.vote.categories
    assert voteforms.write(FASTCHAT, VOTE, None) is None


def test_fastchats_cleaned_battles():
    record = {
        "question_id": "58210e39b3fd4441a2bd4a518bb44c2d",
        "model_a": "chatglm-6b",
        "model_b": "koala-13b",
        "winner": "tie (bothbad)",
        "judge": "arena_user_203.0.113.9",
        "conversation_a": [{"role": "user", "content": "What is the sum of 2 + 2?", "num_tokens": 9}, {"role": "assistant", "content": "4", "num_tokens": 1}],
        "conversation_b": [{"role": "user", "content": "What is the sum of 2 + 2?", "num_tokens": 9}, {"role": "assistant", "content": "5", "num_tokens": 1}],
        "turn": 1,
        "anony": False,
        "language": "English",
        "tstamp": 1682351591.1322,
        "toxic_chat_tag": {"t5": {"flagged": False}},
    }  # fmt: skip
    found = read(record)
    assert (found.vote.kind, found.vote.winner, found.vote.at) == ("named", "bad", 1_682_351_591_132)
    assert "math" in found.vote.categories
    assert written(CLEAN, found) == record | {"judge": f"arena_user_{found.vote.voter}"}
    simple = {k: v for k, v in record.items() if not k.startswith("conversation")} | {"anony": True, "turn": 3}
    assert read(simple).said == {"turns": [], "form": CLEAN, "record": found_json(read(simple))}
    assert voteforms.write(FASTCHAT, read(simple).vote, read(simple).said) is None
    vote = read(simple).vote
    assert (vote.kind, vote.turns, vote.categories, vote.battle) == (
        "blind",
        3,
        ("en", "multi-turn"),
        found.vote.battle,
    )


def found_json(found: Found) -> str:
    return json.dumps(written(CLEAN, found), separators=(",", ":"))


def test_a_vote_is_the_same_one_in_fastchats_log_and_among_its_cleaned_battles():
    log = battles.vote(3, models=["", ""])
    a, b = (state["model_name"] for state in log["states"])
    winner = {"leftvote": "model_a", "rightvote": "model_b", "tievote": "tie", "bothbad_vote": "tie (bothbad)"}[
        log["type"]
    ]
    clean = {
        "question_id": log["states"][0]["conv_id"],
        "model_a": a,
        "model_b": b,
        "winner": winner,
        "tstamp": log["tstamp"],
    }
    clean |= {"judge": f"arena_user_{log['ip']}", "turn": 1, "anony": True}
    assert read(log).vote.battle == read(clean).vote.battle
    assert read(log).vote.voter == read(clean).vote.voter


def test_arena_ranks_rows():
    row = {"model_a": "x", "model_b": "y", "winner": "both_bad"}
    found = read(row)
    assert (found.vote.battle, found.vote.kind, found.vote.winner) == ("file:7", "blind", "bad")
    assert written(ARENA_RANK, found) == row
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "讀這個"}, {"type": "image"}]},
        {"role": "assistant", "content": "好"},
    ]
    row |= {
        "id": "25e6fb27-1e8d-4d31-9d2f-d2d2a5d9b5a0",
        "conversation_a": parts,
        "conversation_b": parts,
        "timestamp": "2025-06-30T12:00:00.5",
    }
    found = read(row)
    assert (found.vote.battle, found.vote.at) == (row["id"], 1_751_284_800_500)
    assert found.said["turns"] == [{"text": "讀這個", "a": "好", "b": "好"}]
    assert "zh" in found.vote.categories
    with pytest.raises(Unusable, match="winner"):
        read(row | {"winner": "model_c"})


def test_arena_ranks_rows_have_its_columns_and_differences_of_style():
    from dataclasses import replace

    row = written(ARENA_RANK, Found(replace(VOTE, style_a=(30, 0, 4, 1), style_b=(10, 0, 4, 0)), None))
    assert {name: row[name] for name in ("model_a", "model_b", "winner")} == {
        "model_a": "left",
        "model_b": "right",
        "winner": "both_bad",
    }
    assert [row[name] for name in ("length", "headers", "lists", "bold")] == [0.5, 0, 0, 1]


def test_no_address_is_left_in_a_row_that_names_its_voter_twice():
    row = {"model_a": "x", "model_b": "y", "winner": "tie", "voter": "192.0.2.7", "judge": "arena_user_192.0.2.7"}
    found = read(row)
    assert "192.0.2.7" not in json.dumps(written(ARENA_RANK, found))
    assert found.vote.voter in written(ARENA_RANK, found)["judge"]


def test_half_of_a_surrogate_pair_goes_through(tmp_path):
    record = battles.vote(1, odd="\ud83d")
    assert written(FASTCHAT, read(record))["odd"] == "\ud83d"
    record["states"][0]["messages"][1][1] = "so \ud83d, and this is a longer text"
    found = read(record)
    assert "so ?" in found.said["turns"][0]["a"]
    assert written(FASTCHAT, found)["states"] == record["states"]


def test_whatever_a_file_has_it_is_a_vote_or_a_reason():
    dice = random.Random(7)
    odd = [None, True, 0, -1, 1e308, 10**400, "", "x" * 300, [], [[]], {}, {"": 0}, ["a", "b"], [None, None], "\ud800"]
    votes = [battles.vote(n) for n in range(20)]
    rows = [written(form, read(one)) for one in votes for form in FORMS]
    outcomes = {"vote": 0, "reason": 0}
    for _ in range(4000):
        record = json.loads(json.dumps(dice.choice([*votes, *rows])))
        for _ in range(dice.choice((1, 1, 2, 3))):
            spoil(record, dice, odd)
        try:
            found = read(record)
            for form in FORMS:
                voteforms.write(form, found.vote, found.said)
            outcomes["vote"] += 1
        except (Unusable, NotOne):
            outcomes["reason"] += 1
    assert min(outcomes.values()) > 500


def spoil(value: Any, dice: random.Random, odd: list[Any]) -> None:
    """Put something odd somewhere into a record."""
    places = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not places:
        return
    place = dice.choice(places)
    inner = value[place]
    if isinstance(inner, dict | list) and dice.random() < 0.7:
        spoil(inner, dice, odd)
    elif isinstance(value, dict) and dice.random() < 0.2:
        del value[place]
    else:
        value[place] = dice.choice(odd)
