import evalica
import numpy as np
import pytest

from leagues import league
from workers.ratings import bradley_terry
from workers.ratings.bradley_terry import Cells
from workers.ratings.elo import Elo


def test_evalica_finds_the_same():
    rng = np.random.default_rng(0)
    a, b, outcome = league(rng, rng.normal(size=12), 4000, ties=0.3)
    kinds = np.array([evalica.Winner.X, evalica.Winner.Y, evalica.Winner.Draw])
    theirs = evalica.elo(a.tolist(), b.tolist(), kinds[outcome].tolist(), k=4.0).scores.sort_index()
    ours = Elo.of(12)
    ours.add(a, b, outcome)
    assert ours.ratings == pytest.approx(theirs.tolist(), abs=1e-6)


def test_an_even_win_moves_half_a_step_and_a_tie_none():
    elo = Elo.of(2)
    elo.add([0], [1], [2])
    assert elo.ratings == [1000, 1000]
    elo.add([0], [1], [1])
    assert elo.ratings == [998, 1002]
    elo.add([0], [1], [2])
    assert 998 < elo.ratings[0] < 1000


def test_votes_one_by_one_or_all_at_once_are_the_same():
    rng = np.random.default_rng(1)
    votes = league(rng, rng.normal(size=4), 500, ties=0.2)
    at_once, one_by_one = Elo.of(4), Elo.of(4)
    at_once.add(*votes)
    for vote in zip(*votes, strict=True):
        one_by_one.add(*([each] for each in vote))
    assert one_by_one.ratings == at_once.ratings


def test_a_newcomer_begins_at_1000():
    elo = Elo.of(2)
    elo.add([0] * 50, [1] * 50, [0] * 50)
    before = list(elo.ratings)
    elo.widen(3)
    assert elo.ratings == [*before, 1000]
    elo.widen(2)
    assert len(elo.ratings) == 3
    elo.add([2], [0], [0])
    assert elo.ratings[2] - 1000 == pytest.approx(before[0] - elo.ratings[0])
    assert elo.ratings[2] > 1002  # who was beaten was the better one


def test_a_model_against_itself_stays():
    elo = Elo.of(2)
    elo.add([0, 1, 1], [0, 1, 1], [0, 1, 2])
    assert elo.ratings == [1000, 1000]


def test_a_long_league_is_near_bradley_terry():
    rng = np.random.default_rng(2)
    truth = rng.normal(scale=0.7, size=8)
    votes = league(rng, truth, 60_000)
    elo = Elo.of(8)
    elo.add(*votes)
    assert elo.ratings == pytest.approx(bradley_terry.fit(Cells.of(*votes, 8)).scores, abs=60)
    assert np.mean(elo.ratings) == pytest.approx(1000)
