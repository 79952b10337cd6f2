"""The next token of every row of a step, chosen at once.

In come logits and, per row, how its answer is sampled and what it has said; out go token ids and, where asked for,
log-probabilities. What a row needs is decided once, so a batch of plain rows does nothing for the others. Neither batch
mates nor a resume on another worker change a pick. Knows no models, requests or threads.

Order of work: logit bias, repetition, presence and frequency penalty, structure, end tokens, temperature, min-p, top-k,
top-p. The mass that top-p is a share of is what min-p and top-k leave. Tokens that are equal at an edge all stay in.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from broker.messages import Sampling
from workers.engine.draws import ANY, GREATEST, SOME, Draw, Group, top
from workers.engine.noise import MASK, Ints, mix
from workers.engine.transfer import send

if TYPE_CHECKING:
    from workers.engine.structure import Matcher

GREEDY_BELOW = 1e-5  # temperatures under this are arg-max
NARROW = 64  # rows whose top-k is below are done together, so that one large top-k does not widen all others
CHUNK = 1 << 18  # weights that a CPU works on at a time, so that they stay in its cache
LEAST = -9999.0  # what is said for a log-probability of minus infinity, as OpenAI does: JSON has no infinity

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
        self._seed = mix(sampling.seed & MASK)
        if sampling.repetition_penalty != 1:
            self._see(set(prompt))
        if self.penalised:
            for token in said:
                self._count(token)

    @property
    def plain(self) -> bool:
        """Whether this and the next picks need the logits and nothing that only the host has."""
        return not _edits(self) and self.sampling.logprobs is None

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

    def key(self, attempt: int = 0, ahead: int = 0) -> int:
        """64 bits for the token `ahead` places behind the next; other places and attempts have independent ones."""
        return mix(self._seed ^ self.position + ahead ^ attempt << 48)

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

    tokens: list[int]  # one per row; NOT_FINITE where the logits are
    logprobs: dict[int, Logprob] = field(default_factory=dict)  # by row number, of the rows that asked


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
        self.edited = send(edited, device, torch.int64)  # numbers of the rows whose logits are changed
        self.matchers = [m for i in edited if (m := rows[i].matcher) is not None]
        bias = [
            (at * vocab + token, value)
            for at, i in enumerate(edited)
            for token, value in rows[i].sampling.logit_bias
            if 0 <= token < vocab
        ]
        self.biased = send([where for where, _ in bias], device, torch.int64)
        self.bias = send([value for _, value in bias], device, torch.float32)
        self.penalised = [(at * vocab, rows[i]) for at, i in enumerate(edited) if rows[i].penalised]
        self.early = [rows[i] for i in edited if rows[i].early]
        banned = [(at, t) for at, i in enumerate(edited) if rows[i].early for t in rows[i].end_ids if 0 <= t < vocab]
        self.banned = send(banned, device, torch.int64).view(-1, 2)
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
        plan = self._planned(rows, logits.shape[1])
        edited = _edit(logits, plan) if len(plan.edited) else logits
        tokens = np.empty(len(rows), np.int64)
        for part in plan.parts:
            source = edited if part.edited else logits
            tokens[part.numbers] = part.draw.host(source[part.index], part.group)
        picked = Picked(tokens.tolist())
        if plan.asked and (asked := [i for i in plan.asked if picked.tokens[i] >= 0]):
            some = logits if len(asked) == len(rows) else logits[torch.tensor(asked, device=self._device)]
            counts = [rows[i].sampling.logprobs or 0 for i in asked]
            found = prompt_logprobs(some, [picked.tokens[i] for i in asked], max(counts))
            for i, n, (own, others) in zip(asked, counts, found, strict=True):
                picked.logprobs[i] = own, others[:n]
        return picked

    @torch.inference_mode()
    def pick_there(self, logits: Tensor, rows: Sequence[Row], ahead: int) -> Tensor:
        """The same picks on the device, shape (rows,), without waiting for it; some may be UNDECIDED.

        Args:
            rows: plain ones.
            ahead: tokens that the rows have not been told of yet.
        """
        picks = torch.empty(len(rows), dtype=torch.int64, device=self._device)
        for part in self._planned(rows, logits.shape[1]).parts:
            picks[part.index] = part.draw.device(logits[part.index], part.group, ahead)
        return picks

    def _planned(self, rows: Sequence[Row], vocab: int) -> Plan:
        plan = self._plan
        if plan is None or vocab != self._vocab or not plan.fits(rows):
            plan = self._plan = Plan(rows, vocab, self._device)
            self._vocab = vocab
        return plan


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
    values, ids = top(logits, min(n, logits.shape[1]))
    own = logits.gather(1, torch.tensor(targets, device=logits.device)[:, None])
    found = (torch.cat([own, values], 1) - total).clamp_(min=LEAST).tolist()
    return [
        (own, list(zip(others, rest, strict=True))) for (own, *rest), others in zip(found, ids.tolist(), strict=True)
    ]


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
        some = max(1, CHUNK // vocab) if draw is ANY and device.type == "cpu" else len(members)
        for begin in range(0, len(members), some):
            numbers, where = zip(*members[begin : begin + some], strict=True)
            run = where == tuple(range(where[0], where[0] + len(where)))  # a slice copies nothing
            index = slice(where[0], where[0] + len(where)) if run else send(where, device)
            yield Part(draw, Group.of([rows[i] for i in numbers], device), np.array(numbers), changed, index)


def _kind(row: Row, vocab: int) -> tuple[Draw, int]:
    """How a row is drawn, and how many candidates it needs, roughly."""
    if row.greedy:
        return GREATEST, 0
    if 0 < row.sampling.top_k < vocab:
        return SOME, max(NARROW, 1 << row.sampling.top_k.bit_length())
    return ANY, int(row.sampling.top_p < 1)  # those without a top-p need no second look


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
