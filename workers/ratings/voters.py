"""Which voters to set aside: those whose votes differ too much from everybody else's, and votes over a day's cap.

In come votes with their voters; out come suspects and masks over the votes. Nothing is deleted: a mask that is not applied
is a vote that counts again.

A voter is measured against history: how the same pair ended in the votes of all others, of whom none is heard for much
more than is usual. Where a pair has little history, what the ratings expect of it fills in. Each vote gets a p-value in
each direction in which a voter may go astray: for one model or against it, to the left or to the right, to ties, or to
whatever is rare. A voter's are combined as in Fisher's test. Voters who are set aside leave history, and all are measured
again without them, so that several who push together do not make their way look usual.

Tastes differ, so what counts as honest has a leeway: straying less is no anomaly, however many votes show it. A voter
who hides among as many honest votes can stay below it; the cap is for those.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workers.ratings import bradley_terry
from workers.ratings.bradley_terry import TIE, Cells, Floats, Ints

Mask = NDArray[np.bool_]

RATE = 0.01  # of those set aside, how many may be honest
LEAST = 5  # votes of a voter, or of a voter on a model, that are looked at
HEARD = 20.0  # votes of one voter that history hears in full, or the usual number if that is more
FOLDS = 8
EXPECTED = 10.0  # votes of history that the ratings' expectation is worth
ROUNDS = 10  # of setting aside and measuring again
FAVOUR = 0.3  # to a model or a side that is still a taste, as a difference of strengths
TIES = 1.0  # what the logarithm of the odds of a tie may be more by
CARELESS = 0.3  # part of the votes that may be at random
TILTS = (0.5, 1.0, 2.0, 5.0)  # of which the one that says most about a voter is taken


@dataclass(frozen=True, slots=True)
class Suspect:
    """A voter whose votes are set aside.

    Attributes:
        voter: as it was given.
        votes: how many it has cast.
        p_value: how likely, at most, an honest voter ever looks like this, in whatever direction.
    """

    voter: int | str
    votes: int
    p_value: float


def suspects(
    voter: ArrayLike, a: ArrayLike, b: ArrayLike, outcome: ArrayLike, n: int, *, rate: float = RATE
) -> list[Suspect]:
    """The voters to set aside, the least likely to be honest first.

    Args:
        voter: shape (m,), who voted, as integers (quicker) or strings.
        a, b: shape (m,), the models on the left and on the right.
        outcome: shape (m,), 0 where a won, 1 where b won, 2 for a tie. All in the order in which the votes came.
        n: the number of models.
        rate: which part of those set aside may be honest, by Benjamini and Hochberg's procedure (1995).

    Source: arXiv 2403.04132 section 5.1: a vote's p-value is the part of its pair's history that goes as far in the
    direction, the vote itself counted, and they are combined by Fisher's sum of logarithms. There the sum is held against
    chi-squared, which votes with three outcomes can hardly exceed (of an even pair, none is below 1/2), at five moments.
    Here it is held against what the three outcomes of each vote allow, by Chernoff's bound, which by Ville's inequality
    (1939) is good for all moments at once.
    """
    ids, who = np.unique(np.asarray(voter), return_inverse=True)
    left, right, how = (np.asarray(each, np.int64) for each in (a, b, outcome))
    met = left != right
    votes = _Votes.of(who[met], left[met], right[met], how[met], n, len(ids))
    groups = _grouped(votes)
    guilty, chances = np.zeros(len(ids), bool), np.ones(len(ids))
    for _ in range(ROUNDS):
        chances = _p_values(votes, groups, guilty)
        found = _least_likely(chances, rate)
        if (found == guilty).all():
            break
        guilty = found
    counts = np.bincount(who, minlength=len(ids))
    order = np.flatnonzero(guilty)
    order = order[np.argsort(chances[order], kind="stable")]
    return [Suspect(ids[k].item(), int(counts[k]), float(chances[k])) for k in order]


def aside(voter: ArrayLike, found: Iterable[Suspect]) -> Mask:
    """Which votes are of suspects, shape (m,), True to be set aside."""
    return np.isin(np.asarray(voter), [each.voter for each in found])


def within_cap(voter: ArrayLike, day: ArrayLike, cap: int) -> Mask:
    """Which votes are among the first of their voter on their day, as many as the cap allows.

    Args:
        voter: shape (m,), integers or strings, in the order in which the votes came.
        day: shape (m,), integers.
        cap: votes of a voter a day that count.

    Returns:
        Shape (m,), True for votes that count.
    """
    _, who = np.unique(np.asarray(voter), return_inverse=True)
    _, when = np.unique(np.asarray(day), return_inverse=True)
    keys = who * (when.max(initial=0) + 1) + when
    order = np.argsort(keys, kind="stable")
    starts, sizes = _runs(keys[order])
    within = np.empty(len(keys), bool)
    within[order] = np.arange(len(keys)) - np.repeat(starts, sizes) < cap
    return within


@dataclass(frozen=True, slots=True, eq=False)
class _Votes:
    """m votes, no model against itself, with what does not change from round to round.

    Voters are dealt into folds, and each is measured against the votes of the other folds, so nobody against its own. A
    cell is a fold, a pair and an outcome that came; all votes in a cell say the same about their voters.
    """

    n: int
    who: Ints  # (m,), voters as numbers from 0
    cell: Ints  # (m,), a place in `codes`
    codes: Ints  # (cells,), ((fold * n + lower model) * n + higher model) * 3 + 0: lower won, 1: higher, 2: neither
    swapped: Mask  # (m,), the higher model was on the left
    heard: Floats  # (voters,), how much each one's votes count in history

    @classmethod
    def of(cls, who: Ints, a: Ints, b: Ints, outcome: Ints, n: int, voters: int) -> "_Votes":
        swapped = a > b
        how = np.where(swapped & (outcome != TIE), 1 - outcome, outcome)
        pair = np.where(swapped, b * n + a, a * n + b)
        codes, cell = np.unique((who % FOLDS * n**2 + pair) * 3 + how, return_inverse=True)
        votes = np.bincount(who, minlength=voters)
        usual = max(HEARD, float(np.median(votes[votes >= LEAST]))) if votes.max(initial=0) >= LEAST else HEARD
        heard = np.minimum(1, usual / np.maximum(1, votes))
        return cls(n, who, cell, codes, swapped, heard)

    def history(self, guilty: Mask) -> Floats:
        """How likely each pair ends how, after the votes of the other folds' voters who are not guilty, and itself.

        Returns:
            Shape (cells, 3): the lower model wins, the higher one does, neither.
        """
        sums = np.zeros((FOLDS, self.n, self.n, 3))
        sums.reshape(-1)[self.codes] = np.bincount(self.cell, (self.heard * ~guilty)[self.who], len(self.codes))
        counts: Floats = sums.sum(axis=0)
        chance = bradley_terry.expected(bradley_terry.fit(Cells(self.n, counts, counts, counts)).strengths)
        ties = np.minimum(counts[:, :, TIE].sum() / max(1.0, counts.sum()), 2 * np.minimum(chance, 1 - chance))
        foretold = np.stack([chance - ties / 2, 1 - chance - ties / 2, ties], axis=2)
        known = (counts + EXPECTED * foretold - sums).clip(1e-9)  # of each fold
        fold, seen = np.divmod(self.codes, 3)
        shares: Floats = known.reshape(-1, 3)[fold] + np.eye(3)[seen]  # with the outcome seen
        shares /= shares.sum(axis=1, keepdims=True)
        return shares


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """Entries put together, say votes by voter, each group in the order of time; groups of few entries are left out."""

    entries: Ints  # (entries,), group by group: which evidence
    starts: Ints  # (groups,), the place of the group's first
    who: Ints  # (groups,), the voter

    @classmethod
    def of(cls, entries: Ints, keys: Ints, who: Ints) -> "_Groups":
        order = np.argsort(keys, kind="stable")
        _, sizes = _runs(keys[order])
        many = sizes >= LEAST
        order, sizes = order[np.repeat(many, sizes)], sizes[many]
        starts = sizes.cumsum() - sizes
        return cls(entries[order], starts, who[order[starts]])

    def most(self, evidence: Floats) -> Floats:
        """The sum of the entries' evidence up to where it is greatest, shape (groups,)."""
        if not len(self.starts):
            return np.zeros(0)
        sums = evidence[self.entries].cumsum()
        before = np.append(0.0, sums)[self.starts]
        most: Floats = np.maximum.reduceat(sums, self.starts) - before
        return most


