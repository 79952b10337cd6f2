"""What one step feeds the model: the tokens of all requests side by side, and where their keys lie in the cache.

Stands in for transformers' ContinuousBatchingIOs, whose lists of cache indices, dense masks and static tensors cost
more than a small model's forward pass. Here every request has a row in a table of cache slots, which changes only when
it gets a page. Knows the paged cache; no sampling, no threads.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.requests import FutureRequestState

from workers.engine.attention import Plan, Singles, Span
from workers.engine.transfer import send

TOKEN_BITS = (
    20  # of a token id; the bits above them, in the first token of a prompt, keep its prefix apart from others'
)
TOKEN_MASK = (1 << TOKEN_BITS) - 1
NARROW = 256  # up to so many keys, requests of all lengths are padded to the longest of them

Single = tuple[int, int, int]
"""A request with one new token: the token's id, its position, the request's row in the tables."""


class Inputs:
    """The current step. Its public attributes are those that the stock manager reads."""

    compute_stream = None

    def __init__(self, cache: PagedAttentionCache, slots: int, context: int) -> None:
        self.requests_in_batch: list[FutureRequestState] = []
        self.kwargs: dict[str, Any] = {}
        self.device = torch.device(cache.device)
        self.slots = slots
        self.padding = slots  # a row of no request: what is written there is lost, and harmless to read
        self._cache = cache
        self._places = [
            _Places(allocator, slots, context, self.device) for allocator in cache.cache_allocators.values()
        ]
        self.widest: int = max(places.width for places in self._places)  # keys that a request can have in a layer
        self._rows: dict[str, int] = {}  # request id -> its row in the tables

    def prepare_batch_tensors(self, requests_in_batch: Sequence[FutureRequestState], **others: Any) -> None:
        """Take the scheduled requests in."""
        self.requests_in_batch = list(requests_in_batch)
        self._ids = ids = list[int]()
        self._positions = positions = list[int]()
        self._last = last = list[int]()  # of the requests that get a token: their last token's place in the step
        self.lengths = lengths = list[tuple[int, int]]()  # tokens in the cache before the step, new tokens
        for future in requests_in_batch:
            state, new = future.state, future.query_length
            past = state.position_offset
            state.position_offset += new
            ids += state.tokens_to_process
            if not past:
                ids[-new] &= TOKEN_MASK
            positions += range(past, past + new)
            lengths.append((past, new))
            if future.has_new_token:
                last.append(len(ids) - 1)

    def build(self) -> None:
        """Make the arguments of the step's forward pass."""
        rows = self._find_rows()
        plans = [places.plan(self.requests_in_batch, rows, self.lengths) for places in self._places]
        self.last = torch.tensor(self._last, dtype=torch.int64, device=self.device)  # (requests with a new token,)
        ids, positions = (torch.tensor(some, device=self.device) for some in (self._ids, self._positions))
        self.kwargs = self._arguments(ids, positions, plans)

    @property
    def alone(self) -> bool:
        """Whether all of the step are answers: each request has one token and gets one."""
        return len(self._last) == len(self._ids)

    def answers(self) -> list[Single] | None:
        """The step's requests, their rows ready for `fixed`; None when they are not all answers."""
        if not self.alone:
            return None
        rows = self._find_rows()
        for places in self._places:
            places.fill(self.requests_in_batch, rows)
        return list(zip(self._ids, self._positions, rows, strict=True))

    def room(self, longest: int) -> int:
        """Keys for `fixed` that hold requests up to position `longest`: one of few numbers, so that shapes come again."""
        return min(max(NARROW, 1 << longest.bit_length()), self.widest)

    def fixed(self, ids: Tensor, positions: Tensor, rows: Tensor, keys: int) -> dict[str, Any]:
        """The arguments for requests with one new token each, made by the device alone.

        Args:
            ids: shape (requests,), as are the others.
            keys: that there is room for in a request.
        """
        return self._arguments(ids, positions, [places.fixed(rows, positions, keys) for places in self._places])

    def _arguments(self, ids: Tensor, positions: Tensor, plans: Sequence[Plan]) -> dict[str, Any]:
        return {
            "input_ids": ids[None],  # (1, tokens)
            "position_ids": positions[None],
            "attention_mask": None,
            "use_cache": False,
            "cache": self._cache,
            "plans": plans,
        }

    def pages_changed(self, request_id: str) -> None:
        """A page of this request was exchanged for one with the same content."""
        if request_id in self._rows:
            for places in self._places:
                places.forget(self._rows[request_id])

    def prepare_batch_update(self) -> tuple[list[FutureRequestState], list[int], None]:
        """The requests of the step, for the stock error handling."""
        return self.requests_in_batch, [], None

    def reset(self) -> None:
        """Forget everything."""
        self.requests_in_batch, self._rows = [], {}

    def _find_rows(self) -> list[int]:
        """The row of each request of the step; one that is new takes the row of one that is not in it."""
        ids = [future.state.request_id for future in self.requests_in_batch]
        if any(i not in self._rows for i in ids):
            here = set(ids)
            self._rows = {i: row for i, row in self._rows.items() if i in here}
            free = iter(sorted(set(range(self.slots)) - set(self._rows.values())))
            for i in ids:
                if i not in self._rows:
                    row = self._rows[i] = next(free)
                    for places in self._places:
                        places.forget(row)
        return [self._rows[i] for i in ids]


