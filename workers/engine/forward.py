"""From a step's tokens to logits: one forward pass, as a CUDA graph where there is one for it.

Says the adapters whose tokens are where, and has the followers do their part. Knows the step only as `inputs` holds it;
no requests, no sampling.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workers.engine.adapters import Adapters
from workers.engine.graphs import Capture, Graphs
from workers.engine.inputs import Inputs
from workers.engine.transfer import send

if TYPE_CHECKING:
    from workers.engine.parallel import Followers

logger = logging.getLogger("fleetchat.engine")


class Forward:
    """The forward passes of one model. Belongs to the engine's thread."""

    def __init__(
        self,
        model: Any,  # a PreTrainedModel
        inputs: Inputs,
        adapters: Adapters | None = None,
        followers: "Followers | None" = None,
        capture: Capture | None = None,
    ) -> None:
        """`capture` is what makes graphs; without, there are none."""
        self._model = model
        self._slices = bool(model._supports_logits_to_keep())
        self._inputs, self._adapters, self._followers = inputs, adapters, followers
        self.graphs = None if capture is None else Graphs(self._whole, inputs, capture, model.dtype)

    def logits(self, adapters: Sequence[int], more: Sequence[Tensor] = ()) -> Tensor:
        """Logits, float32, shape (kept, vocab), good until the next step.

        Of the requests that get a token, in order, and then of `more` tokens of the step.

        Args:
            adapters: one per request of the step; 0 is none.
        """
        graphs = self.graphs
        answers = None if graphs is None or more or any(adapters) else self._inputs.answers()
        if graphs is None or answers is None:
            return self._one_by_one(adapters, more)
        logits = graphs.replay(answers)
        if logits is None:
            logits = self._one_by_one(adapters, more)
            if not graphs.capture(answers, logits):
                self.graphs = None
        return logits

    def ready(self, adapters: Sequence[int], longest: int) -> bool:
        """Whether `ahead` can be had for requests with these adapters, at position `longest` at most."""
        return self.graphs is None or any(adapters) or self.graphs.fits(len(adapters), longest)

    def ahead(self, adapters: Sequence[int], ids: Tensor) -> Tensor:
        """As `logits`, of a step of answers alone whose tokens are on the device; nothing waits for it.

        Args:
            ids: shape (requests,), in place of those that `inputs` has.
        """
        inputs = self._inputs
        answers = inputs.answers()
        assert answers is not None
        if self.graphs is not None and not any(adapters):
            logits = self.graphs.replay(answers, ids)
            assert logits is not None
            return logits
        self._say(adapters)
        _, positions, rows = send(answers, inputs.device).T.contiguous()
        inputs.kwargs = inputs.fixed(ids, positions, rows, inputs.room(max(position for _, position, _ in answers)))
        return self._whole(inputs.kwargs).float()

    def pass_once(self, keep: Tensor) -> Tensor:
        """Logits, float32, shape (kept, vocab), of these tokens of the step that `inputs` has built."""
        kwargs = self._inputs.kwargs
        if self._followers is not None:
            self._followers.send(kwargs, keep)
        if self._slices:
            return self._model(**kwargs, logits_to_keep=keep).logits[0].float()  # type: ignore[no-any-return]
        return self._whole(kwargs)[keep].float()

    def release(self) -> None:
        """Let go of the model; nothing can be had from now on."""
        self._model = self.graphs = None

    def _one_by_one(self, adapters: Sequence[int], more: Sequence[Tensor]) -> Tensor:
        """See logits; the kernels are started by Python."""
        self._inputs.build()
        keep = self._inputs.last
        if more:
            keep = torch.cat((keep, *(rows.to(keep.device) for rows in more)))
        self._say(adapters)
        return self.pass_once(keep)

    def _say(self, adapters: Sequence[int]) -> None:
        if self._adapters is not None:
            self._adapters.use([(a, new) for a, (_, new) in zip(adapters, self._inputs.lengths, strict=True)])

    def _whole(self, kwargs: dict[str, Any]) -> Tensor:
        """Logits, shape (tokens, vocab), of all tokens."""
        return self._model(**kwargs).logits[0]  # type: ignore[no-any-return]
