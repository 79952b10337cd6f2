"""Attention over the cache is what attention over the plain keys is. Whole models are compared in test_equality.py."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from workers.engine.attention import Plan, Singles, Span, attend

HEADS, KV_HEADS, WIDTH, SLOTS = 4, 2, 8, 64


def plain(query: Any, key: Any, value: Any, mask: Any, softcap: float | None, sinks: Any) -> Any:
    """The formula, head by head: (queries, heads, width) over (keys, kv heads, width)."""
    out = torch.empty(query.shape)
    for head in range(HEADS):
        scores = query[:, head] @ key[:, head // 2].T * WIDTH**-0.5
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        weights = scores.masked_fill(~mask, -torch.inf).exp()
        below = weights.sum(-1, keepdim=True)
        if sinks is not None:
            below = below + sinks[head].exp()
        out[:, head] = weights / below @ value[:, head // 2]
    return out


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("sinks", [None, torch.linspace(-1, 2, HEADS)])
@pytest.mark.parametrize("window", [None, 5])
def test_a_step_of_prompts_and_answers_equals_the_formula(softcap: Any, sinks: Any, window: Any) -> None:
    torch.manual_seed(0)
    keys, values = torch.randn(SLOTS, KV_HEADS, WIDTH), torch.randn(SLOTS, KV_HEADS, WIDTH)
    q, k, v = (torch.randn(1, n, 6, WIDTH) for n in (HEADS, KV_HEADS, KV_HEADS))
    # In this step: an answer with 7 keys, a prompt of three tokens without a past, one of two with a past of four.
    answer, past = torch.tensor([9, 4, 33, 2, 50, 51, 52]), torch.tensor([20, 22, 24, 21])
    if window:
        answer, past = answer[-window:], past[-(window - 1) :]
    writes = torch.tensor([52, 30, 31, 32, 40, 41])
    mask = torch.ones(2, len(past) + 2, dtype=torch.bool).tril(len(past))
    if window:
        mask.triu_(len(past) - window + 1)
    plan = Plan(
        writes,
        (Singles(torch.tensor([0]), answer, None),),
        (Span(slice(1, 4), None, None), Span(slice(4, 6), past, mask)),
        window,
    )
    before = keys.clone(), values.clone()
    cache = SimpleNamespace(layer_to_allocator={0: SimpleNamespace(index=0, _kv_token_views={0: (keys, values)})})
    module: Any = SimpleNamespace(layer_idx=0)
    found, _ = attend(
        module, q, k, v, None, softcap=softcap, s_aux=sinks, sliding_window=window, cache=cache, plans=[plan]
    )

    new = [x[0].transpose(0, 1) for x in (q, k, v)]
    assert torch.equal(keys[writes], new[1])
    assert torch.equal(values[writes], new[2])
    whole = torch.ones(1, len(answer), dtype=torch.bool)
    expected = [plain(new[0][:1], keys[answer], values[answer], whole, softcap, sinks)]
    expected.append(plain(*(x[1:4] for x in new), torch.ones(3, 3, dtype=torch.bool).tril(), softcap, sinks))
    both = [torch.cat((old[past], x[4:])) for old, x in zip(before, new[1:], strict=True)]
    expected.append(plain(new[0][4:], *both, mask, softcap, sinks))
    assert torch.allclose(found[0], torch.cat(expected), atol=1e-5)


def test_what_is_not_known_is_refused() -> None:
    x = torch.zeros(1, 2, 1, 8)
    module: Any = SimpleNamespace(layer_idx=0)
    with pytest.raises(NotImplementedError, match="not known"):
        attend(module, x, x, x, None, plans=[], position_bias=x)
    cache = SimpleNamespace(layer_to_allocator={0: SimpleNamespace(index=0)})
    with pytest.raises(NotImplementedError, match="window"):
        attend(module, x, x, x, None, plans=[Plan(x, (), (), None)], sliding_window=4, cache=cache)
