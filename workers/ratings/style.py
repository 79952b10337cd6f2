"""Style control: ratings of what models say, apart from how long and how adorned they say it.

Besides the two models, a vote's outcome may hang on differences of style between the two answers: length, headers, lists
and bold. How much each of them sways voters is found together with the strengths, and the ratings are those of answers
in one style. In come votes with the counts of both answers; out come ratings as from `bradley_terry`, and coefficients.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workers.ratings import bradley_terry
from workers.ratings.bradley_terry import NORMAL_95, PENALTY, Cells, Fit, Floats

FEATURES = ("length", "headers", "lists", "bold")
STEPS, HALVINGS = 100, 40
CLOSE = 1e-5  # a step of Newton's that ends the search; what is left is about its square


@dataclass(frozen=True, slots=True, eq=False)
class StyleFit(Fit):
    """Ratings, and what style is worth.

    Attributes:
        coefficients: shape (4,), in the order of `FEATURES`: by how much the logarithm of the odds grows for an answer
            that has more of it, by as much as two answers usually differ.
        coefficients_lower, coefficients_upper: shape (4,), their 95 % intervals.
    """

    coefficients: Floats
    coefficients_lower: Floats
    coefficients_upper: Floats


@dataclass(frozen=True, slots=True, eq=False)
class _Votes:
    """What Newton's method looks at: m votes among n models with f differences of style."""

    n: int
    a: NDArray[np.int64]  # (m,)
    b: NDArray[np.int64]
    won: Floats  # (m,), by a: 1, 0 or 0.5
    styles: Floats  # (f, m)
    weights: Floats  # (m,)

    def logits(self, found: Floats) -> Floats:
        strengths = found[: self.n]
        logits: Floats = strengths[self.a] - strengths[self.b] + found[self.n :] @ self.styles
        return logits

    def loss(self, found: Floats, logits: Floats, penalty: float) -> float:
        missed = bradley_terry.softplus(logits) - self.won * logits
        return float(self.weights @ missed + penalty / 2 * found @ found)

    def slope(self, pulls: Floats) -> Floats:
        """Shape (n + f,): how hard votes, each with its pull to the left, pull at each parameter."""
        models = np.bincount(self.a, pulls, self.n) - np.bincount(self.b, pulls, self.n)
        return np.concatenate([models, self.styles @ pulls])

    def products(self, links: Floats, penalty: float) -> Floats:
        """Shape (n + f, n + f): the votes' squares, each as often as its link says, and the penalty on the diagonal."""
        n = self.n
        pairs = self.a * n + self.b
        each: Floats = np.bincount(pairs, links, n * n).reshape(n, n).astype(np.float64)
        linked = self.styles * links
        matrix = np.empty((n + len(linked),) * 2)
        matrix[:n, :n] = bradley_terry.laplacian(each + each.T, penalty)
        for k, style in enumerate(linked, start=n):
            across = np.bincount(pairs, style, n * n).reshape(n, n)
            matrix[:n, k] = matrix[k, :n] = across.sum(axis=1) - across.sum(axis=0)
        matrix[n:, n:] = linked @ self.styles.T + penalty * np.eye(len(linked))
        return matrix


