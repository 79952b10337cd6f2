import json
from pathlib import Path

import numpy as np
import pytest

from leagues import battles, league, outcomes
from workers.ratings import bradley_terry, style
from workers.ratings.bradley_terry import POINTS, Cells
from workers.ratings.style import FEATURES

SURE = 1e-6  # a penalty that only holds the mean
COUNTS = (300, 2, 6, 4)  # of a usual answer: length, headers, lists, bold


def written(rng, a, b, n, sway, truth, verbose=1.0, ties=0.0):
    """Votes of people whom style sways; each model has its own manner, and each answer differs from it."""
    manner = np.exp(rng.normal(scale=0.3, size=(n, 4)))
    manner[0] *= verbose
    counts_a, counts_b = (
        rng.poisson(COUNTS * manner[side] * np.exp(rng.normal(scale=0.4, size=(len(side), 1)))) for side in (a, b)
    )
    logits = truth[a] - truth[b] + style.differences(counts_a, counts_b) @ sway
    return a, b, outcomes(rng, logits, ties), counts_a, counts_b


def drawn(rng, n, votes):
    a = rng.integers(0, n, votes)
    return a, (a + rng.integers(1, n, votes)) % n


def test_what_style_is_worth_is_found_beside_the_strengths():
    rng = np.random.default_rng(0)
    truth, sway = rng.normal(size=10), np.array([0.5, -0.2, 0.1, 0.0])
    votes = written(rng, *drawn(rng, 10, 40_000), 10, sway, truth)
    found = style.fit(*votes, 10)
    assert found.coefficients == pytest.approx(sway, abs=0.06)
    assert found.scores == pytest.approx(1000 + POINTS * (truth - truth.mean()), abs=30)
    assert len(found.coefficients) == len(FEATURES)


def test_arena_rank_finds_the_same():
    """As it was recorded by record_arena_rank.py, which says why."""
    goal = json.loads(Path(__file__).with_name("arena_rank.json").read_text())["style"]
    votes = battles()
    found, strengths = style.fit(*votes, 8, penalty=SURE), np.array(goal["strengths"])
    apart = (votes[3] - votes[4]) / (votes[3] + votes[4] + 1)
    even = bradley_terry.beside(found.covariance, np.full(8, 1 / 8))
    assert found.strengths == pytest.approx(strengths - strengths.mean(), abs=1e-4)
    assert found.coefficients / np.sqrt((apart**2).mean(axis=0)) == pytest.approx(goal["coefficients"], abs=1e-4)
    assert 1.96 * np.sqrt(np.diag(even)) == pytest.approx(goal["half_widths"], abs=1e-4)


def test_a_model_that_only_says_much_falls():
    rng = np.random.default_rng(1)
    truth, sway = np.zeros(6), np.array([1.0, 0, 0, 0])
    votes = written(rng, *drawn(rng, 6, 20_000), 6, sway, truth, verbose=3.0)
    plain, controlled = bradley_terry.fit(Cells.of(*votes[:3], 6)), style.fit(*votes, 6)
    assert plain.ranks.tolist() == [1, *plain.ranks[1:]]
    assert plain.lower[0] > plain.upper[1:].max()
    assert controlled.lower[0] < 1000 < controlled.upper[0]
    assert (
        controlled.upper[0] - controlled.lower[0] > plain.upper[0] - plain.lower[0]
    )  # style and model are hard to tell apart


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), COUNTS])
def test_answers_in_one_style_are_rated_as_without(counts):
    rng = np.random.default_rng(2)
    votes = league(rng, rng.normal(size=7), 3000, ties=0.2)
    alike = np.tile(counts, (3000, 1))
    plain, controlled = bradley_terry.fit(Cells.of(*votes, 7)), style.fit(*votes, alike, alike, 7)
    for name in ("scores", "lower", "upper", "strengths", "covariance"):
        assert getattr(controlled, name) == pytest.approx(getattr(plain, name), abs=1e-6)
    assert controlled.ranks.tolist() == plain.ranks.tolist()
    assert controlled.coefficients.tolist() == [0] * 4


