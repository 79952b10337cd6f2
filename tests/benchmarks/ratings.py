"""How long ratings take, beside FastChat's algorithm and arena-rank, on one core.

    python tests/benchmarks/ratings.py [VOTES] [MODELS]

Simulates a league (1 million votes on 100 models, unless said otherwise) and prints milliseconds of processor time for each
way to ratings with 95 % intervals, from the votes' columns on; by how many times FastChat's bootstrap is slower; the mean
width of an interval and the mean error of a score, in points. Then what else is computed of the same votes. FastChat's algorithm is written out below: a loop over battles that
counts them, and an L-BFGS fit for each of 100 draws. arena-rank is measured where it is installed (it needs a Python
environment of its own, see tests/workers/ratings/record_arena_rank.py; this one needs but numpy and scipy beside it).
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is there
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from scipy.optimize import minimize

from leagues import outcomes
from workers.ratings import bradley_terry, style, voters
from workers.ratings.bradley_terry import Cells
from workers.ratings.elo import Elo

ROUNDS = 100
VOTES_EACH = 20  # of a voter
COUNTS = (300, 2, 6, 4)  # of a usual answer: length, headers, lists, bold
SWAY = (0.4, 0.1, 0.05, 0.05)


def fastchat(a: np.ndarray, b: np.ndarray, outcome: np.ndarray, n: int) -> np.ndarray:
    """Bounds of each score, shape (2, n), as FastChat finds them: by a bootstrap over unique outcomes."""
    seen: dict[tuple[int, int, int], int] = {}
    for battle in zip(a.tolist(), b.tolist(), outcome.tolist(), strict=True):
        seen[battle] = seen.get(battle, 0) + 1
    left, right, how = np.array(list(seen)).T
    won = np.array([1.0, 0.0, 0.5])[how]
    counts = np.array(list(seen.values()))

    def loss(ratings: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = ratings[left] - ratings[right]
        chances = 1 / (1 + np.exp(-logits))
        missed = -(won * np.log(chances) + (1 - won) * np.log(1 - chances))
        pulls = weights * (won - chances)
        slope = np.bincount(right, pulls, n) - np.bincount(left, pulls, n)
        return float(missed @ weights), slope

    rng = np.random.default_rng(0)
    scores = []
    for draw in rng.multinomial(len(a), counts / len(a), size=ROUNDS):
        weights = draw / len(a)
        found = minimize(loss, np.zeros(n), args=(weights,), jac=True, method="L-BFGS-B", options={"gtol": 1e-6}).x
        scores.append(1000 + bradley_terry.POINTS * (found - found.mean()))
    return np.quantile(scores, [0.025, 0.975], axis=0)


def arena_rank(table: Any, contextual: bool) -> np.ndarray:
    """Bounds by sandwich covariance."""
    from arena_rank.models.bradley_terry import BradleyTerry
    from arena_rank.models.contextual_bradley_terry import ContextualBradleyTerry
    from arena_rank.utils.data_utils import ContextualPairDataset, PairDataset

    if contextual:
        data = ContextualPairDataset.from_pandas(table, feature_cols=list(style.FEATURES), reweighted=False)
        found = ContextualBradleyTerry(data.n_competitors, data.n_features).compute_ratings_and_cis(data)
    else:
        pairs = PairDataset.from_pandas(table)
        found = BradleyTerry(pairs.n_competitors).compute_ratings_and_cis(pairs)
    return np.array([found["rating_lower"], found["rating_upper"]])


def table_of(a: np.ndarray, b: np.ndarray, outcome: np.ndarray, counts_a: np.ndarray, counts_b: np.ndarray) -> Any:
    """The votes as arena-rank takes them; None where it is not installed."""
    try:
        import arena_rank.models  # noqa: F401
        import pandas as pd
    except ImportError:
        return None
    table = pd.DataFrame((counts_a - counts_b) / (counts_a + counts_b + 1), columns=list(style.FEATURES))
    table["model_a"], table["model_b"] = a, b
    table["winner"] = np.array(["model_a", "model_b", "tie"])[outcome]
    return table


def measured(what: Callable[[], Any], times: int = 5) -> tuple[float, Any]:
    """Milliseconds of the processor, at best, and the result."""
    took = []
    for _ in range(times):
        begun = time.process_time()
        result = what()
        took.append(1000 * (time.process_time() - begun))
    return min(took), result


def main(votes: int = 1_000_000, n: int = 100) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # JAX's threads, too
    rng = np.random.default_rng(0)
    truth = rng.normal(scale=0.8, size=n)
    a = rng.integers(0, n, votes)
    b = (a + rng.integers(1, n, votes)) % n
    counts_a, counts_b = (rng.poisson(COUNTS, (votes, 4)) * rng.integers(1, 4, (votes, 1)) for _ in range(2))
    logits = truth[a] - truth[b] + style.differences(counts_a, counts_b) @ SWAY
    outcome = outcomes(rng, logits, ties=0.3)
    people = max(1, votes // VOTES_EACH)
    voter, day = rng.integers(0, people, votes), np.sort(rng.integers(0, 30, votes))
    table = table_of(a, b, outcome, counts_a, counts_b)

    def ours() -> np.ndarray:
        found = bradley_terry.fit(Cells.of(a, b, outcome, n))
        return np.array([found.lower, found.upper])

    def drawn() -> np.ndarray:
        return np.array(bradley_terry.bootstrap(Cells.of(a, b, outcome, n), ROUNDS))

    def styled() -> np.ndarray:
        found = style.fit(a, b, outcome, counts_a, counts_b, n)
        return np.array([found.lower, found.upper])

    slowest, theirs = measured(lambda: fastchat(a, b, outcome, n), times=1)
    print(f"{votes:,} votes on {n} models\n")
    print(f"{'ratings with intervals':48}{'ms':>10}{'x':>7}{'width':>9}{'error':>9}")
    for name, times, way in (
        ("fleetchat, sandwich", 5, ours),
        (f"fleetchat, bootstrap of {ROUNDS}", 3, drawn),
        (f"FastChat's algorithm, bootstrap of {ROUNDS}", 0, None),
        ("arena-rank, sandwich", 2, table is not None and (lambda: arena_rank(table, False))),
        ("fleetchat, style control", 5, styled),
        ("arena-rank, style control", 1, table is not None and (lambda: arena_rank(table, True))),
    ):
        if way is False:
            print(f"{name:48}{'not installed':>26}")
            continue
        took, bounds = measured(way, times) if way else (slowest, theirs)
        scores = bounds.mean(axis=0)
        error = np.abs(scores - scores.mean() - bradley_terry.POINTS * (truth - truth.mean())).mean()
        print(f"{name:48}{took:10.1f}{slowest / took:7.1f}{np.mean(bounds[1] - bounds[0]):9.2f}{error:9.2f}")

    cells = Cells.of(a, b, outcome, n)
    before = bradley_terry.fit(cells)
    controlled = style.fit(a, b, outcome, counts_a, counts_b, n)
    elo = Elo.of(n)
    elo.add(a, b, outcome)

    def one_more() -> None:
        cells.add(0, 1, 0)
        elo.add([0], [1], [0])
        after = bradley_terry.fit(cells, start=before.strengths)
        bradley_terry.pairs(after, cells)

    print(f"\n{'what else':48}{'ms':>10}")
    for name, way in (
        ("one more vote: ratings, Elo, pairs", one_more),
        ("one more vote: style control", lambda: style.fit(a, b, outcome, counts_a, counts_b, n, start=controlled)),
        ("online Elo of all votes", lambda: Elo.of(n).add(a, b, outcome)),
        (f"voters to set aside, of {people:,}", lambda: voters.suspects(voter, a, b, outcome, n)),
        ("votes over a day's cap", lambda: voters.within_cap(voter, day, 10)),
    ):
        took, _ = measured(way, times=3)
        print(f"{name:48}{took:10.1f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
