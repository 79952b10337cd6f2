"""What a device draws by itself is what the host draws, and it asks the host nothing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from broker.messages import Sampling
from tests.workers.engine.test_sampling import some_logits
from workers.engine import draws
from workers.engine.draws import NOT_FINITE, UNDECIDED
from workers.engine.noise import log_uniform, log_uniform_there
from workers.engine.sampling import Row, Sampler

KINDS = [
    Sampling(temperature=0.0),
    Sampling(temperature=0.7),
    Sampling(temperature=1.4, min_p=0.02),
    Sampling(temperature=0.8, top_p=0.9),
    Sampling(temperature=1.0, top_p=0.95, min_p=0.01),
    Sampling(temperature=1.0, top_k=1),
    Sampling(temperature=1.0, top_k=5),
    Sampling(temperature=0.9, top_k=40, top_p=0.8),
    Sampling(temperature=1.2, top_k=63, min_p=0.05),
    Sampling(temperature=1.2, top_k=200, top_p=0.95),
]


def rows(samplings: list[Sampling], said: int = 0) -> list[Row]:
    return [Row(replace(s, seed=seed), frozenset(), (), [0] * said) for seed, s in enumerate(samplings)]


def both(logits: Tensor, some: list[Row], ahead: int = 0) -> tuple[list[int], list[int]]:
    """What the device picks, and what the host does behind `ahead` tokens more."""
    sampler = Sampler(torch.device("cpu"))
    there = sampler.pick_there(logits, some, ahead).tolist()
    for row in some:
        for _ in range(ahead):
            row.advance(0)
    return there, sampler.pick(logits, some).tokens


@pytest.mark.parametrize("vocab", [24, 300, 8_192, 50_001])
@pytest.mark.parametrize("spread", [0.3, 2.0, 8.0])
def test_a_device_picks_as_the_host_does(vocab: int, spread: float) -> None:
    samplings = [replace(s, top_k=min(s.top_k, vocab)) for s in KINDS] * 4
    undecided, picked = 0, set()
    for step in range(8):
        logits = some_logits(len(samplings), vocab, spread, step)
        there, here = both(logits, rows(samplings, step), step % 2)
        assert [pick for pick in there if pick != UNDECIDED] == [
            b for a, b in zip(there, here, strict=True) if a != UNDECIDED
        ]
        undecided += there.count(UNDECIDED)
        picked |= set(there)
    assert undecided <= 2  # of 320
    assert len(picked) >= min(vocab, 20) / 2


def test_equals_at_an_edge_are_decided_up_to_a_number() -> None:
    """Logits of 16 bits have many of them."""
    kinds = [s for s in KINDS if s.top_k] * 4
    for seed in range(8):
        logits = some_logits(len(kinds), 50_000, 2.0, seed).bfloat16().float()
        there, here = both(logits, rows(kinds))
        assert there == here
    logits = torch.zeros(len(kinds), 1_000)
    logits[:, : 5 + draws.SPARE] = 1.0  # as many as a top-k of 5 bears
    kinds = [replace(kind, top_k=5) for kind in kinds]
    there, here = both(logits, rows(kinds))
    assert there == here
    logits[:, 5 + draws.SPARE] = 1.0
    there, here = both(logits, rows(kinds))
    assert set(there) == {UNDECIDED}
    assert len(set(here)) > 5
    assert max(here) <= 5 + draws.SPARE


def test_a_nucleus_that_was_missed_too_often_is_left_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    some = rows([Sampling(temperature=1.0, top_p=0.5)] * 200)
    logits = some_logits(200, 3_000)
    missed = []
    for attempts in (1, 2, 4):
        monkeypatch.setattr(draws, "ATTEMPTS", attempts)
        there, here = both(logits, some)
        assert all(a in (b, UNDECIDED) for a, b in zip(there, here, strict=True))
        missed.append(there.count(UNDECIDED))
    assert 150 > missed[0] > missed[1] > missed[2]


def test_logits_that_are_not_finite_are_seen_and_spoil_no_other_row() -> None:
    logits = some_logits(5, 5_000)
    logits[1, 400] = torch.nan
    logits[2] = -torch.inf
    logits[3, 7] = torch.inf
    for kind in KINDS:
        there, here = both(logits, rows([kind] * 5))
        assert there == here
        assert there[1:4] == [NOT_FINITE] * 3


class Unmasked(TorchDispatchMode):
    """Refuses what picks out by a mask: on a GPU it waits for how many there are, and that is not said below."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func.overloadpacket).startswith("aten.index"):
            assert not [index for index in tree_leaves(args) if isinstance(index, Tensor) and index.dtype == torch.bool]
        return func(*args, **kwargs or {})


def test_nothing_is_read_while_it_is_drawn() -> None:
    """Tensors without values raise where a value would be needed, and so where a GPU would have to be waited for."""
    nowhere = torch.device("meta")
    for order in (KINDS, KINDS[::2] + KINDS[1::2]):
        with Unmasked():
            picks = Sampler(nowhere).pick_there(torch.empty(len(order), 50_000, device=nowhere), rows(order), 1)
        assert picks.shape == (len(order),)


def test_the_noise_of_a_device_is_that_of_the_host() -> None:
    keys = np.array([row.key(a) for row in rows(KINDS) for a in range(4)], np.uint64)
    ids = np.concatenate([np.arange(-500, 500), [200_000, 2**31 - 1]])
    there = log_uniform_there(torch.tensor(keys.view(np.int64)), torch.tensor(ids)).numpy()
    np.testing.assert_allclose(there, log_uniform(keys, ids), rtol=4e-16)
