"""Simulated leagues: models of known strengths, and votes on them."""

import math
import random

import numpy as np


def league(rng, strengths, votes, ties=0.0):
    """Votes on models drawn at random: a, b, outcome."""
    n = len(strengths)
    a = rng.integers(0, n, votes)
    b = (a + rng.integers(1, n, votes)) % n
    return a, b, outcomes(rng, strengths[a] - strengths[b], ties)


def outcomes(rng, logits, ties=0.0):
    """How votes end when the logarithm of the odds is for the left by so much.

    Even pairs have that part of ties, others fewer: half a win for a tie leaves what is expected of each as it is.
    """
    chance, place = 1 / (1 + np.exp(-logits)), rng.random(len(logits))
    half = ties * np.minimum(chance, 1 - chance)
    return np.where(place < chance - half, 0, np.where(place > chance + half, 1, 2))


def battles(size=3000, models=8, seed=0):
    """Battles that are the same with every version of numpy: a, b, outcome, and counts of style of both, shape (m, 4)."""
    numbers = random.Random(seed)
    rows = []
    for _ in range(size):
        a = int(numbers.random() * models)
        b = (a + 1 + int(numbers.random() * (models - 1))) % models
        counts = [int(most * numbers.random() ** 2) for most in (900, 5, 20, 12) * 2]
        logit = 0.3 * (a - b) + 0.7 * (counts[0] - counts[4]) / (counts[0] + counts[4] + 1)
        chance = 0.8 / (1 + math.exp(-logit))
        place = numbers.random()
        rows.append([a, b, 0 if place < chance else 1 if place < 0.8 else 2, *counts])
    columns = np.array(rows)
    return *columns.T[:3], columns[:, 3:7], columns[:, 7:]
