"""The next token of every row of a step, chosen at once.

In come logits and, per row, how its answer is sampled and what it has said; out go token ids and, where asked for,
log-probabilities. The device reduces the vocabulary to a few dozen candidates a row, and the host draws among them in
float64. Every random number is a hash of (seed, position in the answer, token id) and of nothing else, and no sum is
taken in an order that depends on the batch: neither batch mates nor a resume on another worker change a pick. What a
row needs is decided once, so a batch of plain rows does nothing for the others. Knows no models, requests or threads.

Order of work: logit bias, repetition, presence and frequency penalty, structure, end tokens, temperature, min-p, top-k,
top-p. The mass that top-p is a share of is what min-p and top-k leave. Tokens that are equal at an edge all stay in.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from broker.messages import Sampling

if TYPE_CHECKING:
    from workers.engine.structure import Matcher

GREEDY_BELOW = 1e-5  # temperatures under this are arg-max
NARROW = 64  # rows whose top-k is below are done together, so that one large top-k does not widen all others
BLOCK = 128  # tokens that a draw from the whole vocabulary takes as one first
COLUMN = 16  # tokens of which only the greatest counts while the top-k is looked for
CHUNK = 1 << 18  # weights that a CPU works on at a time, so that they stay in its cache
LEAST = -9999.0  # what is said for a log-probability of minus infinity, as OpenAI does: JSON has no infinity
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15

Floats = NDArray[np.float64]  # what the host draws from
Ints = NDArray[np.int64]
Logprob = tuple[float, list[tuple[int, float]]]
"""The log-probability of a token, and the likeliest (id, log-probability) at its place, falling."""


class Row:
    """How one answer is sampled, and what its next token depends on. Belongs to the engine's thread."""

    def __init__(
        self,
        sampling: Sampling,
        end_ids: frozenset[int],
        prompt: Sequence[int],
        said: Sequence[int],
        matcher: "Matcher | None" = None,
    ) -> None:
        """A row at the place behind `said`.

        Args:
            end_ids: what ends this answer; forbidden before `min_tokens`, unless nothing else is left.
            said: the tokens of the answer so far. `matcher` has been through them.
        """
        self.sampling = sampling
        self.end_ids = end_ids
        self.matcher = matcher
        self.position = len(said)  # of the next token in the answer
        self.greedy = sampling.temperature < GREEDY_BELOW
        penalties = sampling.presence_penalty, sampling.frequency_penalty
        self.penalised = sampling.repetition_penalty != 1 or any(penalties)
        self.seen = array("q")  # the tokens with a penalty, each once
        self.counts = array("q")  # how often the answer has each of them
        self._places: dict[int, int] = {}  # of a token in both
        self._seed = _mix(sampling.seed & _MASK)
        if sampling.repetition_penalty != 1:
            self._see(set(prompt))
        if self.penalised:
            for token in said:
                self._count(token)

    @property
    def early(self) -> bool:
        """Whether end tokens are forbidden still."""
        return self.position < self.sampling.min_tokens and bool(self.end_ids)

    def advance(self, token: int) -> None:
        """Go on behind a token that was picked."""
        self.position += 1
        if self.penalised:
            self._count(token)
        if self.matcher is not None:
            self.matcher.advance(token)

    def key(self, attempt: int = 0) -> int:
        """64 bits for the next token; other positions and other attempts have independent ones."""
        return _mix(self._seed ^ self.position ^ attempt << 48)

    def _count(self, token: int) -> None:
        if token not in self._places:
            self._see({token})
        self.counts[self._places[token]] += 1

    def _see(self, tokens: set[int]) -> None:
        self._places |= {token: len(self.seen) + i for i, token in enumerate(tokens)}
        self.seen.extend(tokens)
        self.counts.extend([0] * len(tokens))


@dataclass(frozen=True, slots=True)
class Picked:
    """What a step brought."""

    tokens: list[int]  # one per row; -1 where the logits are not finite
    logprobs: dict[int, Logprob] = field(default_factory=dict)  # by row number, of the rows that asked


