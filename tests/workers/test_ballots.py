from dataclasses import replace

import numpy as np
import pytest

from broker.votes import Vote
from helpers import vote_fields
from workers.ballots import Ballots, Entry

VOTE = Vote("1", "blind", "a", "x", "y", voter="me", at=5, categories=("en", "math"), style_a=(1, 2, 3, 4))


def entry(vote: Vote = VOTE, **fields: str) -> Entry:
    return b"1-0", {k.encode(): v.encode() for k, v in (vote_fields(vote) | fields).items()}


def columns(ballots: Ballots) -> dict[str, list[object]]:
    view = ballots.view()
    return {name: getattr(view, name).tolist() for name in ("kind", "outcome", "leak", "a", "b", "voter", "at")}


def test_votes_become_columns():
    ballots = Ballots()
    other = Vote("2", "late", "bad", "y", "z", voter="", at=6, leak=True, style_b=(9, 8, 7, 6))
    assert ballots.add([entry(), entry(other)]) == ["1", "2"]
    assert columns(ballots) == {
        "kind": [0, 2], "outcome": [0, 2], "leak": [False, True], "a": [0, 1], "b": [1, 2], "voter": [1, 0], "at": [5, 6],
    }  # fmt: skip
    view = ballots.view()
    assert view.names == ("x", "y", "z")
    assert view.styles.tolist() == [[1, 2, 3, 4, 0, 0, 0, 0], [0, 0, 0, 0, 9, 8, 7, 6]]
    assert view.within("math").tolist() == [True, False]
    assert view.counts(np.array([True, True])) == {"en": 1, "math": 1}
    assert ballots.people([1]) == {1: "me"}
    assert ballots.numbers(["me", "nobody"]) == {1}


def test_a_view_stays_true_while_more_come():
    ballots = Ballots()
    ballots.add([entry()])
    view = ballots.view()
    for i in range(200):
        ballots.add([entry(replace(VOTE, battle=str(i), winner="b", a=f"m{i}"))])
        ballots.label(0, ["coding"])
    assert (len(view), view.outcome.tolist(), view.names) == (1, [0], ("x", "y"))
    assert view.within("coding").tolist() == [False]
    assert len(ballots.view()) == 201
    assert ballots.view().outcome.sum() == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"winner": "c"},
        {"kind": "odd"},
        {"at": "soon"},
        {"at": "-1"},
        {"at": "9" * 30},
        {"at": "9" * 5000},
        {"at": "253402300800000"},
        {"p": "high"},
        {"style_a": "1 2 x 4"},
        {"style_b": "1 2 3"},
    ],
)
def test_what_is_no_vote_is_left_out(fields):
    ballots = Ballots()
    good = replace(VOTE, battle="2")
    assert ballots.add([entry(**({"winner": "c"} | fields)), entry(good), (b"3-0", {b"odd": b"\xff"})]) == ["2"]
    if "p" not in fields:  # which ratings do not read
        assert ballots.add([entry(**fields)]) == []
    assert ballots.add([entry(good)]) == ["2"]
    assert len(ballots.view()) == 2
    assert not set(ballots.names) - {"x", "y"}


def test_bytes_that_are_no_text_and_fields_that_are_missing():
    ballots = Ballots()
    for name in (b"battle", b"kind", b"winner", b"a", b"b"):
        whole = entry()[1]
        assert ballots.add([(b"1-0", whole | {name: b"\xff\xfe"}), (b"2-0", {k: v for k, v in whole.items() if k != name})]) == []  # fmt: skip
    short = {k: v for k, v in entry()[1].items() if k in (b"battle", b"kind", b"winner", b"a", b"b")}
    assert ballots.add([(b"1-0", short)]) == ["1"]
    assert columns(ballots)["at"] == [0]
    assert ballots.seen == 11


def test_counts_beyond_all_measure_are_clipped():
    ballots = Ballots()
    ballots.add([entry(style_a=f"{10**40} -5 {-(10**40)} 65536")])
    assert ballots.view().styles[0].tolist() == [65535, 0, 0, 65535, 0, 0, 0, 0]


def test_a_judges_word_takes_the_place_of_the_written_rules():
    judged = frozenset({"math", "coding"})
    ballots = Ballots(judged=judged)
    ballots.add([entry(), entry(replace(VOTE, battle="2")), entry(replace(VOTE, battle="3"))], {"2": ("coding",)})
    ballots.label(2, [])
    view = ballots.view()
    assert view.within("math").tolist() == [True, False, False]
    assert view.within("coding").tolist() == [False, True, False]
    assert view.within("en").tolist() == [True, True, True]
