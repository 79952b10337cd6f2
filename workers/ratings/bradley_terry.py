"""Bradley-Terry ratings with intervals, from votes that are counted per pair.

In come votes, as arrays or one at a time, kept in `Cells`: how often each pair ended how. Out come scores on Elo's scale
with 95 % intervals and ranks, and what a further vote on each pair would tell. What the votes themselves were is not
kept, so a fit costs the same after a hundred votes and after a million.

An L2 penalty stands for what is thought before any vote. It is a prior that every strength is 0, give or take
1 / sqrt(penalty), and counts as such in the intervals, too: a model that never lost, or never played, is finite, and its
interval says how little is known.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

POINTS = 400 / math.log(10)  # a natural-log unit on Elo's scale
CENTRE = 1000.0
PENALTY = 0.1  # worth less than half a vote, which tells 1/4 at most
NORMAL_95 = 1.959963984540054  # half of the width of a 95 % interval, in standard deviations
A, B, TIE = 0, 1, 2
FEW = 30  # votes of a model that weighs half in what 1000 points mean
STEPS, HALVINGS = 100, 40
CLOSE = 1e-9  # a step of Newton's that ends the search, in natural-log units
ROOM = 2_000_000  # numbers in one array of the bootstrap


@dataclass(slots=True, eq=False)
class Cells:
    """How often each pair ended how: all that the ratings need of the votes.

    Each array has shape (n, n, 3) and is 0 unless i < j; [i, j] holds: i won, j won, neither.

    Attributes:
        n: the number of models.
        counts: votes.
        weights: the sum of the votes' weights; equals `counts` if none were given.
        squares: the sum of the squares of the weights.
    """

    n: int
    counts: Floats
    weights: Floats
    squares: Floats

    @classmethod
    def of(cls, a: ArrayLike, b: ArrayLike, outcome: ArrayLike, n: int, weights: ArrayLike | None = None) -> "Cells":
        """The cells of votes. A vote on a model against itself says nothing and is left out.

        Args:
            a: shape (m,), the models on the left, 0 to n - 1.
            b: shape (m,), those on the right.
            outcome: shape (m,), 0 where a won, 1 where b won, 2 for a tie.
            n: the number of models.
            weights: shape (m,), how much each vote counts; see `inverse`.

        Raises:
            ValueError: for a model or an outcome that there is not.
        """
        keys = np.ravel_multi_index([np.asarray(each, np.int64) for each in (a, b, outcome)], (n, n, 3))
        counts = _upper(np.bincount(keys, minlength=n * n * 3), n)
        if weights is None:
            return cls(n, counts, counts.copy(), counts.copy())
        given = np.asarray(weights, np.float64)
        sums = (np.bincount(keys, each, minlength=n * n * 3) for each in (given, given**2))
        return cls(n, counts, *(_upper(each, n) for each in sums))

    def add(self, a: int, b: int, outcome: int, weight: float = 1.0, *, times: int = 1) -> None:
        """Counts one more vote; `times` = -1 takes one back."""
        if a == b:
            return
        if a > b:
            a, b, outcome = b, a, (B, A, TIE)[outcome]
        for array, amount in ((self.counts, 1.0), (self.weights, weight), (self.squares, weight**2)):
            array[a, b, outcome] += times * amount

    def __add__(self, other: "Cells") -> "Cells":
        """The votes of both."""
        sums = (self.counts + other.counts, self.weights + other.weights, self.squares + other.squares)
        return Cells(self.n, *sums)

    def __sub__(self, other: "Cells") -> "Cells":
        """These votes without those of the other, say of voters who are set aside."""
        differences = (self.counts - other.counts, self.weights - other.weights, self.squares - other.squares)
        return Cells(self.n, *differences)

    def widened(self, n: int) -> "Cells":
        """The same votes among n models, the new ones after the old."""
        room = [(0, n - self.n), (0, n - self.n), (0, 0)]
        return Cells(n, *(np.pad(each, room) for each in (self.counts, self.weights, self.squares)))

    def unweighted(self) -> "Cells":
        """The same votes, each counted as one."""
        return Cells(self.n, self.counts, self.counts, self.counts)

    def wins(self) -> Floats:
        """Shape (n, n), weighted; [i, j] is how often i beat j, a tie is half a win for both."""
        halves = self.weights[:, :, TIE] / 2
        return self.weights[:, :, A] + halves + (self.weights[:, :, B] + halves).T

    def games(self) -> Floats:
        """Shape (n, n), symmetric: votes on each pair, not weighted."""
        votes: Floats = self.counts.sum(axis=2)
        return votes + votes.T


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """Ratings of n models.

    Attributes:
        scores: shape (n,), points; 1000 is the mean of the models, in which one of few votes counts little, unless one
            is an anchor. A difference of 400 is 10 to 1.
        lower, upper: shape (n,), the 95 % interval of each score beside that mean. An anchor moves all alike.
        strengths: shape (n,), natural-log scale, mean 0; the `start` of the next fit.
        covariance: shape (n, n), of the strengths beside that mean.
        ranks: shape (n,), 1 is best; 1 + how many models are better beyond doubt, see `rank`.
    """

    scores: Floats
    lower: Floats
    upper: Floats
    strengths: Floats
    covariance: Floats
    ranks: Ints


def fit(
    cells: Cells,
    *,
    penalty: float = PENALTY,
    start: ArrayLike | None = None,
    anchor: tuple[int, float] | None = None,
) -> Fit:
    """The most likely strengths, with intervals by sandwich covariance.

    Args:
        cells: the votes.
        penalty: L2 weight on the strengths, above 0.
        start: strengths of an earlier fit, shape (n,) or shorter where models came since; the result is the same, sooner.
        anchor: a model and the score that it shall have.

    Raises:
        ValueError: if the penalty is not above 0.

    Source: Bradley & Terry (1952), ties as half wins; Newton's method on the n x n counts. The intervals are Huber's
    (1967), which trust the votes' spread and not the model's, as in arXiv 2403.04132 section 4.
    """
    if penalty <= 0:
        raise ValueError("a penalty above 0 keeps an unbeaten model finite")
    strengths = maximise(cells.wins(), penalty, _begin(start, cells.n))
    covariance = _sandwich(cells, strengths, penalty)
    weights = standing(cells)
    return described(strengths, beside(covariance, weights), weights, anchor)


def bootstrap(
    cells: Cells,
    rounds: int = 100,
    seed: int = 0,
    *,
    penalty: float = PENALTY,
    start: ArrayLike | None = None,
    anchor: tuple[int, float] | None = None,
) -> tuple[Floats, Floats]:
    """The 95 % interval of each score, as leagues that are drawn anew from the votes scatter.

    Each round draws as many votes from the cells, and a prior mean (see the module), and fits again, all rounds at once.
    The centre is that of `fit`, by whose anchor all are moved.

    Args:
        cells: the votes; in a cell all count with their mean weight.
        rounds: how many leagues.
        seed: the same gives the same.
        penalty, start, anchor: as for `fit`.

    Returns:
        Lower and upper bounds, shape (n,), points.

    Source: FastChat's multinomial draws of unique outcomes, without its loop over rounds.
    """
    n, weights = cells.n, standing(cells)
    strengths = maximise(cells.wins(), penalty, _begin(start, n))
    rng = np.random.default_rng(seed)
    drawn = []
    for done in range(0, rounds, _chunk(n)):
        size = min(_chunk(n), rounds - done)
        prior = rng.normal(scale=penalty**-0.5, size=(size, n))
        prior -= prior.mean(axis=1, keepdims=True) if n else 0
        begin = np.broadcast_to(strengths, (size, n))
        found = maximise(_redraw(cells, rng, size), penalty, begin, prior=prior, close=1e-5)
        drawn.append(found - (found @ weights)[:, None])
    if not drawn:
        raise ValueError("a bootstrap takes a round at least")
    bounds = np.quantile(np.concatenate(drawn), [0.025, 0.975], axis=0)
    lower, upper = bounds * POINTS + _offset(strengths - weights @ strengths, anchor)
    return lower, upper


def rank(lower: Floats, upper: Floats) -> Ints:
    """1 + the number of models whose lower bound exceeds one's upper bound, shape (n,)."""
    above = np.searchsorted(np.sort(lower), upper, side="right")
    return len(lower) + 1 - above


