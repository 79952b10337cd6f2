"""Steps of answers alone, as CUDA graphs: with one new token a request, starting the kernels one by one from Python
takes longer than their work.

What is captured is a whole forward pass at a fixed shape: some requests, some keys each. It reads three numbers a
request (token, position, row in the tables of cache slots) and the tables themselves, and works out from them on the
device where keys are written and read; so a step is one small copy and one replay. Missing requests are padding, whose
row leads to the place of the cache where nothing is kept. A shape is captured when it first comes, with nothing but
padding in it, and then has to give the logits that the same step had without a graph: what Python put into the graph
once, or what cannot be captured at all, shows there. Knows no sampling and no adapters.
"""

import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from workers.engine.inputs import Inputs, Single
from workers.engine.transfer import pinned

logger = logging.getLogger("fleetchat.engine")

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # requests in a graph; the slots are one more size
KEPT = 32  # graphs; the one that was not used for longest goes

Work = Callable[[], None]
Capture = Callable[[Work], Work]
"""Gives what does the work again, with what the same tensors hold by then."""


class Graphs:
    """The graphs of one model. Belongs to the engine's thread."""

    def __init__(
        self, forward: Callable[[dict[str, Any]], Tensor], inputs: Inputs, capture: Capture, dtype: torch.dtype
    ) -> None:
        """None yet.

        Args:
            forward: the model's logits, shape (tokens, vocab), for its arguments.
            dtype: what the model calculates in, which says how near two ways to the same logits are.
        """
        self._forward, self._inputs, self._capture = forward, inputs, capture
        self._near = torch.finfo(dtype).eps ** 0.5
        # (slots, 3): token, position, row
        self._numbers = torch.zeros(inputs.slots, 3, dtype=torch.int64, device=inputs.device)
        self._logits: Tensor | None = None  # (slots, vocab), float32; of all graphs, since one runs at a time
        self._graphs: OrderedDict[tuple[int, int], Work] = OrderedDict()

    def fits(self, requests: int, longest: int) -> bool:
        """Whether there is a graph for so many requests, at position `longest` at most."""
        return self._shape(requests, longest) in self._graphs

    def replay(self, answers: Sequence[Single], ids: Tensor | None = None) -> Tensor | None:
        """Logits, float32, shape (requests, vocab), good until the next step; None when this shape has no graph.

        Args:
            ids: tokens on the device, shape (requests,), in place of those in `answers`.
        """
        shape = self._shape_of(answers)
        graph = self._graphs.get(shape)
        if graph is None:
            return None
        self._graphs.move_to_end(shape)
        return self._run(graph, shape, answers, ids)

    def capture(self, answers: Sequence[Single], expected: Tensor) -> bool:
        """Make the graph for a step's shape. False when that cannot be, and then there is no use in another try.

        Args:
            expected: the step's logits; float32, shape (requests, vocab).
        """
        shape = self._shape_of(answers)
        try:
            if self._logits is None:
                self._logits = expected.new_empty(self._inputs.slots, expected.shape[1])
            self._fill(shape, ())
            graph = self._capture(self._work(shape))
            found = self._run(graph, shape, answers)
            off, size = (found - expected).norm(dim=1), expected.norm(dim=1)
            if not (off <= self._near * size).all():  # nor when one is not a number
                raise ArithmeticError(f"logits of length {size.max():.3g} are off by {off.max():.3g}")
        except Exception as error:  # of the model's own code too, which nobody wrote to be captured
            logger.warning("the engine goes on without CUDA graphs, which is slower but right: %r", error)
            return False
        self._graphs[shape] = graph
        if len(self._graphs) > KEPT:
            self._graphs.popitem(last=False)
        return True

    def _shape_of(self, answers: Sequence[Single]) -> tuple[int, int]:
        return self._shape(len(answers), max(position for _, position, _ in answers))

    def _shape(self, requests: int, longest: int) -> tuple[int, int]:
        """Requests and keys that there is room for."""
        slots = self._inputs.slots
        return min(next((size for size in SIZES if size >= requests), slots), slots), self._inputs.room(longest)

    def _work(self, shape: tuple[int, int]) -> Work:
        """The forward pass of this shape, from static tensors to static tensors."""
        size, keys = shape
        numbers, logits = self._numbers[:size], self._logits
        assert logits is not None

        def work() -> None:
            ids, positions, rows = numbers.T.contiguous()
            logits[:size].copy_(self._forward(self._inputs.fixed(ids, positions, rows, keys)))

        return work

    def _run(self, graph: Work, shape: tuple[int, int], answers: Sequence[Single], ids: Tensor | None = None) -> Tensor:
        self._fill(shape, answers)
        if ids is not None:
            self._numbers[: len(ids), 0] = ids
        graph()
        assert self._logits is not None
        return self._logits[: len(answers)]

    def _fill(self, shape: tuple[int, int], answers: Sequence[Single]) -> None:
        """The numbers of a step, in one copy."""
        size = shape[0]
        numbers = [*answers, *[(0, 0, self._inputs.padding)] * (size - len(answers))]
        self._numbers[:size].copy_(pinned(numbers, self._inputs.device), non_blocking=True)


def capture_on(device: torch.device) -> Capture | None:
    """What captures on this device; None where there are no graphs."""
    if device.type != "cuda":
        return None
    # One pool of memory does for all graphs, since one runs at a time and none keeps its result in there.
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def capture(work: Work) -> Work:
        stream.wait_stream(torch.cuda.current_stream(device))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.cuda.stream(stream):  # the stream also when torch does not put it back
            with _without_waiting():
                work()  # before it is captured: what is made once must not be in the graph's memory
            with torch.cuda.graph(graph, pool, stream, "thread_local"):
                work()
        torch.cuda.current_stream(device).wait_stream(stream)
        return graph.replay

    return capture


@contextmanager
def _without_waiting() -> Iterator[None]:
    """What waits for the device, and so cannot be captured, raises: a capture that fails leaves more behind."""
    with warnings.catch_warnings(action="ignore"):  # that not everything is found
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
