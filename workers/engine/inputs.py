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

TOKEN_BITS = (
    20  # of a token id; the bits above them, in the first token of a prompt, keep its prefix apart from others'
)
TOKEN_MASK = (1 << TOKEN_BITS) - 1
NARROW = 256  # up to so many keys, requests of all lengths are padded to the longest of them


class Inputs:
    """The current step. Its public attributes are those that the stock manager reads."""

    compute_stream = None

    def __init__(self, cache: PagedAttentionCache, slots: int, context: int) -> None:
        self.requests_in_batch: list[FutureRequestState] = []
        self.kwargs: dict[str, Any] = {}
        self._device = torch.device(cache.device)
        self._cache = cache
        self._places = [
            _Places(allocator, slots, context, self._device) for allocator in cache.cache_allocators.values()
        ]
        self._rows: dict[str, int] = {}  # request id -> its row in the tables
        self._slots = slots

    def prepare_batch_tensors(self, requests_in_batch: Sequence[FutureRequestState], **others: Any) -> None:
        """Take the scheduled requests in and build the arguments of the forward pass."""
        self.requests_in_batch = list(requests_in_batch)
        rows = self._find_rows()
        ids: list[int] = []
        positions: list[int] = []
        last: list[int] = []  # of the requests that get a token: their last token's place in the step
        lengths: list[tuple[int, int]] = []  # tokens in the cache before the step, new tokens
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
        plans = [places.plan(requests_in_batch, rows, lengths) for places in self._places]
        device = self._device
        self.last = torch.tensor(last, dtype=torch.int64, device=device)  # (requests with a new token,)
        self.lengths = lengths
        self.kwargs = {
            "input_ids": torch.tensor([ids], device=device),  # (1, tokens)
            "position_ids": torch.tensor([positions], device=device),
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
            free = iter(sorted(set(range(self._slots)) - set(self._rows.values())))
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
        self._table = torch.zeros(slots, -(-longest // page) * page, dtype=torch.int64, device=device)
        self._filled: list[tuple[list[int] | None, int]] = [(None, 0)] * slots  # the pages that a row shows
        self._within = torch.arange(page, device=device)
        self._columns = torch.arange(self._table.shape[1], device=device)

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
        starts = torch.tensor(pages[first:], device=self._device) * self._allocator.block_physical_stride
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
