"""Which two models meet in a blind round.

Comes in: the models that run, the operator's rules, and the table of what votes have told about each pair. Goes out: a
pair, with the probability that it had, so that ratings can be weighted by it. By default the pairs whose difference is
least certain are drawn more often: as the width of their interval would shrink by one more vote (arXiv 2403.04132). Pure.
"""

import math
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from random import Random
from typing import Any, Self

from broker.errors import TooFewModels
from broker.rules import Rules, Sampling, matches

UNSEEN = 4.0  # a pair without votes counts so many times as much as the one of which a vote would tell most
LEAST = 1e-12  # of what a vote tells, so that nothing is divided by zero
ROUNDS = 20  # of making targets true for several models that share rivals

Indices = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Odds:
    """Every pair that may meet, and how often it does. To be kept until models, rules or table change."""

    pairs: Sequence[tuple[str, str]]
    probabilities: Sequence[float]
    _sums: Sequence[float]

    @classmethod
    def of(cls, models: Sequence[str], rules: Rules, table: Mapping[str, Any] | None = None) -> Self:
        """Of the models that may be drawn now.

        Args:
            table: {names, count, variance}, the last two a row for each name; names that it lacks have no votes yet.

        Raises:
            TooFewModels: no two of them may meet.
        """
        sampling = rules.sampling
        weights = {model: _weight(model, sampling) for model in dict.fromkeys(models)}
        names = [model for model, weight in weights.items() if weight]
        allowed = [
            pair for pair in combinations(range(len(names)), 2) if _meet(names[pair[0]], names[pair[1]], sampling)
        ]
        if not allowed:
            raise TooFewModels
        told = _told(names, allowed, table) if sampling.active and table else [1.0] * len(allowed)
        shares = [t * weights[names[i]] * weights[names[j]] for t, (i, j) in zip(told, allowed, strict=True)]
        shares = _aimed(names, allowed, shares, sampling.targets)
        total, even = math.fsum(shares), sampling.floor / len(allowed)
        probabilities = [even + (1 - sampling.floor) * share / total for share in shares]
        return cls([(names[i], names[j]) for i, j in allowed], probabilities, list(accumulate(probabilities)))

    def draw(self, rng: Random) -> tuple[str, str, float]:
        """The left model, the right one, and the probability of the two in either order."""
        at = min(bisect(self._sums, rng.random() * self._sums[-1]), len(self.pairs) - 1)
        a, b = self.pairs[at]
        if rng.random() < 0.5:
            a, b = b, a
        return a, b, self.probabilities[at]


def _weight(model: str, sampling: Sampling) -> float:
    """How often a model is drawn, beside others; 0: never. What is over would only be lost in the sum."""
    if matches(model, sampling.outages):
        return 0.0
    return min(_of(model, sampling.weights, sampling.default) * _of(model, sampling.boosts, 1.0), 1e12)


def _of(model: str, by_name: Mapping[str, float], otherwise: float) -> float:
    """The value of a name; before a pattern counts what it is called exactly."""
    if model in by_name:
        return by_name[model]
    return next((value for pattern, value in by_name.items() if matches(model, [pattern])), otherwise)


def _meet(a: str, b: str, sampling: Sampling) -> bool:
    if any((matches(a, [x]) and matches(b, [y])) or (matches(b, [x]) and matches(a, [y])) for x, y in sampling.never):
        return False
    return _fits(a, b, sampling.strict) and _fits(b, a, sampling.strict)


def _fits(model: str, rival: str, strict: Mapping[str, Sequence[str]]) -> bool:
    """Whether a model's own list, if it has one, has room for this rival."""
    lists = [list(rivals) for name, rivals in strict.items() if matches(model, [name])]
    return not lists or any(matches(rival, rivals) for rivals in lists)


def _told(names: Sequence[str], pairs: Sequence[Indices], table: Mapping[str, Any]) -> list[float]:
    """What one more vote on each pair would tell: by so much its interval would be narrower."""
    count, variance = table.get("count", ()), table.get("variance", ())
    place = {name: i for i, name in enumerate(table.get("names", ())[: len(count)])}
    rows = [place.get(name) for name in names]

    def gain(pair: Indices) -> float | None:
        i, j = rows[pair[0]], rows[pair[1]]
        if i is None or j is None or not count[i][j] > 0:
            return None
        one_vote, n = variance[i][j], count[i][j]
        return max(math.sqrt(one_vote / n) - math.sqrt(one_vote / (n + 1)), LEAST)

    gains = [gain(pair) for pair in pairs]
    most = max((found for found in gains if found is not None), default=1.0)
    return [UNSEEN * most if found is None else found for found in gains]


def _aimed(
    names: Sequence[str], pairs: Sequence[Indices], shares: Sequence[float], targets: Mapping[str, Sequence[str]]
) -> list[float]:
    """The shares such that a model that has targets meets them in half of its battles."""
    aims = []
    for model, rivals in targets.items():
        mine = [
            (k, names[j if names[i] == model else i]) for k, (i, j) in enumerate(pairs) if model in (names[i], names[j])
        ]
        wanted = [k for k, rival in mine if matches(rival, list(rivals))]
        others = [k for k, rival in mine if not matches(rival, list(rivals))]
        if wanted and others:
            aims.append((wanted, others))
    found = list(shares)
    for _ in range(ROUNDS if len(aims) > 1 else 1):
        for wanted, others in aims:
            factor = math.fsum(found[k] for k in others) / math.fsum(found[k] for k in wanted)
            for k in wanted:
                found[k] *= factor
    return found