@dataclass(slots=True)
class Group:
    """Rows that are sampled in the same way."""

    rows: list[Row]
    temperature: Tensor  # (rows, 1), float32, on the device
    min_p: Tensor  # the same
    top_k: Ints
    top_p: Floats  # above 0; infinite where it is off
    cut: bool  # whether any row has a min-p
    nucleus: bool  # whether any row has a top-p

    @classmethod
    def of(cls, rows: list[Row], device: torch.device) -> Self:
        all_ = [row.sampling for row in rows]
        return cls(
            rows,
            torch.tensor([[s.temperature] for s in all_], dtype=torch.float32, device=device),
            torch.tensor([[s.min_p] for s in all_], dtype=torch.float32, device=device),
            np.array([s.top_k for s in all_], np.int64),
            np.array([max(s.top_p, 1e-9) if s.top_p < 1 else np.inf for s in all_], np.float64),
            any(s.min_p > 0 for s in all_),
            any(s.top_p < 1 for s in all_),
        )

    def keys(self, attempt: int = 0) -> NDArray[np.uint64]:
        return np.array([row.key(attempt) for row in self.rows], np.uint64)


Draw = Callable[[Tensor, Group], Ints]


@dataclass(slots=True)
class Part:
    """A group, how it is drawn, and where its rows are."""

    draw: Draw
    group: Group
    numbers: Ints  # of its rows in the batch
    edited: bool  # its logits are among those that were changed
    index: Tensor | slice  # of its rows in what it is drawn from


class Plan:
    """What is to be done for some rows; good for as long as the same rows come again."""

    def __init__(self, rows: Sequence[Row], vocab: int, device: torch.device) -> None:
        self.rows = list(rows)
        numbers = range(len(rows))
        self.asked = [i for i in numbers if rows[i].sampling.logprobs is not None]
        edited = [i for i in numbers if _edits(rows[i])]
        edited.sort(key=lambda i: rows[i].matcher is None)  # the matchers' rows are a slice
        self.edited = torch.tensor(edited, device=device)  # numbers of the rows whose logits are changed
        self.matchers = [m for i in edited if (m := rows[i].matcher) is not None]
        bias = [
            (at * vocab + token, value)
            for at, i in enumerate(edited)
            for token, value in rows[i].sampling.logit_bias
            if 0 <= token < vocab
        ]
        self.biased = torch.tensor([where for where, _ in bias], dtype=torch.int64, device=device)
        self.bias = torch.tensor([value for _, value in bias], dtype=torch.float32, device=device)
        self.penalised = [(at * vocab, rows[i]) for at, i in enumerate(edited) if rows[i].penalised]
        self.early = [rows[i] for i in edited if rows[i].early]
        banned = [(at, t) for at, i in enumerate(edited) if rows[i].early for t in rows[i].end_ids if 0 <= t < vocab]
        self.banned = torch.tensor(banned, dtype=torch.int64, device=device).view(-1, 2)
        self.parts = list(_parts(rows, edited, vocab, device))

    def fits(self, rows: Sequence[Row]) -> bool:
        """Whether these are the same rows, and none of them may end from now on."""
        return self.rows == list(rows) and all(row.early for row in self.early)