def pairs(fit: Fit, cells: Cells) -> tuple[Floats, Floats]:
    """What is known of each pair, for drawing the next one where a vote tells most.

    A pair is known by all votes, not only by its own: n_a is the number of votes on the pair alone that would tell as much
    of the difference of its two strengths as all votes together do, S_aa the variance that one vote has. So
    sqrt(S_aa / n_a) is the standard error of the difference, also for pairs that have never met.

    Returns:
        n_a and S_aa, each of shape (n, n), symmetric, 0 on the diagonal; `gains` makes of them what a vote gains.
    """
    own = np.diag(fit.covariance)
    spread = own[:, None] + own - 2 * fit.covariance
    told = expected(fit.strengths)
    told *= 1 - told  # by one vote
    apart = ~np.eye(cells.n, dtype=bool)
    variances = np.divide(1.0, told, out=np.zeros_like(told), where=apart)
    counts = np.divide(variances, spread, out=np.zeros_like(spread), where=apart)
    return counts, variances


def gains(counts: Floats, variances: Floats) -> Floats:
    """By how much a vote on each pair shrinks its standard error: the weights of active sampling.

    Args:
        counts, variances: n_a and S_aa from `pairs`.

    Returns:
        Shape (n, n), symmetric, 0 on the diagonal: sqrt(S_aa / n_a) - sqrt(S_aa / (n_a + 1)).

    Source: arXiv 2403.04132, equation 9.
    """
    now = np.divide(variances, counts, out=np.zeros_like(variances), where=counts > 0)
    return np.sqrt(now) - np.sqrt(variances / (counts + 1))


