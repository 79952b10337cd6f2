"""Every sampling parameter does what its formula says, and nothing but its own row changes what a row is given."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from broker.messages import Sampling, Structure
from tests.tiny_model import END, tokenizer
from workers.engine import draws as module
from workers.engine.noise import log_uniform
from workers.engine.sampling import Row, Sampler, prompt_logprobs
from workers.engine.structure import Grammars

VOCAB = 24
NONE: frozenset[int] = frozenset()
GREEDY = Sampling(temperature=0)
KEY_12345_6 = 0xDC8941A125078031


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On a machine with other work, tensors as small as these wait for a second thread longer than they compute."""
    with threads(1):
        yield


def row(
    sampling: Sampling, said: Sequence[int] = (), prompt: Sequence[int] = (), end_ids: frozenset[int] = NONE
) -> Row:
    return Row(sampling, end_ids, prompt, said)


def pick(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    return Sampler(torch.device("cpu")).pick(logits, rows).tokens


def some_logits(rows: int, vocab: int, spread: float = 2.0, seed: int = 1) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def reference(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution as transformers makes it, in float64."""
    steps: list[LogitsProcessor] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.min_p > 0:
        steps.append(MinPLogitsWarper(sampling.min_p))
    if sampling.top_k > 0:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    scores: Any = logits.double()[None]
    for step in steps:
        scores = step(None, scores)  # type: ignore[arg-type]
    return torch.as_tensor(scores[0].softmax(-1))


def draws(logits: Tensor, sampling: Sampling, n: int) -> Tensor:
    """How often each token is picked in n draws: 100 seeds, and as many positions as are needed."""
    rows = [row(replace(sampling, seed=seed)) for seed in range(100)]
    sampler, batch = Sampler(torch.device("cpu")), logits.expand(100, -1).contiguous()
    picks = []
    for _ in range(n // 100):
        picks += sampler.pick(batch, rows).tokens
        for one in rows:
            one.advance(0)
    return torch.tensor(picks).bincount(minlength=len(logits)).double()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.5),
        Sampling(temperature=1.7),
        Sampling(temperature=0.7, top_p=0.9),
        Sampling(temperature=1.5, top_p=0.3),
        Sampling(temperature=1.0, top_p=0.01),
        Sampling(temperature=1.0, top_k=5),
        Sampling(temperature=1.0, top_k=1),
        Sampling(temperature=1.0, top_k=VOCAB),
        Sampling(temperature=1.0, top_k=1000),
        Sampling(temperature=2.0, min_p=0.1),
        Sampling(temperature=1.0, min_p=1.0),
        Sampling(temperature=1.3, top_k=7, top_p=0.8),
        Sampling(temperature=2.0, top_k=9, min_p=0.2, top_p=0.7),
        Sampling(temperature=2.0, min_p=0.15, top_p=0.8),
    ],
    ids=lambda s: f"t{s.temperature}-k{s.top_k}-p{s.top_p}-m{s.min_p}",
)
@pytest.mark.parametrize("vocab", [VOCAB, 300])
def test_draws_have_the_distribution_of_transformers(sampling: Sampling, vocab: int) -> None:
    logits, n = some_logits(1, vocab)[0], 3_000
    counts, expected = draws(logits, sampling, n), reference(logits, sampling) * n
    assert counts[expected == 0].sum() == 0
    seen = expected > 5
    chi_square = ((counts - expected)[seen] ** 2 / expected[seen]).sum().item()
    freedom = max(1, int(seen.sum()) - 1)
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations


@pytest.mark.parametrize("vocab", [10, 1_000, 8_192, 20_011])
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
def test_only_what_the_filters_leave_is_picked(vocab: int, spread: float) -> None:
    logits = some_logits(4, vocab, spread, seed=2)
    kinds = [
        Sampling(temperature=0.8, top_p=0.1),
        Sampling(temperature=0.8, top_p=0.95),
        Sampling(temperature=0.8, top_k=min(40, vocab - 1), top_p=0.9),
        Sampling(temperature=0.8, top_k=min(700, vocab)),
        Sampling(temperature=0.8, min_p=0.3),
    ]
    for sampling in kinds:
        allowed = torch.stack([reference(one, sampling) for one in logits]) > 0
        rows = [row(replace(sampling, seed=seed)) for seed in range(4)]
        for _ in range(8):
            assert allowed[torch.arange(4), pick(logits, rows)].all()
            for one in rows:
                one.advance(0)


def test_equals_at_an_edge_all_stay_in() -> None:
    logits = torch.full((VOCAB,), -4.0)
    logits[[3, 5, 8, 13]] = 1.0
    logits[2] = 2.0
    for sampling in (
        Sampling(temperature=1, top_k=2),
        Sampling(temperature=1, top_p=0.5),
        Sampling(temperature=1, top_k=5, top_p=0.5),
        Sampling(temperature=1, min_p=math.exp(-1)),
    ):
        assert set(draws(logits, sampling, 400).nonzero()[:, 0].tolist()) == {2, 3, 5, 8, 13}
    flat = torch.zeros(5_000)
    assert draws(flat, Sampling(temperature=1, top_k=2), 1_000).count_nonzero() > 800
    assert draws(flat, Sampling(temperature=1, top_k=2, top_p=0.1), 1_000).count_nonzero() > 800


def test_greedy_is_arg_max_and_takes_the_first_of_equals() -> None:
    logits = some_logits(5, 1_000)
    logits[3, [7, 900]] = 50.0
    assert pick(logits, [row(GREEDY)] * 5) == logits.argmax(-1).tolist()
    assert pick(logits, [row(Sampling(temperature=1e-6, seed=3))] * 5)[3] == 7
    for kind in (
        Sampling(temperature=2e-5),
        Sampling(temperature=2e-5, top_k=5),
        Sampling(temperature=2e-5, top_p=0.9),
    ):
        assert pick(logits[:3], [row(kind)] * 3) == logits[:3].argmax(-1).tolist()


def plain(logits: Tensor, sampling: Sampling, prompt: Sequence[int], said: Sequence[int]) -> Tensor:
    """The logits after bias and penalties, one token after another."""
    scores = logits.double().tolist()
    for token, bias in sampling.logit_bias:
        scores[token] += bias
    for token in {*prompt, *said}:
        by = sampling.repetition_penalty
        scores[token] = scores[token] / by if scores[token] > 0 else scores[token] * by
    for token in set(said):
        scores[token] -= sampling.presence_penalty + sampling.frequency_penalty * said.count(token)
    return torch.tensor(scores)


@pytest.mark.parametrize(
    "sampling",
    [
        replace(GREEDY, logit_bias=((3, 100.0), (4, -100.0))),
        replace(GREEDY, logit_bias=((3, -100.0), (VOCAB + 5, 100.0), (-1, 100.0))),
        replace(GREEDY, repetition_penalty=1.7),
        replace(GREEDY, repetition_penalty=0.6),
        replace(GREEDY, presence_penalty=1.5),
        replace(GREEDY, frequency_penalty=0.8),
        replace(GREEDY, presence_penalty=0.5, frequency_penalty=-0.5),
        replace(GREEDY, logit_bias=((1, 2.0),), repetition_penalty=1.3, presence_penalty=-0.4, frequency_penalty=0.3),
    ],
)
def test_bias_and_penalties_are_their_formulas(sampling: Sampling) -> None:
    """Greedy, step by step: the pick is the arg-max of what the formulas give, and temperature 1 has their softmax."""
    prompt, generator = [1, 2, 2, 9], torch.Generator().manual_seed(4)
    inside = replace(sampling, logit_bias=tuple((i, b) for i, b in sampling.logit_bias if 0 <= i < VOCAB))
    said = [5]
    one = row(sampling, said, prompt)
    for _ in range(40):
        logits = torch.randn(1, VOCAB, generator=generator)
        before = logits.clone()
        token = pick(logits, [one])[0]
        assert logits.equal(before)
        assert token == plain(logits[0], inside, prompt, said).argmax()
        one.advance(token)
        said.append(token)
    counts = torch.zeros(VOCAB, dtype=torch.float64)
    for seed in range(40):
        same = [row(replace(sampling, temperature=1.0, seed=seed * 50 + i), said, prompt) for i in range(50)]
        counts += torch.tensor(pick(logits.expand(50, -1).contiguous(), same)).bincount(minlength=VOCAB)
    expected = plain(logits[0], inside, prompt, said).softmax(-1) * 2_000
    seen = expected > 5
    freedom = max(1, int(seen.sum()) - 1)
    assert ((counts - expected)[seen] ** 2 / expected[seen]).sum() < freedom + 4 * (2 * freedom) ** 0.5


def test_repetition_penalty_is_that_of_transformers() -> None:
    sampling, prompt, said = replace(GREEDY, repetition_penalty=1.4), [1, 2, 3, 3], [4, 4, 5]
    processor: Any = RepetitionPenaltyLogitsProcessor(1.4)
    for seed in range(50):
        logits = some_logits(1, VOCAB, seed=seed)
        expected = processor(torch.tensor([prompt + said]), logits.clone()).argmax().item()
        assert pick(logits, [row(sampling, said, prompt)]) == [expected]


def test_end_tokens_are_forbidden_until_min_tokens() -> None:
    logits = some_logits(1, VOCAB)
    logits[0, [3, 7]] = torch.tensor([50.0, 40.0])
    sampler = Sampler(torch.device("cpu"))
    for sampling in (replace(GREEDY, min_tokens=3), Sampling(temperature=0.5, top_k=4, min_tokens=3)):
        one = row(sampling, end_ids=frozenset({3, 7, VOCAB + 1}))
        for _ in range(3):
            token = sampler.pick(logits, [one]).tokens[0]
            assert token not in {3, 7, -1}
            one.advance(token)
        assert sampler.pick(logits, [one]).tokens == [3]
    assert pick(logits, [row(replace(GREEDY, min_tokens=3), said=[1, 1, 1], end_ids=frozenset({3}))]) == [3]


def test_an_end_token_is_allowed_where_nothing_else_is() -> None:
    logits = torch.full((2, VOCAB), -torch.inf)
    logits[0, 3] = 1.0
    assert pick(logits, [row(replace(GREEDY, min_tokens=3), end_ids=frozenset({3}))] * 2) == [3, -1]


def test_a_structure_binds_its_own_row_and_its_end_comes_before_min_tokens() -> None:
    made, ends = tokenizer(), frozenset({END})
    vocab = len(made)
    grammars = Grammars(made, vocab, ends)
    word = Structure("choice", '["aa"]')
    free = replace(GREEDY, logit_bias=((7, 100.0),))
    held = [
        GREEDY,
        Sampling(temperature=1.0, min_tokens=99),
        Sampling(temperature=1.0, top_k=3, repetition_penalty=1.1),
    ]
    rows = [row(free), *(Row(s, ends, (), (), grammars.compile(word)) for s in held), row(GREEDY)]
    sampler, said = Sampler(torch.device("cpu")), [list[int]() for _ in rows]
    for step in range(3):
        logits = some_logits(5, vocab, seed=step)
        tokens = sampler.pick(logits, rows).tokens
        assert tokens[0] == 7
        assert tokens[4] == logits[4].argmax()
        for one, before, token in zip(rows, said, tokens, strict=True):
            before.append(token)
            if token != END:
                one.advance(token)
    for before in said[1:4]:
        assert made.decode(before[: before.index(END)]) == "aa"


def everything() -> list[Sampling]:
    kinds = [
        GREEDY,
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_p=0.9, top_k=40),
        Sampling(temperature=0.9, top_p=0.6),
        Sampling(temperature=1.1, top_k=300),
        Sampling(temperature=1.3, min_p=0.05),
        Sampling(temperature=1.3, min_p=0.05, top_k=63, top_p=0.5),
        Sampling(temperature=1.0, top_k=3),
    ]
    changed = [
        replace(s, repetition_penalty=1.2, frequency_penalty=0.2, logit_bias=((5, 3.0),), min_tokens=3) for s in kinds
    ]
    return [replace(s, seed=i, logprobs=i % 4 or None) for i, s in enumerate((kinds + changed) * 2)]


@pytest.mark.parametrize("vocab", [500, 3_001, 49_152])
def test_batch_mates_order_threads_and_a_resume_change_nothing(vocab: int) -> None:
    samplings, prompt, ends = everything(), [1, 2, 3], frozenset({0, 4})
    steps = [some_logits(len(samplings), vocab, 1.5, seed) for seed in range(3)]
    steps[1][:, : vocab // 2] = steps[1][:, :1]  # many equals
    rows = [Row(s, ends, prompt, ()) for s in samplings]
    sampler, said = Sampler(torch.device("cpu")), [list[int]() for _ in rows]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(3)).tolist()
    for logits in steps:
        together = sampler.pick(logits, rows)
        resumed = [Row(s, ends, prompt, before) for s, before in zip(samplings, said, strict=True)]
        alone = [pick(logits[i : i + 1], [resumed[i]])[0] for i in range(len(rows))]
        with threads(2 if logits is steps[2] else 1):
            shuffled = pick(logits[order], [resumed[i] for i in order])
        assert together.tokens == alone
        assert [together.tokens[i] for i in order] == shuffled
        assert sorted(together.logprobs) == [i for i, s in enumerate(samplings) if s.logprobs is not None]
        for one, before, token in zip(rows, said, together.tokens, strict=True):
            one.advance(token)
            before.append(token)


def test_weights_and_their_sums_have_the_same_bits_in_any_batch() -> None:
    logits, sampling = some_logits(32, 8_192), Sampling(temperature=0.7, min_p=0.001)

    def sums(some: Tensor) -> Any:
        group = module.Group.of([row(sampling)] * len(some), some.device)
        return module.sums_of(module.blocks_of(module.weigh(some, group)))

    together = sums(logits)
    for n in (1, 2):
        with threads(n):
            assert all((sums(logits[i : i + 1]) == together[i]).all() for i in range(4))
            assert (sums(logits[3:8]).sum(1) == together[3:8].sum(1)).all()
            assert (sums(logits) == together).all()
    assert all(together[i : i + 1].sum(1) == together.sum(1)[i] for i in range(32))


def test_a_seed_and_a_position_have_noise_of_their_own() -> None:
    logits = torch.zeros(1, 1_000)
    picks = {
        (seed, n): pick(logits, [row(Sampling(1.0, seed=seed), [0] * n)])[0] for seed in range(9) for n in range(9)
    }
    assert len(set(picks.values())) > 70
    assert pick(logits, [row(Sampling(1.0, seed=2**64 + 3))]) == [picks[3, 0]]  # 64 bits of a seed count
    assert pick(logits, [row(Sampling(1.0, seed=-1))])[0] >= 0


def words(seeds: Iterable[int], positions: Iterable[int], attempts: Iterable[int] = (0,)) -> Any:
    keys = [row(Sampling(seed=seed), [0] * n).key(a) for seed in seeds for n in positions for a in attempts]
    return np.array(keys, np.uint64)


def test_noise_is_gumbel_and_independent_of_its_neighbours() -> None:
    keys = words(range(10), range(20), range(2))
    noise = -np.log(-log_uniform(keys, np.arange(-1_000, 1_000)))  # (400, 2000); blocks have the ids below 0
    assert np.isfinite(noise).all()
    assert abs(noise.mean() - 0.5772) < 0.01
    assert abs(noise.var() - math.pi**2 / 6) < 0.02
    assert np.abs(np.corrcoef(noise) - np.eye(400)).max() < 0.13  # nearly six standard deviations
    assert np.abs(np.corrcoef(noise.T[850:1150]) - np.eye(300)).max() < 0.3


def test_the_noise_of_a_block_is_not_that_of_the_token_with_its_number() -> None:
    counts = draws(torch.zeros(2 * module.BLOCK), Sampling(temperature=1.0), 20_000)
    expected = 20_000 / len(counts)
    assert (counts[:2] - expected).abs().max() < 4.5 * expected**0.5


def test_noise_is_the_documented_hash() -> None:
    """Answers under way are continued by workers of another version: the numbers are part of the contract."""

    def finish(word: int) -> int:
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
        return word ^ (word >> 31)

    key = row(Sampling(seed=12345), [0] * 6).key()
    golden = 0x9E3779B97F4A7C15
    assert key == finish((finish((12345 + golden) % 2**64) ^ 6) + golden & 2**64 - 1) == KEY_12345_6
    for token in (0, 1, 151_000, -7):
        word = finish((key + token * golden) % 2**64)
        expected = math.log(((word >> 12) + 0.5) / 2**52)
        assert log_uniform(np.array([key], np.uint64), np.array([token]))[0, 0] == pytest.approx(expected, rel=1e-12)


def test_the_greatest_are_found_in_any_width() -> None:
    for vocab in (7, 640, 1_311, 1_312, 8_192, 50_257):
        values = some_logits(3, vocab, seed=vocab)
        for n in (1, 5, 41, 700):
            found, ids = module.top(values, min(n, vocab))
            expected = values.topk(min(n, vocab))
            assert found.equal(expected.values)
            assert ids.equal(expected.indices)


def test_logits_that_are_not_finite_are_seen_and_spoil_no_other_row() -> None:
    logits = torch.zeros(5, 5_000)
    logits[1, 400] = torch.nan
    logits[2] = -torch.inf
    logits[3, 7] = torch.inf
    for sampling in everything()[:16]:
        one = row(replace(sampling, logprobs=2), end_ids=frozenset({1}))
        picked = Sampler(torch.device("cpu")).pick(logits, [one] * 5)
        assert picked.tokens[1:4] == [-1] * 3
        assert picked.tokens[0] == picked.tokens[4] >= 0
        assert sorted(picked.logprobs) == [0, 4]


def test_tokens_at_minus_infinity_are_never_picked() -> None:
    logits = torch.full((5_000,), -torch.inf)
    logits[[3, 4_000]] = torch.tensor([1.0, 0.0])
    for sampling in everything()[:8]:
        assert set(draws(logits, sampling, 100).nonzero()[:, 0].tolist()) <= {3, 4_000}


def test_logprobs_are_those_of_the_model_before_everything_else() -> None:
    logits = some_logits(4, 9_000, 4.0)
    expected = logits.log_softmax(-1)
    base = Sampling(temperature=0.3, top_k=2, repetition_penalty=1.5, logit_bias=((1, 5.0),))
    wanted = (0, None, 20, 3)
    rows = [row(replace(base, logprobs=n), prompt=[1, 2]) for n in wanted]
    picked = Sampler(torch.device("cpu")).pick(logits, rows)
    assert sorted(picked.logprobs) == [0, 2, 3]
    for i, (own, top) in picked.logprobs.items():
        n = wanted[i] or 0
        assert own == pytest.approx(expected[i, picked.tokens[i]].item(), abs=1e-5)
        values, ids = expected[i].topk(n)
        assert [token for token, _ in top] == ids.tolist()
        assert [value for _, value in top] == pytest.approx(values.tolist(), abs=1e-5)


def test_prompt_logprobs_are_those_of_the_targets() -> None:
    logits, targets = some_logits(6, 300), [3, 1, 4, 1, 5, 299]
    logits[0, 3] = -torch.inf
    expected = logits.log_softmax(-1)
    for i, (own, top) in enumerate(prompt_logprobs(logits, targets, 2)):
        assert own == pytest.approx(max(-9999.0, expected[i, targets[i]].item()), abs=1e-5)
        assert [token for token, _ in top] == expected[i].topk(2).indices.tolist()
    assert [top for _, top in prompt_logprobs(logits, targets, 0)] == [[]] * 6
    json.dumps(prompt_logprobs(logits, targets, 2), allow_nan=False)
