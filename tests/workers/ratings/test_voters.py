import numpy as np
import pytest

from leagues import outcomes
from workers.ratings import bradley_terry, voters
from workers.ratings.bradley_terry import Cells

BRUSHER = 10_000  # voters from here on are no honest ones
USUAL = np.array([-1.2, -0.8, -0.5, -0.2, 0.0, 0.1, 0.4, 0.6, 0.9, 1.3])  # strengths


def honest(rng, people, each, *, strengths=USUAL, taste=0.3, ties=0.2):
    """Votes of people whose tastes differ: voter, a, b, outcome."""
    n, size = len(strengths), people * each
    who = rng.permutation(np.repeat(np.arange(people), each))
    a = rng.integers(0, n, size)
    b = (a + rng.integers(1, n, size)) % n
    liked = strengths + rng.normal(scale=taste, size=(people, n))
    return who, a, b, outcomes(rng, liked[who, a] - liked[who, b], ties)


def brushed(rng, how, size=500, people=3, model=4, n=USUAL.size):
    """Votes of a few who want something else than to say which answer is better."""
    who = BRUSHER + np.arange(size) % people
    other = (model + rng.integers(1, n, size)) % n
    left = rng.random(size) < 0.5
    a, b = np.where(left, model, other), np.where(left, other, model)
    outcome = {
        "for": np.where(left, 0, 1),
        "against": np.where(left, 1, 0),
        "left": np.zeros(size, int),
        "tie": np.full(size, 2),
    }[how]
    return who, a, b, outcome


def among(rng, votes, others):
    """Both, at random moments, each in its order."""
    places = np.sort(rng.integers(0, len(votes[0]) + 1, len(others[0])))
    return [np.insert(one, places, other) for one, other in zip(votes, others, strict=True)]


@pytest.mark.parametrize("how", ["for", "against", "left", "tie"])
@pytest.mark.parametrize("people", [40, 400])
def test_500_votes_by_three_move_no_model_by_more_than_its_interval(how, people):
    rng = np.random.default_rng(0)
    fair = honest(rng, people, 50)
    votes = among(rng, fair, brushed(rng, how))
    found = voters.suspects(*votes, len(USUAL))
    kept = ~voters.aside(votes[0], found)

    without = bradley_terry.fit(Cells.of(*fair[1:], len(USUAL)))
    filtered = bradley_terry.fit(Cells.of(*(each[kept] for each in votes[1:]), len(USUAL)))
    assert ((without.lower < filtered.scores) & (filtered.scores < without.upper)).all()
    assert {each.voter for each in found} == {BRUSHER, BRUSHER + 1, BRUSHER + 2}
    assert sum(each.votes for each in found) == 500


@pytest.mark.parametrize("how", ["for", "against"])
def test_without_the_filter_they_would(how):
    rng = np.random.default_rng(0)
    fair = honest(rng, 400, 50)
    votes = among(rng, fair, brushed(rng, how))
    without, moved = (bradley_terry.fit(Cells.of(*each[1:], len(USUAL))) for each in (fair, votes))
    assert not without.lower[4] < moved.scores[4] < without.upper[4]


def test_those_who_push_together_do_not_make_it_look_usual():
    rng = np.random.default_rng(1)
    votes = among(rng, honest(rng, 100, 50), brushed(rng, "for", size=400, people=12))
    found = {each.voter for each in voters.suspects(*votes, len(USUAL))}
    assert found == set(range(BRUSHER, BRUSHER + 12))


@pytest.mark.parametrize(("people", "each"), [(2000, 10), (200, 100), (30, 600)])
def test_tastes_may_differ(people, each):
    found = []
    for seed in range(3):
        found += voters.suspects(*honest(np.random.default_rng(seed), people, each), len(USUAL))
    assert len(found) <= 1


def test_some_may_call_twice_as_much_a_tie():
    rng = np.random.default_rng(8)
    usual, (who, *cast) = honest(rng, 300, 60, ties=0.2), honest(rng, 20, 300, ties=0.4)
    assert voters.suspects(*among(rng, usual, (who + 500, *cast)), len(USUAL)) == []


def test_a_quarter_of_the_votes_may_be_careless():
    rng = np.random.default_rng(9)
    usual, (who, a, b, outcome) = honest(rng, 300, 60), honest(rng, 20, 600)
    careless = np.where(rng.random(len(who)) < 0.25, rng.integers(0, 3, len(who)), outcome)
    assert voters.suspects(*among(rng, usual, (who + 500, a, b, careless)), len(USUAL)) == []


