"""One token a row from its logits: the greatest, one of the top-k, or one of all, by min-p and top-p.

Each draw is written twice. The host's is the one that holds: the device reduces the vocabulary to a few dozen
candidates a row, and numpy draws among them, many times faster than torch would on a CPU. The other is a device's alone
and never waits for the host, for steps that are launched before the host knows the last token. It gives the same picks,
or says that it cannot tell (UNDECIDED): it counts fewer equals and makes fewer attempts than the host may have to.
No sum is taken in an order that depends on the batch, so batch mates change no pick.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.engine.noise import Floats, Ints, log_uniform, log_uniform_there
from workers.engine.transfer import send

if TYPE_CHECKING:
    from workers.engine.sampling import Row

BLOCK = 128  # tokens that a draw from the whole vocabulary takes as one first
COLUMN = 16  # tokens of which only the greatest counts while the top-k is looked for
SPARE = 32  # tokens that a top-k may have more because they equal its last; with more, it is drawn from all
ATTEMPTS = 4  # that a device makes at a nucleus; with a top-p of 0.9, five rows in a million need another one
NOT_FINITE, UNDECIDED = -1, -2  # in the place of a token


@dataclass(slots=True)
class Group:
    """Rows that are sampled in the same way."""

    rows: list["Row"]
    temperature: Tensor  # (rows, 1), float32, on the device
    min_p: Tensor  # the same
    top_k: Ints
    top_p: Floats  # above 0; infinite where it is off
    k: Tensor  # (rows, 1), top_k on the device
    p: Tensor  # (rows, 1), top_p on the device
    cut: bool  # whether any row has a min-p
    nucleus: bool  # whether any row has a top-p

    @classmethod
    def of(cls, rows: list["Row"], device: torch.device) -> Self:
        all_ = [row.sampling for row in rows]
        top_p = [max(s.top_p, 1e-9) if s.top_p < 1 else np.inf for s in all_]
        return cls(
            rows,
            send([[s.temperature] for s in all_], device, torch.float32),
            send([[s.min_p] for s in all_], device, torch.float32),
            np.array([s.top_k for s in all_], np.int64),
            np.array(top_p, np.float64),
            send([[s.top_k] for s in all_], device, torch.int64),
            send([[p] for p in top_p], device, torch.float64),
            any(s.min_p > 0 for s in all_),
            any(s.top_p < 1 for s in all_),
        )

    def keys(self, attempt: int = 0, ahead: int = 0) -> NDArray[np.uint64]:
        return np.array([row.key(attempt, ahead) for row in self.rows], np.uint64)

    def keys_there(self, attempts: int, ahead: int) -> Tensor:
        """Shape (attempts, rows), on the device."""
        keys = [self.keys(attempt, ahead).view(np.int64).tolist() for attempt in range(attempts)]
        return send(keys, self.temperature.device)


@dataclass(frozen=True, slots=True)
class Draw:
    """One way to draw a token id a row, NOT_FINITE where the logits allow none."""

    host: Callable[[Tensor, Group], Ints]
    device: Callable[[Tensor, Group, int], Tensor]
    """Without waiting; may be UNDECIDED. The last argument is how many tokens the rows have not been told of yet."""


def weigh(logits: Tensor, group: Group) -> Tensor:
    """Probabilities as shares of the likeliest token's, which need no sum; not a number in rows that are not finite."""
    weights = logits - logits.amax(1, keepdim=True)
    weights.div_(group.temperature).exp_()
    if group.cut:
        weights *= torch.ge(weights, group.min_p, out=torch.empty_like(weights))  # as floats it is a fast loop
    return weights


def blocks_of(weights: Tensor) -> Tensor:
    """Shape (rows, blocks, BLOCK)."""
    if short := -weights.shape[1] % BLOCK:
        weights = torch.nn.functional.pad(weights, (0, short))
    return weights.view(len(weights), -1, BLOCK)


def sums_of(blocks: Tensor) -> Floats:
    """Shape (rows, blocks): the same whatever the batch, which a sum over a whole row is not."""
    return blocks.sum(2).cpu().numpy().astype(np.float64)


