"""Our attention gives what the stock one gives, in every mix of prompt and decode steps."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from workers.engine.attention import attend, plan

HEADS, SHARED, WIDTH, SLOTS = 6, 2, 8, 400


class Allocator:
    """One layer's part of the cache, as transformers lays it out: one row of heads per slot."""

    index = 0

    def __init__(self) -> None:
        self._kv_token_views = {3: (torch.zeros(SLOTS, SHARED, WIDTH), torch.zeros(SLOTS, SHARED, WIDTH))}


class Cache:
    """A cache with one layer."""

    def __init__(self) -> None:
        self.layer_to_allocator = {3: Allocator()}


class Layer(torch.nn.Module):
    """What attention reads of a layer."""

    layer_idx = 3


@pytest.mark.parametrize(
    "lengths",
    [
        [(0, 5)],
        [(7, 1)],
        [(7, 1), (30, 1), (1, 1)],
        [(0, 4), (9, 1), (12, 6), (0, 1), (3, 1)],
    ],
)
def test_every_request_attends_to_its_own_keys(lengths: list[tuple[int, int]]) -> None:
    generator = torch.Generator().manual_seed(0)
    cache = Cache()
    keys, values = cache.layer_to_allocator[3]._kv_token_views[3]
    keys.normal_(generator=generator)
    values.normal_(generator=generator)
    free = torch.randperm(SLOTS, generator=generator).tolist()
    places = [[free.pop() for _ in range(past + new)] for past, new in lengths]
    tokens = sum(new for _, new in lengths)
    query = torch.randn(1, HEADS, tokens, WIDTH, generator=generator)
    key, value = torch.randn(2, 1, SHARED, tokens, WIDTH, generator=generator)
    write = torch.tensor([slot for place, (past, _) in zip(places, lengths, strict=True) for slot in place[past:]])
    read = torch.tensor([slot for place in places for slot in place] if any(past for past, _ in lengths) else [])

    made = plan(lengths, read)
    out, _ = attend(Layer(), query, key, value, None, scaling=0.3, cache=cache, plan=made, write_index=[write])

    assert keys[write].equal(key[0].transpose(0, 1))
    begin = 0
    for place, (past, new) in zip(places, lengths, strict=True):
        mask = torch.ones(new, past + new, dtype=torch.bool).tril(past)
        k, v = (part[place].transpose(0, 1).repeat_interleave(HEADS // SHARED, 0)[None] for part in (keys, values))
        expected = scaled_dot_product_attention(query[:, :, begin : begin + new], k, v, attn_mask=mask, scale=0.3)
        assert torch.allclose(out[:, begin : begin + new], expected.transpose(1, 2), atol=1e-5)
        begin += new


def test_what_it_does_not_know_is_refused() -> None:
    some = torch.zeros(1, 1, 1, 1)
    with pytest.raises(NotImplementedError):
        attend(Layer(), some, some, some, None, plan=plan([(0, 1)], torch.tensor([])), softcap=30.0)
