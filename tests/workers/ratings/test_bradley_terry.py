import itertools
import json
import math
from pathlib import Path

import evalica
import numpy as np
import pytest

from leagues import battles, league
from workers.ratings import bradley_terry
from workers.ratings.bradley_terry import POINTS, Cells

SURE = 1e-6  # a penalty that only holds the mean


def test_the_worked_example_of_wikipedia():
    beaten = {"AB": 2, "AD": 1, "BA": 3, "BC": 5, "CB": 3, "CD": 1, "DA": 4, "DC": 3}
    cells = Cells.of([], [], [], 4)
    for (winner, loser), wins in beaten.items():
        cells.add("ABCD".index(winner), "ABCD".index(loser), 0, times=wins)
    strengths = np.exp(bradley_terry.fit(cells, penalty=SURE).strengths)
    shown = strengths / np.prod(strengths) ** (1 / 4)  # whose geometric mean is 1, as there
    assert shown.round(3) == pytest.approx([0.640, 1.043, 0.660, 2.270], abs=1e-9)


@pytest.mark.parametrize("ties", [0.0, 0.3])
def test_evalica_finds_the_same(ties):
    rng = np.random.default_rng(8)
    a, b, outcome = league(rng, rng.normal(size=15), 5000, ties)
    kinds = np.array([evalica.Winner.X, evalica.Winner.Y, evalica.Winner.Draw])
    theirs = evalica.bradley_terry(
        a.tolist(), b.tolist(), kinds[outcome].tolist(), tolerance=1e-12, limit=10_000
    ).scores
    goal = np.log(theirs.sort_index().to_numpy())
    ours = bradley_terry.fit(Cells.of(a, b, outcome, 15), penalty=SURE).strengths
    assert ours == pytest.approx(goal - goal.mean(), abs=1e-4)


def test_arena_rank_finds_the_same():
    """As it was recorded by record_arena_rank.py, which says why."""
    goal = json.loads(Path(__file__).with_name("arena_rank.json").read_text())["bradley_terry"]
    found, strengths = bradley_terry.fit(Cells.of(*battles()[:3], 8), penalty=SURE), np.array(goal["strengths"])
    even = bradley_terry.beside(found.covariance, np.full(8, 1 / 8))
    assert found.strengths == pytest.approx(strengths - strengths.mean(), abs=1e-4)
    assert 1.96 * np.sqrt(np.diag(even)) == pytest.approx(goal["half_widths"], abs=1e-4)


def test_counting_one_by_one_or_all_at_once_is_the_same():
    rng = np.random.default_rng(0)
    a, b, outcome = league(rng, np.zeros(5), 300, ties=0.3)
    weights = rng.random(300)
    one_by_one = Cells.of([], [], [], 5)
    for vote in zip(a.tolist(), b.tolist(), outcome.tolist(), weights, strict=True):
        one_by_one.add(*vote)
    at_once = Cells.of(a, b, outcome, 5, weights)
    halves = Cells.of(a[:99], b[:99], outcome[:99], 5, weights[:99]) + Cells.of(
        a[99:], b[99:], outcome[99:], 5, weights[99:]
    )
    for cells in (one_by_one, halves):
        assert cells.counts.tolist() == at_once.counts.tolist()
        assert np.allclose(cells.weights, at_once.weights)
        assert np.allclose(cells.squares, at_once.squares)
    assert at_once.counts.sum() == 300
    assert at_once.games().sum() == 600


def test_a_vote_taken_back_leaves_no_trace():
    cells = Cells.of([0, 1], [1, 2], [0, 2], 3)
    before = cells.weights.copy()
    cells.add(2, 0, 0, 1.5)
    assert cells.wins()[2, 0] == 1.5
    cells.add(2, 0, 0, 1.5, times=-1)
    assert cells.weights.tolist() == before.tolist()
    others = Cells.of([1], [2], [2], 3)
    assert (cells - others).counts.sum() == 1


def test_sides_do_not_matter_and_a_model_never_meets_itself():
    left, right = Cells.of([0, 1, 2], [1, 0, 2], [0, 0, 0], 3), Cells.of([1, 0], [0, 1], [1, 1], 3)
    assert left.counts.tolist() == right.counts.tolist()
    left.add(1, 1, 2)
    assert left.counts.sum() == 2


@pytest.mark.parametrize("vote", [(3, 0, 0), (0, 3, 0), (0, 1, 3), (-1, 0, 0)])
def test_a_model_or_outcome_that_there_is_not_is_refused(vote):
    with pytest.raises(ValueError, match="coordinates"):
        Cells.of(*([each] for each in vote), 3)


@pytest.mark.parametrize("ties", [0.0, 0.4])
def test_a_league_gives_back_its_truth(ties):
    rng = np.random.default_rng(1)
    truth = rng.normal(size=20)
    found = bradley_terry.fit(Cells.of(*league(rng, truth, 200_000, ties), 20))
    scores = 1000 + POINTS * (truth - truth.mean())
    assert np.abs(found.scores - scores).max() < 20
    assert ((found.lower < scores) & (scores < found.upper)).sum() >= 17
    apart = POINTS * np.diff(np.sort(truth)).min()
    assert apart > 1
    order = np.argsort(-truth)
    assert (np.diff(found.ranks[order]) >= 0).all()
    assert found.ranks[order[0]] == 1