def top(values: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n greatest of each row, falling, and where they are; each of shape (rows, n).

    They lie in the n columns with the greatest maxima, if a row is folded into columns: two short lists are searched
    instead of a long one.
    """
    width = values.shape[1]
    if width < 2 * COLUMN * max(n, COLUMN) or values.device.type != "cpu":
        return values.topk(n)
    if short := -width % COLUMN:
        values = torch.nn.functional.pad(values, (0, short), value=-torch.inf)
    columns = values.shape[1] // COLUMN
    _, best = top(values.reshape(len(values), COLUMN, columns).amax(1), n)
    places = (best[:, :, None] + torch.arange(0, values.shape[1], columns, device=values.device)).flatten(1)
    found, at = values.gather(1, places).topk(n)
    return found, places.gather(1, at)


def _greatest(logits: Tensor, group: Group) -> Ints:
    if logits.device.type == "cpu":  # numpy is ten times as fast
        scores = logits.numpy()
        picks = scores.argmax(1)
        best = scores[np.arange(len(picks)), picks]
    else:
        best, picks = (found.cpu().numpy() for found in logits.max(1))
    return np.where(np.isfinite(best), picks, NOT_FINITE)


def _greatest_there(logits: Tensor, group: Group, ahead: int) -> Tensor:
    best, picks = logits.max(1)
    return picks.masked_fill_(~best.isfinite(), NOT_FINITE)


def _some(logits: Tensor, group: Group, spare: int = 0) -> Ints:
    """Draws from the top-k; the rest of the vocabulary gets no noise."""
    values, ids = top(logits, min(int(group.top_k.max()) + spare + 1, logits.shape[1]))  # (rows, candidates), falling
    scores, candidates = values.cpu().numpy(), ids.cpu().numpy()
    each = np.arange(len(scores))
    edge = scores[each, group.top_k - 1]
    next_ = group.top_k + spare
    there = next_ < logits.shape[1]
    # The next one stays in too, and who knows how many more.
    tied = there & (scores[each, np.where(there, next_, 0)] == edge) & (edge > -np.inf)
    weights = weigh(values, group).cpu().numpy().astype(np.float64)
    weights[scores < edge[:, None]] = 0
    if group.nucleus:
        mass = weights.cumsum(1)
        outside = mass - weights >= group.top_p[:, None] * mass[:, -1:]
        weights[weights < np.where(outside, np.inf, weights).min(1, keepdims=True)] = 0
    places = (weights / log_uniform(group.keys(), candidates)).argmin(1)
    picks = np.where(np.isfinite(scores[:, 0]), candidates[each, places], NOT_FINITE)
    if tied.any():
        some = logits[tied]
        rest = Group.of([row for row, t in zip(group.rows, tied, strict=True) if t], some.device)
        if spare:
            some.masked_fill_(some < torch.from_numpy(edge[tied]).to(some.device)[:, None], -torch.inf)
            picks[tied] = _any(some, rest)
        else:
            picks[tied] = _some(some, rest, SPARE)
    return picks


def _some_there(logits: Tensor, group: Group, ahead: int) -> Tensor:
    vocab = logits.shape[1]
    values, ids = top(logits, min(int(group.top_k.max()) + SPARE + 1, vocab))  # (rows, candidates), falling
    edge, next_ = values.gather(1, group.k - 1), group.k + SPARE  # (rows, 1)
    tied = (next_ < vocab) & (values.gather(1, next_.clamp(max=values.shape[1] - 1)) == edge) & (edge > -torch.inf)
    weights = weigh(values, group).to(torch.float64).masked_fill_(values < edge, 0)
    if group.nucleus:
        mass = weights.cumsum(1)
        outside = mass - weights >= group.p * mass[:, -1:]
        weights = weights.masked_fill(weights < weights.masked_fill(outside, torch.inf).amin(1, keepdim=True), 0)
    places = (weights / log_uniform_there(group.keys_there(1, ahead)[0], ids)).argmin(1, keepdim=True)
    picks = ids.gather(1, places).masked_fill_(tied, UNDECIDED)
    return picks.masked_fill_(~values[:, :1].isfinite(), NOT_FINITE)[:, 0]


def _any(logits: Tensor, group: Group) -> Ints:
    """Draws from all tokens without noise for each: a block by its mass, then a token in it.

    What is drawn is refused when it lies outside of the nucleus, that is, when the mass of the likelier tokens reaches
    top_p. Then all that are no likelier than it lie outside too, and the next attempt is among the others.
    """
    weights = blocks_of(weigh(logits, group))
    sums = sums_of(weights)
    total = sums.sum(1)
    picks = np.full(len(total), NOT_FINITE)
    left = np.flatnonzero(np.isfinite(total))  # rows that have no pick yet
    if len(left) < len(total):
        weights, sums = weights[left], sums[left]
    blocks, inside = np.arange(sums.shape[1]), np.arange(BLOCK)
    for attempt in count():
        keys, each = group.keys(attempt)[left], np.arange(len(left))
        drawn = (sums / log_uniform(keys, ~blocks)).argmin(1)
        ids = drawn[:, None] * BLOCK + inside
        some = weights[each, drawn].cpu().numpy().astype(np.float64)  # (rows, BLOCK)
        places = (some / log_uniform(keys, ids)).argmin(1)
        picks[left] = ids[each, places]
        if not group.nucleus:
            break
        value = torch.from_numpy(some[each, places].astype(np.float32)).to(weights.device)[:, None, None]
        weights = torch.gt(weights, value, out=torch.empty_like(weights)).mul_(weights)  # as floats it is a fast loop
        sums = sums_of(weights)
        refused = np.flatnonzero(sums.sum(1) >= group.top_p[left] * total[left])
        left, weights, sums = left[refused], weights[refused], sums[refused]
        if not len(left):
            break
    return picks


def _any_there(logits: Tensor, group: Group, ahead: int) -> Tensor:
    weights = blocks_of(weigh(logits, group))
    sums = weights.sum(2).to(torch.float64)
    total = sums.sum(1, keepdim=True)  # (rows, 1)
    picks = torch.full_like(total, UNDECIDED, dtype=torch.int64)
    blocks, inside = (torch.arange(n, device=logits.device) for n in (sums.shape[1], BLOCK))
    for keys in group.keys_there(ATTEMPTS if group.nucleus else 1, ahead):
        drawn = (sums / log_uniform_there(keys, ~blocks)).argmin(1, keepdim=True)
        ids = drawn * BLOCK + inside  # (rows, BLOCK)
        some = weights.gather(1, drawn[:, :, None].expand(-1, 1, BLOCK))[:, 0]
        places = (some.to(torch.float64) / log_uniform_there(keys, ids)).argmin(1, keepdim=True)
        found = ids.gather(1, places)
        if group.nucleus:
            weights = weights * (weights > some.gather(1, places)[:, :, None])
            sums = weights.sum(2).to(torch.float64)
            found = found.masked_fill(sums.sum(1, keepdim=True) >= group.p * total, UNDECIDED)
        picks = picks.where(picks != UNDECIDED, found)
    return picks.masked_fill_(~total.isfinite(), NOT_FINITE)[:, 0]


GREATEST = Draw(_greatest, _greatest_there)
SOME = Draw(_some, _some_there)
ANY = Draw(_any, _any_there)
