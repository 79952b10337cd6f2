"""Attention over the paged cache, registered with transformers under NAME, for every family and device.

The stock way attends with one dense mask over the keys of all requests together, so its work grows with the square of
the batch. Here requests with one new token are batched calls over their own keys, those of about one length together,
and each request that is reading its prompt is a call of its own. Sliding windows, soft caps and sinks are in the
arithmetic; a kind of attention that is not raises NotImplementedError in the first step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "fleetchat_paged"
UNKNOWN = ("position_bias", "head_mask")  # arguments that would change the result


@dataclass(frozen=True, slots=True)
class Singles:
    """Requests with one new token and about as many keys."""

    rows: Tensor | None  # shape (n,), their tokens among the step's; None: they are all there is, in order
    slots: Tensor  # shape (n * longest,), where their keys lie in the cache, the new ones among them
    mask: Tensor | None  # shape (n, 1, 1, longest), true where there is a key; None: everywhere


@dataclass(frozen=True, slots=True)
class Span:
    """A request that reads several tokens in this step."""

    queries: slice  # its rows among the step's tokens
    past: Tensor | None  # shape (past,), where the keys before them lie in the cache; None when there are none
    mask: Tensor | None  # shape (new, past + new), true where a query sees a key; None: causal, without a past


@dataclass(frozen=True, slots=True)
class Plan:
    """Who attends to what in the layers of one kind; made once a step, used by every such layer."""

    writes: Tensor  # shape (tokens,), where the new keys go
    singles: tuple[Singles, ...]
    spans: tuple[Span, ...]
    window: int | None  # tokens that a query sees, itself among them


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    sliding_window: int | None = None,
    cache: Any = None,
    plans: Sequence[Plan] | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Writes the new keys and values to the cache and attends.

    Args:
        query: shape (1, heads, tokens, width); key and value have fewer heads where they are shared.
        softcap: scores are squeezed between its negative and itself (Gemma 2).
        s_aux: shape (heads,), a score that takes part in the softmax and has no value (gpt-oss).
        plans: by the number of the layer's allocator in the cache.

    Returns:
        Shape (1, tokens, heads, width).
    """
    if plans is None or any(others.get(name) is not None for name in UNKNOWN):
        raise NotImplementedError(f"{type(module).__name__} attends in a way that is not known here")
    allocator = cache.layer_to_allocator[module.layer_idx]
    plan = plans[allocator.index]
    if sliding_window is not None and plan.window is None:
        raise NotImplementedError(f"{type(module).__name__} has a window that its configuration does not tell")
    keys, values = allocator._kv_token_views[module.layer_idx]  # (slots, kv heads, width)
    new_keys, new_values = key[0].transpose(0, 1), value[0].transpose(0, 1)  # (tokens, kv heads, width)
    _, heads, tokens, width = query.shape
    kv_heads, depth = key.shape[1], value.shape[3]
    group = heads // kv_heads
    queries = query[0].transpose(0, 1)  # (tokens, heads, width)
    out = query.new_empty(tokens, heads, depth) if plan.spans or len(plan.singles) > 1 else query

    for span in plan.spans:  # before the writes: in a window, new keys take the places of old ones
        rows = span.queries
        k, v = _joined(keys, span.past, new_keys[rows]), _joined(values, span.past, new_values[rows])
        shared = (kv_heads, group, *k.shape[::2])  # heads that share a key
        out[rows] = (
            _attention(
                queries[rows].transpose(0, 1).reshape(kv_heads, group, -1, width),
                k.transpose(0, 1)[:, None].expand(shared),
                v.transpose(0, 1)[:, None].expand(*shared[:3], depth),
                span.mask,
                span.mask is None,
                scaling,
                softcap,
                None if s_aux is None else s_aux.view(kv_heads, group, 1, 1),
            )
            .flatten(0, 1)
            .transpose(0, 1)
        )
    keys.index_copy_(0, plan.writes, new_keys)
    values.index_copy_(0, plan.writes, new_values)
    for some in plan.singles:
        asked = queries if some.rows is None else queries[some.rows]
        n = len(asked)
        found = _attention(
            asked.reshape(n, kv_heads, group, width),  # heads that share a key stand as its queries
            keys.index_select(0, some.slots).view(n, -1, kv_heads, width).transpose(1, 2),
            values.index_select(0, some.slots).view(n, -1, kv_heads, depth).transpose(1, 2),
            some.mask,
            False,
            scaling,
            softcap,
            None if s_aux is None else s_aux.view(kv_heads, group, 1),
        ).reshape(n, heads, depth)
        if some.rows is None:
            out = found
        else:
            out[some.rows] = found
    return out[None], None


def _joined(cached: Tensor, past: Tensor | None, new: Tensor) -> Tensor:
    """What lies at `past` in the cache and then the new; shape (past + new, kv heads, width). Copies once."""
    if past is None:
        return new
    whole = new.new_empty(len(past) + len(new), *new.shape[1:])
    torch.index_select(cached, 0, past, out=whole[: len(past)])
    whole[len(past) :] = new
    return whole


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Shape (batch, heads, queries, depth); `causal` for as many queries as keys and no mask."""
    if softcap is None and sinks is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=scaling)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        scores = torch.cat((scores, sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)), -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)[..., : key.shape[-2]]
    return weights @ value


AttentionInterface.register(NAME, attend)
