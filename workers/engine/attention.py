"""Attention over the paged cache for CPUs, registered with transformers under NAME.

The stock way attends with one dense mask over the keys of all requests together, so its work grows with the square of
the batch. Here requests with one new token are one batched call over their own keys, and each request that is reading
its prompt is a call of its own. Full attention only: sliding windows, soft caps and the like stay with the stock way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "fleetchat_paged"
UNKNOWN = ("softcap", "s_aux", "position_bias", "sliding_window")  # arguments that would change the result


@dataclass(frozen=True, slots=True)
class Span:
    """A request that reads several tokens in this step."""

    queries: slice  # its rows among the step's tokens
    past: int  # tokens that it has in the cache
    slots: Tensor | None  # shape (past + new,), where its keys lie in the cache; None when there is no past


@dataclass(frozen=True, slots=True)
class Plan:
    """Who attends to what in one step; made once, used by every layer."""

    singles: Tensor  # shape (n,), rows of the tokens that stand alone
    slots: Tensor  # shape (n * longest,), where their keys lie in the cache
    mask: Tensor  # shape (n, 1, 1, longest), true where there is a key
    spans: tuple[Span, ...]


def plan(lengths: Sequence[tuple[int, int]], read_index: Tensor) -> Plan:
    """The plan of a step.

    Args:
        lengths: per request, in the order of the step, tokens in the cache before it and new tokens.
        read_index: where all requests' keys lie, one request after the other; empty when none has a past.
    """
    rows, starts, counts, spans = [], [], [], []
    query = start = 0
    for past, new in lengths:
        if new == 1 and past:
            rows.append(query)
            starts.append(start)
            counts.append(past + 1)
        else:
            slots = read_index[start : start + past + new] if past else None
            spans.append(Span(slice(query, query + new), past, slots))
        query += new
        start += past + new
    count = torch.tensor(counts, dtype=torch.int64)[:, None]
    column = torch.arange(max(counts, default=0))
    mask = column < count  # (n, longest)
    where = (torch.tensor(starts, dtype=torch.int64)[:, None] + column).masked_fill_(~mask, 0)
    slots = read_index[where.flatten()] if counts else where.flatten()
    return Plan(torch.tensor(rows, dtype=torch.int64), slots, mask[:, None, None, :], tuple(spans))


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    cache: Any = None,
    plan: Plan | None = None,
    write_index: Sequence[Tensor] = (),
    **others: Any,
) -> tuple[Tensor, None]:
    """Writes the new keys and values to the cache and attends.

    Args:
        query: shape (1, heads, tokens, width); key and value have fewer heads where they are shared.

    Returns:
        Shape (1, tokens, heads, width).
    """
    if plan is None or any(others.get(name) is not None for name in UNKNOWN):
        raise NotImplementedError("this attention knows neither soft caps, sinks, biases nor windows")
    allocator = cache.layer_to_allocator[module.layer_idx]
    keys, values = allocator._kv_token_views[module.layer_idx]  # (slots, kv heads, width)
    new_keys, new_values = key[0].transpose(0, 1), value[0].transpose(0, 1)  # (tokens, kv heads, width)
    keys.index_copy_(0, write_index[allocator.index], new_keys)
    values.index_copy_(0, write_index[allocator.index], new_values)

    _, heads, tokens, width = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    queries = query[0].transpose(0, 1)  # (tokens, heads, width)
    out = query.new_empty(tokens, heads, width)
    if n := len(plan.singles):
        shape = (n, -1, kv_heads, width)
        out[plan.singles] = scaled_dot_product_attention(
            queries[plan.singles].view(n, kv_heads, group, width),  # heads that share a key stand as its queries
            keys.index_select(0, plan.slots).view(shape).transpose(1, 2),
            values.index_select(0, plan.slots).view(shape).transpose(1, 2),
            attn_mask=plan.mask,
            scale=scaling,
        ).reshape(n, heads, width)
    for span in plan.spans:
        rows = span.queries
        k = new_keys[rows] if span.slots is None else keys.index_select(0, span.slots)
        v = new_values[rows] if span.slots is None else values.index_select(0, span.slots)
        q = queries[rows].transpose(0, 1)[None]  # (1, heads, new, width)
        new = q.shape[2]
        causal = span.slots is None
        mask = None if causal else torch.ones(new, span.past + new, dtype=torch.bool).tril_(span.past)
        out[rows] = scaled_dot_product_attention(
            q,
            k.transpose(0, 1).repeat_interleave(group, 0)[None],
            v.transpose(0, 1).repeat_interleave(group, 0)[None],
            attn_mask=mask,
            is_causal=causal,
            scale=scaling,
        )[0].transpose(0, 1)
    return out[None], None


AttentionInterface.register(NAME, attend)