def fit(
    a: ArrayLike,
    b: ArrayLike,
    outcome: ArrayLike,
    features_a: ArrayLike,
    features_b: ArrayLike,
    n: int,
    *,
    penalty: float = PENALTY,
    start: StyleFit | None = None,
    anchor: tuple[int, float] | None = None,
    weights: ArrayLike | None = None,
) -> StyleFit:
    """The most likely strengths and coefficients, with intervals by sandwich covariance.

    Args:
        a, b: shape (m,), the models.
        outcome: shape (m,), 0 where a won, 1 where b won, 2 for a tie.
        features_a, features_b: shape (m, 4), counts in each answer, in the order of `FEATURES`.
        n: the number of models.
        penalty: L2 weight on strengths and coefficients, above 0.
        start: an earlier fit, of as many models or fewer; the result is the same, sooner.
        anchor: a model and the score that it shall have.
        weights: shape (m,), how much each vote counts.

    Raises:
        ValueError: if the penalty is not above 0, or for a model or an outcome that there is not.

    Source: FastChat's contextual Bradley-Terry model, by Newton's method on n + 4 parameters.
    """
    if penalty <= 0:
        raise ValueError("a penalty above 0 keeps an unbeaten model finite")
    cells = Cells.of(a, b, outcome, n)
    counts = (np.reshape(each, (-1, len(FEATURES))) for each in (features_a, features_b))
    votes = _votes(a, b, outcome, differences(*counts), n, weights)
    found, chances = _maximise(votes, penalty, _begin(start, cells, penalty))
    bend = votes.products(votes.weights * chances * (1 - chances), penalty)
    scatter = votes.products((votes.weights * (votes.won - chances)) ** 2, penalty)
    bend[:n, :n] += np.diag(bend)[:n].mean() / n if n else 0  # holds the mean, which no vote tells
    inverse = np.linalg.inv(bend)
    covariance = inverse @ scatter @ inverse
    standing = bradley_terry.standing(cells)
    plain = bradley_terry.described(found[:n], bradley_terry.beside(covariance[:n, :n], standing), standing, anchor)
    reach = NORMAL_95 * np.sqrt(np.diag(covariance)[n:])
    return StyleFit(
        plain.scores,
        plain.lower,
        plain.upper,
        plain.strengths,
        plain.covariance,
        plain.ranks,
        coefficients=found[n:],
        coefficients_lower=found[n:] - reach,
        coefficients_upper=found[n:] + reach,
    )


def differences(features_a: ArrayLike, features_b: ArrayLike) -> Floats:
    """How much more of each feature the left answer has, as the model takes it.

    Args:
        features_a, features_b: shape (m, f), counts.

    Returns:
        Shape (m, f): (a - b) / (a + b + 1), over what that is in quadratic mean; 0 for a feature that is the same
        everywhere.

    Source: FastChat's `preprocess_for_style`, which gives NaN for the last, and takes the mean away: by that it matters who
    is on which side, also where sides were no chance, as in logs of votes on named models.
    """
    left, right = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    apart = (left - right) / (left + right + 1)
    spread = np.sqrt(np.einsum("mf,mf->f", apart, apart) / max(1, len(apart)))
    scaled: Floats = np.divide(apart, spread, out=apart, where=spread > 0)
    return scaled


def _votes(a: ArrayLike, b: ArrayLike, outcome: ArrayLike, styles: Floats, n: int, weights: ArrayLike | None) -> _Votes:
    left, right = np.asarray(a, np.int64), np.asarray(b, np.int64)
    won = np.array([1.0, 0.0, 0.5])[np.asarray(outcome, np.int64)]
    given = np.ones(len(left)) if weights is None else np.asarray(weights, np.float64)
    return _Votes(n, left, right, won, np.ascontiguousarray(styles.T), np.where(left == right, 0.0, given))


def _begin(start: StyleFit | None, cells: Cells, penalty: float) -> Floats:
    found = np.zeros(cells.n + len(FEATURES))
    if start is None:
        found[: cells.n] = bradley_terry.maximise(cells.wins(), penalty, found[: cells.n])
    else:
        found[: len(start.strengths)] = start.strengths
        found[cells.n :] = start.coefficients
    return found


def _chances(logits: Floats) -> Floats:
    half: Floats = np.tanh(logits / 2)
    return (1 + half) / 2


def _maximise(votes: _Votes, penalty: float, found: Floats) -> tuple[Floats, Floats]:
    """Strengths, then coefficients, shape (n + f,), from those that are given, by Newton's method; and the votes' chances."""
    logits = votes.logits(found)
    loss = votes.loss(found, logits, penalty)
    for _ in range(STEPS):
        chances = _chances(logits)
        slope = votes.slope(votes.weights * (votes.won - chances)) - penalty * found
        step = np.linalg.solve(votes.products(votes.weights * chances * (1 - chances), penalty), slope)
        for _ in range(HALVINGS):
            logits = votes.logits(found + step)
            after = votes.loss(found + step, logits, penalty)
            if after <= loss + 1e-9 * (1 + abs(loss)):
                break
            step /= 2
        found, loss = found + step, after
        if np.abs(step).max() < CLOSE:
            break
    return found, _chances(logits)
