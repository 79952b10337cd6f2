"""The next token of every request in a step, chosen at once.

In come logits and, per row, how that request wants to be sampled; out go token ids. A pick is the arg-max of the
scaled logit plus Gumbel noise, which draws from the softmax exactly. The noise is a hash of (seed, position in the
answer, token id) and of nothing else, so neither batch mates nor a resume on another worker change a pick. Pure
functions; nothing here knows models, requests or threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GREEDY_BELOW = 1e-5  # temperatures under this are arg-max: the division would overflow
NARROW = 64  # most likely tokens that top-p looks at first
CHUNK = 1 << 19  # logits that a CPU works on at a time, so that the intermediate results stay in its cache
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Draw:
    """How one row is sampled."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    position: int = 0  # index of the new token in the answer, from 0


def pick(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The next token of every row; -1 where the logits are not finite.

    Args:
        logits: shape (rows, vocab), float32, left as they are.
        draws: one per row.

    Returns:
        Shape (rows,), int64, on the device of `logits`.
    """
    greedy = [row for row, draw in enumerate(draws) if draw.temperature < GREEDY_BELOW]
    whole = [row for row, draw in enumerate(draws) if draw.temperature >= GREEDY_BELOW and draw.top_p >= 1]
    nucleus = [row for row, draw in enumerate(draws) if draw.temperature >= GREEDY_BELOW and draw.top_p < 1]
    picks = torch.empty(len(draws), dtype=torch.int64, device=logits.device)
    some = max(1, CHUNK // logits.shape[1]) if logits.device.type == "cpu" else len(draws)
    for kind, choose in ((greedy, _greedy), (whole, _whole), (nucleus, _nucleus)):
        for begin in range(0, len(kind), some):
            rows = kind[begin : begin + some]
            if len(rows) == len(draws):
                picks = choose(logits, draws)
            else:
                index = torch.tensor(rows, device=logits.device)
                picks[index] = choose(logits[index], [draws[row] for row in rows])
    return picks.masked_fill(~logits.amax(-1).isfinite(), -1)  # a NaN is greater than everything


def noise(keys: Tensor, ids: Tensor) -> Tensor:
    """Gumbel noise, the same for the same key and id on every device and in every batch.

    Args:
        keys: shape (rows, 2), int32, from `key`.
        ids: token ids, int32, shape (n,) or (rows, n).

    Returns:
        Shape (rows, n), float32.

    Source: the integer hash is lowbias32 (Chris Wellons, hash-prospector), run twice with half of the key each.
    """
    bits = _scramble(_scramble(ids + keys[:, :1]) ^ keys[:, 1:])  # (rows, n)
    # In float64 the uniform keeps all 32 bits and the logarithms of two devices round to the same float32.
    real = torch.float32 if bits.device.type == "mps" else torch.float64  # mps has no float64
    uniform = bits.to(real).add_(2.0**31 + 0.5).mul_(2.0**-32)  # (rows, n), in (0, 1)
    if real is torch.float32:
        uniform.clamp_(2.0**-32, 1 - 2.0**-24)
    return uniform.log_().neg_().log_().neg_().to(torch.float32)


def key(seed: int, position: int) -> tuple[int, int]:
    """Two signed 32-bit words for one token of one answer.

    Source: the finaliser of splitmix64 (Steele, Lea, Flood 2014), once for the seed and once for the position.
    """
    mixed = _mix(_mix(seed & _MASK) ^ (position & _MASK))
    return _signed(mixed & 0xFFFFFFFF), _signed(mixed >> 32)


def _greedy(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    return logits.argmax(-1)


def _whole(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    scores = logits / _column([draw.temperature for draw in draws], logits)
    ids = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device)
    return scores.add_(noise(_keys(draws, logits), ids)).argmax(-1)


def _nucleus(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Picks among the fewest tokens whose probabilities reach top_p together; equals at the edge all stay in.

    The mass is taken over the whole vocabulary. A row whose nucleus surely lies among its most likely tokens, as
    nearly all do, needs noise for these alone.
    """
    scores = logits / _column([draw.temperature for draw in draws], logits)
    probs = scores.softmax(-1)  # (rows, vocab)
    top_p = _column([draw.top_p for draw in draws], logits)
    keys = _keys(draws, logits)
    mass, ids = probs.topk(min(NARROW, probs.shape[1]))  # (rows, NARROW), falling
    edge = _edge(mass, top_p)
    noisy = scores.gather(1, ids).masked_fill_(mass < edge, -torch.inf).add_(noise(keys, ids.to(torch.int32)))
    picks = ids.gather(1, noisy.argmax(-1, keepdim=True))[:, 0]
    wide = (edge <= mass[:, -1:])[:, 0].nonzero()[:, 0]  # rows whose nucleus may go on behind the last candidate
    if len(wide):
        outside = probs[wide] < _edge(probs[wide].sort(descending=True).values, top_p[wide])
        every = torch.arange(probs.shape[1], dtype=torch.int32, device=logits.device)
        noisy = scores[wide].masked_fill_(outside, -torch.inf).add_(noise(keys[wide], every))
        picks[wide] = noisy.argmax(-1)
    return picks


def _edge(falling: Tensor, top_p: Tensor) -> Tensor:
    """The least of the largest probabilities that are needed to reach top_p, or the least there is; shape (rows, 1)."""
    inside = falling.cumsum(-1) - falling < top_p  # what lies before it does not reach top_p yet
    return falling.masked_fill(~inside, torch.inf).amin(-1, keepdim=True).minimum(falling[:, :1])


def _keys(draws: Sequence[Draw], like: Tensor) -> Tensor:
    return torch.tensor([key(draw.seed, draw.position) for draw in draws], dtype=torch.int32, device=like.device)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]  # (rows, 1)


def _scramble(bits: Tensor) -> Tensor:
    """lowbias32 in place; shifts of int32 carry the sign, which the masks take away again."""
    bits ^= (bits >> 16) & 0xFFFF
    bits *= 0x7FEB352D
    bits ^= (bits >> 15) & 0x1FFFF
    bits *= _signed(0x846CA68B)
    bits ^= (bits >> 16) & 0xFFFF
    return bits


def _mix(word: int) -> int:
    word = (word + 0x9E3779B97F4A7C15) & _MASK
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _MASK
    return word ^ (word >> 31)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word