def inverse(probabilities: ArrayLike, most: float = 100.0) -> Floats:
    """Weights that undo the drawing: as if every pair had been drawn alike.

    Args:
        probabilities: shape (m,), with which each vote's pair was drawn; 0 where it was not drawn but chosen.
        most: the largest weight, so that no single vote decides.

    Returns:
        Shape (m,), 1 / p over its mean, and 1 for pairs that were not drawn; for `Cells.of`.
    """
    given = np.asarray(probabilities, np.float64)
    drawn = given > 0
    if not drawn.any():
        return np.ones_like(given)
    weights = np.divide(1.0, given, out=np.ones_like(given), where=drawn)
    weights[drawn] /= weights[drawn].mean()
    return np.minimum(weights, most)


def expected(strengths: Floats) -> Floats:
    """Shape (..., n, n): the part of its games with j that i wins."""
    half: Floats = np.tanh((strengths[..., :, None] - strengths[..., None, :]) / 2)
    return (1 + half) / 2


def maximise(
    wins: Floats, penalty: float, start: Floats, *, prior: Floats | float = 0.0, close: float = CLOSE
) -> Floats:
    """The strengths under which the wins are likeliest, less penalty / 2 times their square, by Newton's method.

    Args:
        wins: shape (..., n, n), any number of leagues.
        penalty: see the module.
        start: shape (..., n).
        prior: shape (..., n), where the penalty pulls to.
        close: a step below it in every league ends the search.

    Returns:
        Shape (..., n).
    """
    games = wins + np.swapaxes(wins, -1, -2)
    strengths, loss = start, _loss(wins, start, penalty, prior)
    for _ in range(STEPS if start.size else 0):
        chances = expected(strengths)
        slope = (wins - games * chances).sum(axis=-1) - penalty * (strengths - prior)
        bend = laplacian(games * chances * (1 - chances), penalty)
        step = np.linalg.solve(bend, slope[..., None])[..., 0]
        strengths, loss = _walk(wins, strengths, step, loss, penalty, prior)
        if np.abs(step).max() < close:
            break
    return strengths


def softplus(logits: Floats) -> Floats:
    """log(1 + exp(logits)), several times as fast as `np.logaddexp`."""
    result: Floats = np.log1p(np.exp(-np.abs(logits)))
    result += np.maximum(logits, 0)
    return result


def laplacian(links: Floats, penalty: float) -> Floats:
    """Shape (..., n, n): what pairs with such links add up to, and the penalty on the diagonal."""
    matrix = -links
    diagonal = np.einsum("...ii->...i", matrix)
    diagonal += links.sum(axis=-1) + penalty
    return matrix


def standing(cells: Cells) -> Floats:
    """How much each model counts in the mean that is 1000 points, shape (n,), sum 1.

    With many votes all count alike; a newcomer, of whom nobody knows where it belongs, moves nobody.
    """
    votes = cells.games().sum(axis=1)
    weights: Floats = (votes + 1e-9) / (votes + FEW)
    weights /= weights.sum()
    return weights


