"""Simulated leagues: models of known strengths, and votes on them."""

import math
import random

import numpy as np

from broker import keys
from broker.connection import Broker
from broker.messages import new_id
from broker.votes import Vote
from helpers import vote_fields

DAY_MS = 86_400_000
BATCH = 20_000


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


async def season(
    broker: Broker, models: list[str], votes: int, *, begins: int = 1_770_000_000_000, days: int = 60, seed: int = 1
) -> None:
    """Votes of some weeks in the stream, on models of which each is a little better than the next."""
    rng = np.random.default_rng(seed)
    sides = league(rng, np.linspace(1.2, -1.2, len(models)), votes, ties=0.15)
    styles = rng.integers(0, (400, 3, 9, 6), (votes, 2, 4))
    of = rng.choice(("coding en", "math en", "en", "zh", "zh multi-turn"), votes)
    voters = [new_id() for _ in range(max(20, votes // 40))]
    rows = zip(*(side.tolist() for side in sides), styles.tolist(), of.tolist(), strict=True)
    async with broker.redis.pipeline(transaction=False) as pipe:
        for i, (a, b, outcome, (style_a, style_b), categories) in enumerate(rows):
            vote = Vote(
                battle=new_id(),
                kind="late" if i % 97 == 0 else "blind",
                winner=("a", "b", "tie")[outcome],
                a=models[a],
                b=models[b],
                voter=voters[i % len(voters)],
                at=begins + i * days * DAY_MS // votes,
                categories=tuple(categories.split()),
                style_a=tuple(style_a),
                style_b=tuple(style_b),
                leak=i % 89 == 0,
            )
            pipe.xadd(keys.VOTES, vote_fields(vote))
            if len(pipe) == BATCH:
                await pipe.execute()
        await pipe.execute()