def _grouped(votes: _Votes) -> tuple[_Groups, _Groups]:
    """Votes by voter, and their two sides by voter and model.

    Evidence is for the lower models first, then for the higher ones: entries are cells, those of the latter further on.
    """
    cells = len(votes.codes)
    left = votes.cell + cells * votes.swapped
    pair = votes.codes[votes.cell] // 3 % votes.n**2
    models = np.stack([pair // votes.n, pair % votes.n], axis=1).reshape(-1)
    sides = np.stack([votes.cell, votes.cell + cells], axis=1).reshape(-1)
    twice = np.repeat(votes.who, 2)
    return _Groups.of(left, votes.who, votes.who), _Groups.of(sides, twice * votes.n + models, twice)


def _p_values(votes: _Votes, groups: tuple[_Groups, _Groups], guilty: Mask) -> Floats:
    """How likely each voter is honest, shape (voters,), when those who are guilty are no part of history."""
    shares = votes.history(guilty)
    seen = votes.codes % 3
    lower = _ordered(shares[:, [0, TIE, 1]], np.array([0, 2, 1])[seen])
    higher = _ordered(shares[:, [1, TIE, 0]], np.array([2, 0, 1])[seen])
    ways = [np.concatenate(each) for each in zip(lower, higher, strict=True)]
    against = [np.concatenate(each) for each in zip(higher, lower, strict=True)]
    either = [np.tile(each, 2) for each in (*_tied(shares[:, TIE], seen == TIE), *_rare(shares, seen))]

    most, looks = np.zeros(len(guilty)), np.zeros(len(guilty))
    for group, evidence, directions in zip(
        groups, ([*ways, *against, *either], [*ways, *against]), (4, 2), strict=True
    ):
        for each in evidence:
            np.maximum.at(most, group.who, group.most(each))
        looks += directions * len(TILTS) * np.bincount(group.who, minlength=len(guilty))
    chances: Floats = np.minimum(1, np.exp(-most) * np.maximum(1, looks))
    return chances


def _ordered(shares: Floats, seen: Ints) -> list[Floats]:
    """Evidence that a voter favours what comes first; `shares` are those of a win, a tie and a loss, shape (cells, 3)."""
    honest = shares * np.exp(FAVOUR * np.array([1, 0.5, 0]))
    honest /= honest.sum(axis=1, keepdims=True)
    return _evidence(honest, honest.cumsum(axis=1), seen)


def _tied(tie: Floats, seen: Mask) -> list[Floats]:
    """Evidence that a voter calls everything a tie."""
    more = tie * np.exp(TIES)
    honest = np.stack([more, 1 - tie], axis=1) / (more + 1 - tie)[:, None]
    return _evidence(honest, honest.cumsum(axis=1), np.where(seen, 0, 1))


def _rare(shares: Floats, seen: Ints) -> list[Floats]:
    """Evidence that a voter votes at random, or the other way around."""
    honest = (1 - CARELESS) * shares + CARELESS / 3
    as_rare = np.stack([(honest * (honest <= each[:, None])).sum(axis=1) for each in honest.T], axis=1)
    return _evidence(honest, as_rare, seen)


def _evidence(honest: Floats, p_values: Floats, seen: Ints) -> list[Floats]:
    """For each tilt, minus the logarithm of a bound on how likely honest votes surprise as much; to be added up.

    Args:
        honest: shape (cells, outcomes), how likely each outcome is.
        p_values: shape (cells, outcomes), that each would have.
        seen: shape (cells,), which it was.
    """
    surprise = -np.log(p_values.clip(1e-12, 1))
    came = surprise[np.arange(len(seen)), seen]
    return [tilt * came - np.log((honest * np.exp(tilt * surprise)).sum(axis=1)) for tilt in TILTS]


def _runs(keys: Ints) -> tuple[Ints, Ints]:
    """Where each run of equal keys starts, and how long it is."""
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
    return starts, np.diff(np.append(starts, len(keys)))


def _least_likely(chances: Floats, rate: float) -> Mask:
    """Benjamini and Hochberg's choice of p-values, of which at most the rate are chosen by chance."""
    order = np.argsort(chances, kind="stable")
    good = np.flatnonzero(chances[order] <= rate * np.arange(1, len(order) + 1) / len(order))
    chosen = np.zeros(len(chances), bool)
    chosen[order[: good[-1] + 1 if len(good) else 0]] = True
    return chosen