def beside(covariance: Floats, weights: Floats) -> Floats:
    """The covariance of strengths less their weighted mean, shape (n, n)."""
    across = covariance @ weights
    return covariance - across[:, None] - across + weights @ across


def described(strengths: Floats, covariance: Floats, weights: Floats, anchor: tuple[int, float] | None) -> Fit:
    """Strengths as scores with intervals and ranks; the covariance is that beside the weighted mean."""
    beside = strengths - weights @ strengths
    scores = beside * POINTS + _offset(beside, anchor)
    reach = NORMAL_95 * POINTS * np.sqrt(np.diag(covariance).clip(0))
    lower, upper = scores - reach, scores + reach
    return Fit(scores, lower, upper, strengths, covariance, rank(lower, upper))


def _walk(
    wins: Floats, strengths: Floats, step: Floats, loss: Floats, penalty: float, prior: Floats | float
) -> tuple[Floats, Floats]:
    """Newton's step, halved in each league for which it would be too long; the new strengths and their loss."""
    part = np.ones((*step.shape[:-1], 1))
    for _ in range(HALVINGS):
        there = strengths + part * step
        after = _loss(wins, there, penalty, prior)
        worse = after > loss + 1e-9 * (1 + np.abs(loss))
        if not worse.any():
            break
        part[worse] /= 2
    return there, after


def _loss(wins: Floats, strengths: Floats, penalty: float, prior: Floats | float) -> Floats:
    """Shape (...): minus the logarithm of the likelihood, and the penalty."""
    missed = softplus(strengths[..., None, :] - strengths[..., :, None])
    loss: Floats = np.einsum("...ij,...ij->...", wins, missed)
    loss += penalty / 2 * np.square(strengths - prior).sum(axis=-1)
    return loss


def _sandwich(cells: Cells, strengths: Floats, penalty: float) -> Floats:
    """The covariance of the strengths, but for that of their mean, shape (n, n)."""
    chances = expected(strengths)
    wins = cells.wins()
    bend = laplacian((wins + wins.T) * chances * (1 - chances), penalty)
    misses = (1 - chances, chances, chances - 0.5)  # of what was expected: i won, j won, neither
    spread = sum((cells.squares[:, :, k] * miss**2 for k, miss in enumerate(misses)), np.zeros_like(chances))
    scatter = laplacian(spread + spread.T, penalty)
    bend += np.diag(bend).mean() / cells.n if cells.n else 0  # holds the mean, which no vote tells
    inverse = np.linalg.inv(bend)
    covariance: Floats = inverse @ scatter @ inverse
    return covariance


def _redraw(cells: Cells, rng: np.random.Generator, rounds: int) -> Floats:
    """Wins in leagues with as many votes, drawn from these, shape (rounds, n, n)."""
    n = cells.n
    found = np.flatnonzero(cells.counts > 0)
    counts = cells.counts.reshape(-1)[found]
    means = cells.weights.reshape(-1)[found] / counts
    total = counts.sum()
    wins = np.zeros((rounds, n * n))
    if not total:
        return wins.reshape(rounds, n, n)
    votes = rng.multinomial(round(total), counts / total, size=rounds) * means
    place, how = np.divmod(found, 3)
    i, j = np.divmod(place, n)
    for ahead, behind, side in ((i, j, A), (j, i, B)):
        for share, kind in ((1.0, side), (0.5, TIE)):
            chosen = how == kind
            wins[:, ahead[chosen] * n + behind[chosen]] += share * votes[:, chosen]
    return wins.reshape(rounds, n, n)


def _upper(sums: NDArray[np.generic], n: int) -> Floats:
    """Cells by (left, right, outcome), folded to those with i < j."""
    cells = sums.reshape(n, n, 3).astype(np.float64)
    folded: Floats = cells + cells.transpose(1, 0, 2)[:, :, [B, A, TIE]]
    folded[np.tril_indices(n)] = 0
    return folded


def _begin(start: ArrayLike | None, n: int) -> Floats:
    strengths = np.zeros(n)
    if start is not None:
        known = np.asarray(start, np.float64)
        strengths[: len(known)] = known
    return strengths


def _offset(beside: Floats, anchor: tuple[int, float] | None) -> float:
    if anchor is None:
        return CENTRE
    model, score = anchor
    return float(score - beside[model] * POINTS)


def _chunk(n: int) -> int:
    return max(1, ROOM // max(1, n * n))
