"""Simulated leagues: models of known strengths, and votes on them."""

import numpy as np


def league(rng, strengths, votes, ties=0.0):
    """Votes on models drawn at random: a, b, outcome."""
    n = len(strengths)
    a = rng.integers(0, n, votes)
    b = (a + rng.integers(1, n, votes)) % n
    return a, b, outcomes(rng, strengths[a] - strengths[b], ties)


def outcomes(rng, logits, ties=0.0):
    """How votes end when the logarithm of the odds is for the left by so much; some are ties whatever it is."""
    won = rng.random(len(logits)) < 1 / (1 + np.exp(-logits))
    return np.where(rng.random(len(logits)) < ties, 2, np.where(won, 0, 1))