def test_400_points_are_ten_to_one():
    cells = Cells.of([], [], [], 2)
    cells.add(0, 1, 0, times=10_000)
    cells.add(0, 1, 1, times=1_000)
    found = bradley_terry.fit(cells, penalty=SURE)
    assert found.scores == pytest.approx([1200, 800], abs=1e-3)


def test_a_tie_is_half_a_win_for_both():
    ties, halves = Cells.of([], [], [], 3), Cells.of([], [], [], 3)
    for cells in (ties, halves):
        cells.add(0, 1, 0, times=30)
        cells.add(1, 2, 0, times=20)
    ties.add(0, 2, 2, times=10)
    halves.add(0, 2, 0, times=5)
    halves.add(0, 2, 1, times=5)
    one, other = bradley_terry.fit(ties), bradley_terry.fit(halves)
    assert one.strengths == pytest.approx(other.strengths)
    assert ((one.upper - one.lower) < (other.upper - other.lower)).all()  # ties scatter less than wins and losses


def test_an_unbeaten_model_is_finite_and_its_interval_is_wide():
    cells = Cells.of([], [], [], 3)
    cells.add(0, 1, 0, times=10)
    for a, b in itertools.permutations((1, 2)):
        cells.add(a, b, 0, times=50)
    found = bradley_terry.fit(cells)
    assert 1200 < found.scores[0] < 2000
    assert found.upper[0] - found.lower[0] > 400 > found.upper[1] - found.lower[1]


def test_a_newcomer_moves_nobody():
    rng = np.random.default_rng(2)
    cells = Cells.of(*league(rng, rng.normal(size=4), 2000), 4)
    before, widened = bradley_terry.fit(cells), cells.widened(5)
    for votes in range(2):
        after = bradley_terry.fit(widened, start=before.strengths)
        assert np.abs(after.scores[:4] - before.scores).max() < 0.1 + 5 * votes
        assert np.abs(after.lower[:4] - before.lower).max() < 0.1 + 5 * votes
        assert after.upper[4] - after.lower[4] > 900
        widened.add(4, 0, 0)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_no_votes_give_finite_ratings(n):
    cells = Cells.of([], [], [], n)
    found = bradley_terry.fit(cells)
    assert found.scores.tolist() == [1000] * n
    assert found.ranks.tolist() == [1] * n
    assert np.isfinite([found.lower, found.upper, *bradley_terry.bootstrap(cells, rounds=7)]).all()
    counts, variances = bradley_terry.pairs(found, cells)
    drawn = bradley_terry.gains(counts, variances)
    assert (drawn[~np.eye(n, dtype=bool)] > 0).all()
    assert not np.diag(drawn).any()


def test_models_that_never_met_are_finite_and_not_ranked_above_each_other():
    cells = Cells.of([], [], [], 4)
    for a, b in ((0, 1), (2, 3)):
        cells.add(a, b, 0, times=300)
        cells.add(a, b, 1, times=100)
    found = bradley_terry.fit(cells)
    lower, upper = bradley_terry.bootstrap(cells, rounds=400)
    assert np.isfinite([found.scores, found.lower, found.upper, lower, upper]).all()
    assert found.scores[0] - found.scores[1] == pytest.approx(POINTS * math.log(3), abs=1)
    assert found.ranks.tolist() == [1, 1, 1, 1]
    assert (upper - lower) / (found.upper - found.lower) == pytest.approx(np.ones(4), abs=0.2)
    within = np.sqrt(found.covariance[0, 0] + found.covariance[1, 1] - 2 * found.covariance[0, 1])
    assert within < 0.2  # of the two that did meet


def test_an_anchor_has_its_score_and_ranks_stay():
    rng = np.random.default_rng(3)
    cells = Cells.of(*league(rng, rng.normal(size=6), 1000), 6)
    free, held = bradley_terry.fit(cells), bradley_terry.fit(cells, anchor=(2, 1114))
    assert held.scores[2] == pytest.approx(1114)
    assert held.scores - held.scores[0] == pytest.approx(free.scores - free.scores[0])
    assert held.upper - held.lower == pytest.approx(free.upper - free.lower)
    assert held.ranks.tolist() == free.ranks.tolist()
    lower, upper = bradley_terry.bootstrap(cells, anchor=(2, 1114))
    assert lower[2] < 1114 < upper[2]


def test_an_earlier_fit_is_only_a_start():
    rng = np.random.default_rng(4)
    cells = Cells.of(*league(rng, rng.normal(size=9), 500), 9)
    one, other = bradley_terry.fit(cells), bradley_terry.fit(cells, start=rng.normal(scale=9, size=7))
    assert one.strengths == pytest.approx(other.strengths, abs=1e-9)


