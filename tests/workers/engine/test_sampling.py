"""The sampler draws from the right distribution, and batch mates and order change nothing."""

import math

import pytest
import torch
from torch import Tensor

from workers.engine.sampling import NARROW, Draw, key, noise, pick

VOCAB = 24
KEY_12345_6 = (621248561, -594984543)


def nucleus(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """The distribution that top-p leaves, the plain way: sort everything, keep the fewest that reach top_p."""
    probs = (logits.double() / temperature).softmax(-1)
    ordered, ids = probs.sort(descending=True)
    ordered[ordered.cumsum(-1) - ordered >= top_p] = 0
    kept = torch.zeros_like(probs).scatter(-1, ids, ordered)
    return kept / kept.sum()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (0.7, 0.9), (1.5, 0.5), (1.0, 0.01)])
def test_draws_follow_the_softmax(temperature: float, top_p: float) -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1)) * 2
    n = 20_000
    draws = [Draw(temperature, top_p, seed=i // 100, position=i % 100) for i in range(n)]
    counts = pick(logits.expand(n, -1).contiguous(), draws).bincount(minlength=VOCAB).double()
    expected = nucleus(logits, temperature, top_p) * n
    assert counts[expected == 0].sum() == 0
    seen = expected > 5
    chi_square = ((counts - expected)[seen] ** 2 / expected[seen]).sum().item()
    freedom = max(1, int(seen.sum()) - 1)
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations


@pytest.mark.parametrize("vocab", [10, NARROW, NARROW + 1, 5_000])
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
def test_top_p_keeps_exactly_the_nucleus(vocab: int, spread: float) -> None:
    logits = torch.randn(4, vocab, generator=torch.Generator().manual_seed(2)) * spread
    for top_p in (0.1, 0.95):
        allowed = torch.stack([nucleus(row, 0.8, top_p) > 0 for row in logits])
        masked = logits.masked_fill(~allowed, -torch.inf)
        for position in range(8):
            draws = [Draw(0.8, top_p, seed, position) for seed in range(4)]
            free = [Draw(0.8, 1.0, seed, position) for seed in range(4)]
            assert pick(logits, draws).equal(pick(masked, free))


def test_greedy_is_arg_max() -> None:
    logits = torch.randn(5, 100)
    assert pick(logits, [Draw()] * 5).equal(logits.argmax(-1))
    assert pick(logits, [Draw(temperature=1e-9, seed=3)] * 5).equal(logits.argmax(-1))


def test_batch_mates_and_order_change_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(40, 3_000, generator=generator) * 3
    draws = [Draw((0.0, 0.7, 1.3)[i % 3], (1.0, 0.9)[i % 2], seed=i, position=i * 7) for i in range(40)]
    together = pick(logits, draws)
    alone = torch.cat([pick(logits[i : i + 1], [draws[i]]) for i in range(40)])
    order = torch.randperm(40, generator=generator)
    shuffled = pick(logits[order], [draws[i] for i in order])
    assert together.equal(alone)
    assert together[order].equal(shuffled)


def test_noise_is_the_same_whatever_the_shape() -> None:
    keys = torch.tensor([key(seed, 5) for seed in range(33)], dtype=torch.int32)
    ids = torch.arange(50_001, dtype=torch.int32)
    whole = noise(keys, ids)
    assert noise(keys[7:8], ids).equal(whole[7:8])
    some = torch.tensor([[40_000, 3, 17]], dtype=torch.int32)
    assert noise(keys[7:8], some).equal(whole[7:8, [40_000, 3, 17]])


def test_noise_is_gumbel_and_independent_of_its_neighbours() -> None:
    keys = torch.tensor([key(seed, position) for seed in range(20) for position in range(20)], dtype=torch.int32)
    drawn = noise(keys, torch.arange(2_000, dtype=torch.int32)).double()  # (400, 2000)
    assert drawn.isfinite().all()
    assert abs(drawn.mean().item() - 0.5772) < 0.01
    assert abs(drawn.var().item() - torch.pi**2 / 6) < 0.02
    correlation = torch.corrcoef(drawn)
    assert (correlation - torch.eye(400)).abs().max() < 0.13  # nearly six standard deviations
    assert torch.corrcoef(drawn.T[:300]).fill_diagonal_(0).abs().max() < 0.3


def test_noise_is_the_documented_hash() -> None:
    """Answers under way are continued by workers of another version: the numbers are part of the contract."""

    def scramble(word: int) -> int:
        word = (word ^ (word >> 16)) * 0x7FEB352D % 2**32
        word = (word ^ (word >> 15)) * 0x846CA68B % 2**32
        return word ^ (word >> 16)

    first, second = key(12345, 6)
    for token in (0, 1, 151_000):
        word = scramble(scramble((token + first) % 2**32) ^ second % 2**32) ^ 2**31  # the sign bit comes first
        expected = -math.log(-math.log((word + 0.5) / 2**32))
        drawn = noise(torch.tensor([[first, second]], dtype=torch.int32), torch.tensor([token], dtype=torch.int32))
        assert drawn.item() == pytest.approx(expected, rel=1e-6)
    assert (first, second) == KEY_12345_6


def test_logits_that_are_not_finite_are_seen() -> None:
    logits = torch.zeros(3, 500)
    logits[1, 400] = torch.nan
    logits[2] = -torch.inf
    for draw in (Draw(), Draw(0.7), Draw(0.7, 0.9)):
        picks = pick(logits, [draw] * 3)
        assert picks[0] >= 0
        assert picks[1:].tolist() == [-1, -1]