class Sampler:
    """Picks the next tokens. What it has prepared for a batch it uses again while the same rows come."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._plan: Plan | None = None
        self._vocab = 0

    @torch.inference_mode()
    def pick(self, logits: Tensor, rows: Sequence[Row]) -> Picked:
        """The next token of every row; the caller tells the rows with `advance`.

        Args:
            logits: shape (rows, vocab), float32, left as they are.
            rows: one per row of `logits`. Tokens of a bias that the vocabulary does not have change nothing.
        """
        plan, vocab = self._plan, logits.shape[1]
        if plan is None or vocab != self._vocab or not plan.fits(rows):
            plan, self._vocab = Plan(rows, vocab, self._device), vocab
            self._plan = plan
        edited = _edit(logits, plan) if len(plan.edited) else logits
        tokens = np.empty(len(rows), np.int64)
        for part in plan.parts:
            source = edited if part.edited else logits
            tokens[part.numbers] = part.draw(source[part.index], part.group)
        picked = Picked(tokens.tolist())
        if plan.asked and (asked := [i for i in plan.asked if picked.tokens[i] >= 0]):
            some = logits if len(asked) == len(rows) else logits[torch.tensor(asked, device=self._device)]
            counts = [rows[i].sampling.logprobs or 0 for i in asked]
            found = prompt_logprobs(some, [picked.tokens[i] for i in asked], max(counts))
            for i, n, (own, others) in zip(asked, counts, found, strict=True):
                picked.logprobs[i] = own, others[:n]
        return picked


@torch.inference_mode()
def prompt_logprobs(logits: Tensor, targets: Sequence[int], n: int) -> list[Logprob]:
    """How likely the targets are, as the model says: before temperature and everything else.

    Args:
        logits: shape (rows, vocab), float32.
        targets: one token id per row.
        n: how many alternatives.
    """
    best = logits.amax(1, keepdim=True)
    total = (logits - best).exp_().sum(1, keepdim=True).log_().add_(best)  # half of the time of logsumexp
    values, ids = _top(logits, min(n, logits.shape[1]))
    own = logits.gather(1, torch.tensor(targets, device=logits.device)[:, None])
    found = (torch.cat([own, values], 1) - total).clamp_(min=LEAST).tolist()
    return [
        (own, list(zip(others, rest, strict=True))) for (own, *rest), others in zip(found, ids.tolist(), strict=True)
    ]


def log_uniform(keys: NDArray[np.uint64], ids: Ints) -> Floats:
    """Logarithms of uniform numbers, the same for the same key and id; minus the logarithm of minus them is Gumbel noise.

    Args:
        keys: shape (rows,), from `Row.key`.
        ids: shape (rows, n) or (n,).

    Returns:
        Shape (rows, n); finite and below 0.

    Source: splitmix64 (Steele, Lea, Flood 2014): `ids` are places in the stream that begins at the key.
    """
    bits = keys[:, None] + ids.astype(np.uint64) * np.uint64(_GOLDEN)  # (rows, n)
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    bits >>= np.uint64(12)
    uniform = bits.astype(np.float64)
    uniform += 0.5
    uniform *= 2.0**-52
    return np.log(uniform, out=uniform)


def _edits(row: Row) -> bool:
    return row.penalised or row.early or row.matcher is not None or bool(row.sampling.logit_bias)


def _parts(rows: Sequence[Row], edited: list[int], vocab: int, device: torch.device) -> Iterator[Part]:
    """The rows by how they are drawn, in parts that a CPU's cache can hold."""
    kinds: dict[tuple[bool, Draw, int], list[tuple[int, int]]] = {}
    places = {number: at for at, number in enumerate(edited)}
    for number, row in enumerate(rows):
        draw, width = _kind(row, vocab)
        changed = number in places
        kinds.setdefault((changed, draw, width), []).append((number, places[number] if changed else number))
    for (changed, draw, _), members in kinds.items():
        some = max(1, CHUNK // vocab) if draw is _draw_whole and device.type == "cpu" else len(members)
        for begin in range(0, len(members), some):
            numbers, where = zip(*members[begin : begin + some], strict=True)
            run = where == tuple(range(where[0], where[0] + len(where)))  # a slice copies nothing
            index = slice(where[0], where[0] + len(where)) if run else torch.tensor(where, device=device)
            yield Part(draw, Group.of([rows[i] for i in numbers], device), np.array(numbers), changed, index)


def _kind(row: Row, vocab: int) -> tuple[Draw, int]:
    """How a row is drawn, and how many candidates it needs, roughly."""
    if row.greedy:
        return _draw_greatest, 0
    if 0 < row.sampling.top_k < vocab:
        return _draw_narrow, max(NARROW, 1 << row.sampling.top_k.bit_length())
    return _draw_whole, int(row.sampling.top_p < 1)  # those without a top-p need no second look


def _edit(logits: Tensor, plan: Plan) -> Tensor:
    """A copy of the rows that need it, with everything that comes before temperature."""
    edited = logits[plan.edited]  # (edited rows, vocab)
    flat = edited.view(-1)
    if len(plan.biased):
        flat.index_add_(0, plan.biased, plan.bias)
    if plan.penalised:
        where, factor, less = (torch.from_numpy(values).to(flat.device) for values in _penalties(plan))
        old = flat[where]
        flat[where] = old.clamp(min=0).div_(factor).add_(old.clamp_(max=0).mul_(factor)).sub_(less)
    if plan.matchers:
        from workers.engine.structure import mask

        mask(edited[: len(plan.matchers)], plan.matchers)
    if len(plan.banned):
        at, ids = plan.banned.T
        kept = edited[at, ids]
        edited[at, ids] = -torch.inf
        left = edited.amax(1)[at] > -torch.inf  # a structure may allow nothing but the end
        edited[at, ids] = torch.where(left, -torch.inf, kept)
    return edited


def _penalties(plan: Plan) -> tuple[Ints, NDArray[np.float32], NDArray[np.float32]]:
    """Where in the changed logits, by what greater ones are divided and lesser ones multiplied, and what is taken off."""
    wheres, factors, takes = [], [], []
    for at, row in plan.penalised:
        counts, sampling = np.array(row.counts), row.sampling
        wheres.append(np.array(row.seen) + at)
        factors.append(np.full(len(counts), sampling.repetition_penalty, np.float32))
        takes.append(sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0))
    return np.concatenate(wheres), np.concatenate(factors), np.concatenate(takes).astype(np.float32)


