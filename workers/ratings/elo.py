"""Online Elo: ratings that each vote moves a little, in the order in which votes come.

A vote costs the same whenever it comes, and none is looked at twice. The order matters, so two leagues with the same
votes may differ; Bradley-Terry's ratings are what ranks go by.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

START, STEP = 1000.0, 4.0
PER_POINT = math.log(10) / 400
WON = (1.0, 0.0, 0.5)  # by a, for each outcome


@dataclass(slots=True)
class Elo:
    """Ratings that go on from vote to vote.

    Attributes:
        ratings: points of each model, 1000 before its first vote.
    """

    ratings: list[float]

    @classmethod
    def of(cls, n: int) -> "Elo":
        """Of n models that nobody has voted on."""
        return cls([START] * n)

    def widen(self, n: int) -> None:
        """Lets models in until there are n."""
        self.ratings += [START] * (n - len(self.ratings))

    def add(self, a: ArrayLike, b: ArrayLike, outcome: ArrayLike) -> None:
        """Takes votes in, the oldest first.

        Args:
            a, b: shape (m,), the models.
            outcome: shape (m,), 0 where a won, 1 where b won, 2 for a tie, which is half a win.

        Source: Elo (1978) with K = 4, as FastChat has it.
        """
        ratings, exp = self.ratings, math.exp
        votes = (np.asarray(each, np.int64).tolist() for each in (a, b, outcome))
        for left, right, how in zip(*votes, strict=True):
            chance = 1 / (1 + exp((ratings[right] - ratings[left]) * PER_POINT))
            move = STEP * (WON[how] - chance)
            ratings[left] += move
            ratings[right] -= move