def test_ranks_follow_the_bounds():
    lower, upper = np.array([5.0, 1.0, 7.0, 6.0]), np.array([6.5, 4.0, 9.0, 7.0])
    assert bradley_terry.rank(lower, upper).tolist() == [2, 4, 1, 1]


def test_a_penalty_of_nothing_is_refused():
    with pytest.raises(ValueError, match="penalty"):
        bradley_terry.fit(Cells.of([0], [1], [0], 2), penalty=0)


@pytest.mark.parametrize("ties", [0.0, 0.4])
def test_19_of_20_intervals_hold_the_truth(ties):
    inside = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        truth = rng.normal(scale=0.8, size=12)
        found = bradley_terry.fit(Cells.of(*league(rng, truth, 3000, ties), 12))
        scores = 1000 + POINTS * (truth - truth.mean())
        inside.append((found.lower < scores) & (scores < found.upper))
    assert 0.93 < np.mean(inside) < 0.97


def test_bootstrap_and_sandwich_agree():
    rng = np.random.default_rng(5)
    cells = Cells.of(*league(rng, rng.normal(size=10), 8000, ties=0.3), 10)
    found = bradley_terry.fit(cells)
    lower, upper = bradley_terry.bootstrap(cells, rounds=1000)
    assert (upper - lower) / (found.upper - found.lower) == pytest.approx(np.ones(10), abs=0.12)
    assert (lower + upper) / 2 == pytest.approx(found.scores, abs=2)
    again = bradley_terry.bootstrap(cells, rounds=1000)
    assert again[0].tolist() == lower.tolist()


def test_a_vote_gains_most_where_least_is_known():
    rng = np.random.default_rng(6)
    cells = Cells.of(*league(rng, np.zeros(5), 4000), 5).widened(6)
    for a, b in ((0, 5), (5, 0), (1, 5), (5, 1)):
        cells.add(a, b, 0, times=15)

    def spread(of):
        covariance = bradley_terry.fit(of).covariance
        own = np.diag(covariance)
        return own[:, None] + own - 2 * covariance

    counts, variances = bradley_terry.pairs(bradley_terry.fit(cells), cells)
    drawn = bradley_terry.gains(counts, variances)
    apart = ~np.eye(6, dtype=bool)
    before = spread(cells)
    assert np.allclose((variances / np.where(apart, counts, 1))[apart], before[apart])
    assert drawn[5, :5].min() > 20 * drawn[:5, :5].max()
    foretold = variances[5, 2] / (counts[5, 2] + 10)
    for a, b in ((2, 5), (5, 2)):
        cells.add(a, b, 0, times=5)
    assert foretold == pytest.approx(spread(cells)[5, 2], rel=0.02)
    assert foretold < 0.9 * before[5, 2]


def test_weights_undo_how_pairs_were_drawn():
    """Voters whose taste is no Bradley-Terry model: the strengths depend on which pairs meet, unless that is undone."""
    rng = np.random.default_rng(7)
    taste = np.array([[0.5, 0.8, 0.3], [0.2, 0.5, 0.8], [0.7, 0.2, 0.5]])
    a, b = np.array([(0, 1), (0, 2), (1, 2)]).T
    leagues = {}
    for name, chances in (("even", np.full(3, 1 / 3)), ("uneven", np.array([0.9, 0.05, 0.05]))):
        drawn = rng.choice(3, 200_000, p=chances)
        outcome = np.where(rng.random(200_000) < taste[a[drawn], b[drawn]], 0, 1)
        leagues[name] = (a[drawn], b[drawn], outcome, chances[drawn])
    *even, _ = leagues["even"]
    *uneven, chances = leagues["uneven"]
    goal = bradley_terry.fit(Cells.of(*even, 3)).strengths
    plain = bradley_terry.fit(Cells.of(*uneven, 3))
    undone = bradley_terry.fit(Cells.of(*uneven, 3, bradley_terry.inverse(chances)))
    assert np.abs(plain.strengths - goal).max() > 0.1
    assert np.abs(undone.strengths - goal).max() < 0.03


def test_intervals_of_weighted_votes_are_as_wide_as_such_leagues_scatter():
    found = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        a, b, outcome = league(rng, np.array([0.5, 0, -0.5]), 2000)
        weights = bradley_terry.inverse(np.where(a + b == 1, 0.9, 0.05))
        found.append(bradley_terry.fit(Cells.of(a, b, outcome, 3, weights)))
    scatter = np.std([each.scores for each in found], axis=0)
    width = np.mean([each.upper - each.lower for each in found], axis=0)
    assert width / scatter == pytest.approx(np.full(3, 2 * 1.96), rel=0.1)


def test_a_pair_that_was_not_drawn_weighs_one():
    assert bradley_terry.inverse([0, 0]).tolist() == [1, 1]
    assert bradley_terry.inverse([0.5, 0.1, 0]) == pytest.approx([1 / 3, 5 / 3, 1])
    assert bradley_terry.inverse([1e-9] + [1.0] * 999).max() == 100