def test_who_votes_the_other_way_around_is_found():
    rng = np.random.default_rng(10)
    who, a, b, _ = honest(rng, 1, 100)
    votes = among(rng, honest(rng, 200, 50), (who + BRUSHER, a, b, np.where(USUAL[a] > USUAL[b], 1, 0)))
    assert [each.voter for each in voters.suspects(*votes, len(USUAL))] == [BRUSHER]


def test_who_votes_at_random_for_long_is_found():
    rng = np.random.default_rng(12)
    strengths = np.linspace(-1, 1, 40)
    who, a, b, _ = honest(rng, 1, 1000, strengths=strengths)
    votes = among(rng, honest(rng, 400, 50, strengths=strengths), (who + BRUSHER, a, b, rng.integers(0, 3, 1000)))
    assert [each.voter for each in voters.suspects(*votes, 40)] == [BRUSHER]


def test_who_votes_more_than_all_others_does_not_decide_what_is_usual():
    rng = np.random.default_rng(2)
    votes = among(rng, honest(rng, 40, 50), brushed(rng, "against", size=6000))
    assert {each.voter for each in voters.suspects(*votes, len(USUAL))} == {BRUSHER, BRUSHER + 1, BRUSHER + 2}


def test_p_values_of_honest_voters_are_no_smaller_than_they_say():
    """At a rate of 1/2, the smallest of 1000 p-values is below 1/2000 in less than every second league."""
    leagues = (honest(np.random.default_rng(seed), 1000, 30, taste=0) for seed in range(5))
    assert [voters.suspects(*each, len(USUAL), rate=0.5) for each in leagues] == [[]] * 5


def test_who_turns_back_to_honest_votes_is_found():
    rng = np.random.default_rng(3)
    fair = honest(rng, 201, 100)
    who, *cast = brushed(rng, "for", size=60, people=1)
    votes = [np.concatenate(pair) for pair in zip((who, *cast), fair, strict=True)]
    votes[0][votes[0] == 200] = BRUSHER
    assert [each.voter for each in voters.suspects(*votes, len(USUAL))] == [BRUSHER]


def test_the_least_likely_come_first_and_votes_of_all_kinds_are_counted():
    rng = np.random.default_rng(4)
    votes = among(rng, honest(rng, 100, 50), brushed(rng, "for", size=300, people=1))
    who, *few = brushed(rng, "against", size=80, people=1)
    votes = among(rng, votes, (who + 1, *few))
    himself = (np.array([BRUSHER]), np.array([2]), np.array([2]), np.array([0]))
    votes = among(rng, votes, himself)
    found = voters.suspects(*votes, len(USUAL))
    assert [(each.voter, each.votes) for each in found] == [(BRUSHER, 301), (BRUSHER + 1, 80)]
    assert 0 <= found[0].p_value < found[1].p_value < 0.001


def test_voters_may_have_names():
    rng = np.random.default_rng(5)
    who, *votes = among(rng, honest(rng, 50, 50), brushed(rng, "tie", people=2))
    names = np.char.add("v", who.astype(str))
    found = voters.suspects(names, *votes, len(USUAL))
    assert {each.voter for each in found} == {f"v{BRUSHER}", f"v{BRUSHER + 1}"}
    assert voters.aside(names, found).sum() == 500


def test_few_votes_say_nothing_of_a_voter():
    rng = np.random.default_rng(6)
    votes = among(rng, honest(rng, 50, 50), brushed(rng, "for", size=4, people=1))
    assert voters.suspects(*votes, len(USUAL)) == []


@pytest.mark.parametrize("votes", [0, 1, 7])
def test_a_voter_alone_is_not_judged(votes):
    alone = (np.zeros(votes, int), np.zeros(votes, int), np.ones(votes, int), np.zeros(votes, int))
    assert voters.suspects(*alone, 2) == []
    assert voters.aside(alone[0], []).tolist() == [False] * votes


def test_a_day_has_so_many_votes_of_a_voter_that_count():
    voter = ["x", "x", "y", "x", "x", "y", "x"]
    day = [5, 5, 5, 5, 6, 6, 5]
    assert voters.within_cap(voter, day, 2).tolist() == [True, True, True, False, True, True, False]
    assert not voters.within_cap(voter, day, 0).any()
    assert voters.within_cap([], [], 3).tolist() == []


def test_votes_are_counted_in_the_order_in_which_they_came():
    rng = np.random.default_rng(7)
    voter, day = rng.integers(0, 30, 2000), rng.integers(19_000, 19_005, 2000)
    seen, counted = {}, []
    for key in zip(voter.tolist(), day.tolist(), strict=True):
        seen[key] = seen.get(key, 0) + 1
        counted.append(seen[key] <= 7)
    assert voters.within_cap(voter, day, 7).tolist() == counted
    assert 0 < sum(counted) < 2000
