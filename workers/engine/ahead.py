"""Steps that are launched before the host knows the tokens of the step before, so that a GPU never waits for it.

As it is without this, the host books and delivers a step's tokens while the device stands still. Here step N + 1 is fed
with the picks of step N where they lie, on the device; only then the host waits for those of N. That goes for answers
alone, whose next picks need nothing but logits. What the tokens of N end has run one step too many: its pick of N + 1
is thrown away.

That step does no harm. It wrote the keys of one token, the last of its answer, behind all that are known: into a page
that the request had when the step was launched. No prefix is found there, for pages get their hashes from tokens that
were booked, in steps that were booked, and only when they are full. The page may belong to another request by now,
but what that one writes comes later on the same stream, and it reads nothing that it did not write. Pages that were
exchanged for others with the same content are read by then, too.

Knows requests, the cache and the model; no streams, and not why a request ends.
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.requests import FutureRequestState

from broker.messages import Sampling
from workers.engine.draws import UNDECIDED
from workers.engine.forward import Forward
from workers.engine.inputs import Inputs
from workers.engine.sampling import Row, Sampler
from workers.engine.transfer import Fetch, send

KINDS = Sampling(0.0), Sampling(), Sampling(top_p=0.9), Sampling(top_k=40, top_p=0.9, min_p=0.01)


@dataclass(eq=False, slots=True)
class Flight:
    """A step that was launched and whose tokens the host has not seen."""

    requests: list[FutureRequestState]
    rows: list[Row]  # of each request, as are the others
    adapters: list[int]
    logits: Tensor
    picks: Tensor
    wait: Callable[[], list[int]]
    lost: set[str] = field(default_factory=set)  # ids of requests that it was fed with a wrong token for

    def live(self, active: Container[str]) -> list[int]:
        """The numbers of its requests that are not over, or that have to be run again."""
        ids = [future.state.request_id for future in self.requests]
        return [at for at, id_ in enumerate(ids) if id_ in active and id_ not in self.lost]


class Ahead:
    """Launches steps. Belongs to the engine's thread."""

    def __init__(
        self, forward: Forward, inputs: Inputs, sampler: Sampler, cache: PagedAttentionCache, fetch: Fetch
    ) -> None:
        self._forward, self._inputs, self._sampler = forward, inputs, sampler
        self._cache, self._fetch = cache, fetch
        self.steps = 0  # that were launched before the tokens of the step before were known

    def launch(self, rows: list[Row], adapters: list[int]) -> Flight | None:
        """The step that was scheduled; None when it is one that the host has to see through.

        Args:
            rows: one per request, as the adapters.
        """
        if not self._inputs.alone or not all(row.plain for row in rows):
            return None
        return self._fly(rows, adapters, self._forward.logits(adapters), 0)

    def follow(self, flight: Flight, live: Sequence[int]) -> Flight | None:
        """The step behind one that is under way; None when it has to wait for that.

        Args:
            live: the numbers of the requests that go on, unless they are at their limit.
        """
        going = [at for at in live if _goes_on(flight.requests[at])]
        states = [flight.requests[at].state for at in going]
        rows, adapters = [flight.rows[at] for at in going], [flight.adapters[at] for at in going]
        if not states or not self._forward.ready(adapters, max(state.position_offset for state in states)):
            return None
        if not all(self._cache.can_store_request_tokens(state, 1) for state in states):  # the others keep their pages
            return None
        complete = [self._cache.count_new_complete_blocks(state, 1) for state in states]
        requests = [FutureRequestState(state, True, new, 1) for state, new in zip(states, complete, strict=True)]
        ids = flight.picks.clamp(min=0)  # any token will do where there is none
        if len(going) < len(flight.requests):
            ids = ids[send(going, ids.device)]
        self._inputs.prepare_batch_tensors(requests)
        self.steps += 1
        return self._fly(rows, adapters, self._forward.ahead(adapters, ids), 1)

    def tokens(self, flight: Flight, live: Sequence[int], following: Flight | None) -> list[int]:
        """What the requests with these numbers were given; waits for it.

        Where the device could not decide, the host does, and what follows has to be run again.
        """
        found = flight.wait()
        for at in live:
            if found[at] == UNDECIDED:
                found[at] = self._sampler.pick(flight.logits[at : at + 1], [flight.rows[at]]).tokens[0]
                if following is not None:
                    _lose(following, flight.requests[at].state.request_id)
        return [found[at] for at in live]

    def try_out(self) -> None:
        """Launch the scheduled step and one ahead of it, and draw from both in all ways.

        Raises:
            ArithmeticError: the device's picks are not the host's.
        """
        flight = self.launch([_plain(KINDS[0])], [0])
        following = None if flight is None else self.follow(flight, [0])
        assert flight is not None
        assert following is not None
        for logits in flight.logits, following.logits:
            rows = [_plain(kind) for kind in KINDS]
            many = logits.expand(len(rows), -1).contiguous()
            there = self._fetch(self._sampler.pick_there(many, rows, 0))()
            here = self._sampler.pick(many, rows).tokens
            if any(a not in (b, UNDECIDED) for a, b in zip(there, here, strict=True)):
                raise ArithmeticError(f"the device picks {there} and the host {here}")

    def _fly(self, rows: list[Row], adapters: list[int], logits: Tensor, ahead: int) -> Flight:
        picks = self._sampler.pick_there(logits, rows, ahead)
        wait = self._fetch(picks)
        # A graph has one place for all its logits.
        return Flight(self._inputs.requests_in_batch, rows, adapters, logits.clone(), picks, wait)


def _plain(sampling: Sampling) -> Row:
    return Row(sampling, frozenset(), (), ())


def _goes_on(future: FutureRequestState) -> bool:
    """Whether a token more is wanted behind the one that is not known yet, if that ends nothing."""
    state = future.state
    return state.max_new_tokens is None or state.generated_len() + 1 < state.max_new_tokens


def _lose(flight: Flight, request_id: str) -> None:
    """Take back that the request was in the step; it runs the place again, and overwrites the keys."""
    for future in flight.requests:
        if future.state.request_id == request_id:
            future.state.position_offset -= 1
            flight.lost.add(request_id)