def test_sides_do_not_matter():
    """As in logs of named models, where the left one is the reader's favourite."""
    rng = np.random.default_rng(3)
    a, b = np.sort(drawn(rng, 6, 4000), axis=0)
    a, b, outcome, counts_a, counts_b = written(rng, a, b, 6, np.array([0.4, 0.2, 0, 0]), rng.normal(size=6), ties=0.2)
    one = style.fit(a, b, outcome, counts_a, counts_b, 6)
    other = style.fit(b, a, np.array([1, 0, 2])[outcome], counts_b, counts_a, 6)
    assert other.scores == pytest.approx(one.scores, abs=1e-4)
    assert other.coefficients == pytest.approx(one.coefficients, abs=1e-6)


def test_an_earlier_fit_is_only_a_start():
    rng = np.random.default_rng(4)
    votes = written(rng, *drawn(rng, 5, 2000), 5, np.array([0.4, 0, 0.2, 0]), rng.normal(size=5))
    early = style.fit(*(each[(votes[0] < 4) & (votes[1] < 4)] for each in votes), 4)
    cold, warm = style.fit(*votes, 5), style.fit(*votes, 5, start=early)
    assert warm.strengths == pytest.approx(cold.strengths, abs=1e-6)
    assert warm.coefficients == pytest.approx(cold.coefficients, abs=1e-6)


def test_weights_are_votes():
    rng = np.random.default_rng(5)
    votes = written(rng, *drawn(rng, 4, 600), 4, np.array([0.4, 0, 0.2, 0]), rng.normal(size=4), ties=0.2)
    twice = style.fit(*(np.concatenate([each, each]) for each in votes), 4)
    weighted = style.fit(*votes, 4, weights=np.full(600, 2.0))
    assert weighted.strengths == pytest.approx(twice.strengths, abs=1e-6)
    assert weighted.coefficients == pytest.approx(twice.coefficients, abs=1e-6)
    assert weighted.upper[0] - weighted.lower[0] > 1.2 * (
        twice.upper[0] - twice.lower[0]
    )  # no more is known by weighing


def test_an_anchor_has_its_score():
    rng = np.random.default_rng(6)
    votes = written(rng, *drawn(rng, 4, 600), 4, np.zeros(4), rng.normal(size=4))
    free, held = style.fit(*votes, 4), style.fit(*votes, 4, anchor=(1, 900))
    assert held.scores[1] == pytest.approx(900)
    assert held.scores - held.scores[0] == pytest.approx(free.scores - free.scores[0])


@pytest.mark.parametrize("n", [0, 1, 3])
def test_no_votes_give_finite_ratings(n):
    found = style.fit([], [], [], np.empty((0, 4)), np.empty((0, 4)), n)
    assert found.scores.tolist() == [1000] * n
    assert np.isfinite([found.lower, found.upper]).all()
    assert found.coefficients.tolist() == [0] * 4
    assert (found.coefficients_lower < found.coefficients_upper).all()


def test_votes_on_a_model_against_itself_say_nothing():
    rng = np.random.default_rng(7)
    votes = written(rng, *drawn(rng, 4, 600), 4, np.array([0.4, 0, 0, 0]), rng.normal(size=4))
    more = [np.concatenate([each, each[:50]]) for each in votes]
    more[0][600:] = more[1][600:]
    found = style.fit(*more, 4)
    assert found.scores == pytest.approx(style.fit(*votes, 4).scores, abs=1e-3)


def test_an_unbeaten_model_is_finite():
    rng = np.random.default_rng(8)
    counts = rng.poisson(COUNTS, (40, 4)), rng.poisson(COUNTS, (40, 4))
    found = style.fit([0, 1] * 20, [1, 2] * 20, [0, 0] * 20, *counts, 3)
    assert np.isfinite([found.lower, found.upper]).all()
    assert found.scores[0] > found.scores[1] > found.scores[2] > 0


def test_a_penalty_of_nothing_is_refused():
    with pytest.raises(ValueError, match="penalty"):
        style.fit([0], [1], [0], np.ones((1, 4)), np.ones((1, 4)), 2, penalty=0)


def test_19_of_20_intervals_hold_the_truth():
    inside, swayed = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        truth, sway = rng.normal(scale=0.6, size=6), np.array([0.3, -0.2, 0.1, 0.0])
        found = style.fit(*written(rng, *drawn(rng, 6, 2000), 6, sway, truth), 6)
        scores = 1000 + POINTS * (truth - truth.mean())
        inside.append((found.lower < scores) & (scores < found.upper))
        swayed.append((found.coefficients_lower < sway) & (sway < found.coefficients_upper))
    assert 0.93 < np.mean(inside) < 0.97
    assert 0.93 < np.mean(swayed) < 0.97