class _Places:
    """Where the keys of every request lie, for the layers of one allocator."""

    def __init__(self, allocator: Any, slots: int, context: int, device: torch.device) -> None:
        self.window: int | None = getattr(allocator, "sliding_window", None)
        page = allocator.tokens_per_page
        longest = min(context, allocator.num_blocks * page) if self.window is None else self.window
        self._allocator, self._page, self._device = allocator, page, device
        self.width = -(-longest // page) * page
        self._table = torch.zeros(slots + 1, self.width, dtype=torch.int64, device=device)
        self._table[slots] = allocator.write_trash_index  # the padding
        self._filled: list[tuple[list[int] | None, int]] = [(None, 0)] * slots  # the pages that a row shows
        self._within = torch.arange(page, device=device)
        self._columns = torch.arange(self.width, device=device)

    def forget(self, row: int) -> None:
        """The row has to be read again."""
        self._filled[row] = (None, 0)

    def plan(
        self, requests: Sequence[FutureRequestState], rows: Sequence[int], lengths: Sequence[tuple[int, int]]
    ) -> Plan:
        """The step's plan, for these requests in this order."""
        writes: list[int | Tensor] = []
        spans: list[Span] = []
        singles: dict[int, list[tuple[int, int, int]]] = {}  # by length: token, row, keys
        token = 0
        stride, page, window = self._allocator.block_physical_stride, self._page, self.window
        for future, row, (past, new) in zip(requests, rows, lengths, strict=True):
            pages = self._allocator.block_table[future.state.request_id]
            self._fill(row, pages)
            if new == 1 and past:
                at = past if window is None else past % window
                count = past + 1 if window is None else min(past + 1, window)
                writes.append(pages[at // page] * stride + at % page)
                singles.setdefault(max(NARROW, count - 1).bit_length(), []).append((token, row, count))
            else:
                writes.append(self._writes(row, past, new))
                spans.append(self._span(row, past, slice(token, token + new)))
            token += new
        return Plan(
            self._join(writes),
            tuple(self._singles(some, len(some) == token) for some in singles.values()),
            tuple(spans),
            window,
        )

    def fill(self, requests: Sequence[FutureRequestState], rows: Sequence[int]) -> None:
        """Bring the rows of these requests up to date."""
        for future, row in zip(requests, rows, strict=True):
            self._fill(row, self._allocator.block_table[future.state.request_id])

    def fixed(self, rows: Tensor, positions: Tensor, keys: int) -> Plan:
        """The plan for requests with one new token each, of a shape that `keys` says; made by the device alone."""
        at, counts = positions, positions + 1
        if self.window is not None:
            at, counts = at % self.window, counts.clamp(max=self.window)
        keys = min(keys, self.width)
        mask = self._columns[:keys] < counts[:, None]  # (n, keys)
        slots = self._table[:, :keys].index_select(0, rows) * mask
        return Plan(self._table[rows, at], (Singles(None, slots.flatten(), mask[:, None, None, :]),), (), self.window)

    def _join(self, writes: Sequence[int | Tensor]) -> Tensor:
        if all(isinstance(at, int) for at in writes):
            return torch.tensor(writes, device=self._device)
        parts: list[Any] = []
        for ready, some in groupby(writes, key=lambda at: isinstance(at, Tensor)):
            same = list(some)
            parts += same if ready else [torch.tensor(same, device=self._device)]
        return torch.cat(parts)

    def _fill(self, row: int, pages: list[int]) -> None:
        shown, count = self._filled[row]
        if shown is pages and count == len(pages):
            return
        first = count if shown is pages else 0
        starts = send(pages[first:], self._device) * self._allocator.block_physical_stride
        self._table[row, first * self._page : len(pages) * self._page] = (starts[:, None] + self._within).flatten()
        self._filled[row] = (pages, len(pages))

    def _writes(self, row: int, past: int, new: int) -> Tensor:
        if self.window is None:
            return self._table[row, past : past + new]
        at = self._table[row].index_select(0, torch.arange(past, past + new, device=self._device) % self.window)
        at[: max(0, new - self.window)] = self._allocator.write_trash_index  # the window has passed them already
        return at

    def _span(self, row: int, past: int, queries: slice) -> Span:
        new = queries.stop - queries.start
        window = self.window
        if window is None:
            kept, slots = past, self._table[row, :past]
        else:
            kept = min(past, window - 1)
            slots = self._table[row].index_select(0, torch.arange(past - kept, past, device=self._device) % window)
        if not kept and (window is None or new <= window):
            return Span(queries, None, None)
        mask = torch.ones(new, kept + new, dtype=torch.bool, device=self._device).tril_(kept)
        if window is not None:
            mask.triu_(kept - window + 1)
        return Span(queries, slots if kept else None, mask)

    def _singles(self, some: Sequence[tuple[int, int, int]], all_there_is: bool) -> Singles:
        tokens, rows, counts = zip(*some, strict=True)
        longest = max(counts)
        where = None if all_there_is else torch.tensor(tokens, device=self._device)
        if len(rows) == 1:
            return Singles(where, self._table[rows[0], :longest], None)
        table = self._table[:, :longest].index_select(0, torch.tensor(rows, device=self._device))
        if min(counts) == longest:
            return Singles(where, table.flatten(), None)
        mask = self._columns[:longest] < torch.tensor(counts, device=self._device)[:, None]  # (n, longest)
        # Slot 0 is never written, so that what is masked out is finite.
        return Singles(where, (table * mask).flatten(), mask[:, None, None, :])