def _draw_greatest(logits: Tensor, group: Group) -> Ints:
    if logits.device.type == "cpu":  # numpy is ten times as fast
        scores = logits.numpy()
        picks = scores.argmax(1)
        best = scores[np.arange(len(picks)), picks]
    else:
        best, picks = (found.cpu().numpy() for found in logits.max(1))
    return np.where(np.isfinite(best), picks, -1)


def _draw_narrow(logits: Tensor, group: Group) -> Ints:
    """Draws from the top-k; the rest of the vocabulary gets no noise."""
    values, ids = _top(logits, int(group.top_k.max()) + 1)  # (rows, candidates), falling
    scores, candidates = values.cpu().numpy(), ids.cpu().numpy()
    each = np.arange(len(scores))
    edge = scores[each, group.top_k - 1]
    tied = (scores[each, group.top_k] == edge) & (edge > -np.inf)  # the next one stays in, and who knows how many more
    weights = _weights(values, group).cpu().numpy().astype(np.float64)
    weights[scores < edge[:, None]] = 0
    if group.nucleus:
        mass = weights.cumsum(1)
        outside = mass - weights >= group.top_p[:, None] * mass[:, -1:]
        weights[weights < np.where(outside, np.inf, weights).min(1, keepdims=True)] = 0
    places = (weights / log_uniform(group.keys(), candidates)).argmin(1)
    picks = np.where(np.isfinite(scores[:, 0]), candidates[each, places], -1)
    if tied.any():
        some = logits[tied]
        some.masked_fill_(some < torch.from_numpy(edge[tied]).to(some.device)[:, None], -torch.inf)
        picks[tied] = _draw_whole(
            some, Group.of([row for row, t in zip(group.rows, tied, strict=True) if t], some.device)
        )
    return picks


def _draw_whole(logits: Tensor, group: Group) -> Ints:
    """Draws from all tokens without noise for each: a block by its mass, then a token in it.

    What is drawn is refused when it lies outside of the nucleus, that is, when the mass of the likelier tokens reaches
    top_p. Then all that are no likelier than it lie outside too, and the next attempt is among the others.
    """
    weights = _weights(logits, group)
    if short := -weights.shape[1] % BLOCK:
        weights = torch.nn.functional.pad(weights, (0, short))
    weights = weights.view(len(weights), -1, BLOCK)  # (rows, blocks, BLOCK)
    sums = _sums(weights)
    total = sums.sum(1)
    picks = np.full(len(total), -1)
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
        sums = _sums(weights)
        refused = np.flatnonzero(sums.sum(1) >= group.top_p[left] * total[left])
        left, weights, sums = left[refused], weights[refused], sums[refused]
        if not len(left):
            break
    return picks


def _weights(logits: Tensor, group: Group) -> Tensor:
    """Probabilities as shares of the likeliest token's, which need no sum; not a number in rows that are not finite."""
    weights = logits - logits.amax(1, keepdim=True)
    weights.div_(group.temperature).exp_()
    if group.cut:
        weights *= torch.ge(weights, group.min_p, out=torch.empty_like(weights))  # as floats it is a fast loop
    return weights


def _sums(weights: Tensor) -> Floats:
    """Of each block, shape (rows, blocks): the same whatever the batch, which a sum over a whole row is not."""
    return weights.sum(2).cpu().numpy().astype(np.float64)


def _top(values: Tensor, n: int) -> tuple[Tensor, Tensor]:
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
    _, best = _top(values.reshape(len(values), COLUMN, columns).amax(1), n)
    places = (best[:, :, None] + torch.arange(0, values.shape[1], columns, device=values.device)).flatten(1)
    found, at = values.gather(1, places).topk(n)
    return found, places.gather(1, at)


def _mix(word: int) -> int:
    """The finaliser of splitmix64."""
    word = (word + _GOLDEN) & _MASK
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _MASK
    return word ^ (word >> 31)
