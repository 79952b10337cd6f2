"""Who is in the next step: transformers' scheduler, with our pace.

Importing this makes it known to transformers.
"""

import sys
from typing import Any

from transformers.generation.continuous_batching.requests import RequestState, RequestStatus
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler

from workers.engine.pace import Pace

SCHEDULER = "fleetchat"  # its name in a configuration
YOUNG = 8  # tokens up to which an answer has no rhythm that a step with prompts could break
SHORT = 128  # tokens of a prompt that does not hold others up


class Scheduler(FIFOScheduler):
    """First come, first served, with no more of new prompts in a step than running answers bear.

    While all answers have just begun and only short prompts wait, the prompts go first: so of many requests that come
    together each gets its first token as soon as can be, and no reader has a rhythm yet that could break.
    """

    pace: Pace  # set once the scheduler is made

    def schedule_batch(self, token_budget: int, cache_budget: int) -> Any:
        """See FIFOScheduler."""
        active = list(self.active_requests.values())
        made = [state.generated_len() for state in active if state.status == RequestStatus.DECODING]
        prompts = [state for state in active if state.status != RequestStatus.DECODING]
        prompts += list(self.waiting_requests.values())
        self._burst = max(made, default=0) < YOUNG and all(len(s.remaining_prefill_tokens) <= SHORT for s in prompts)
        room = self.pace.room(0 if self._burst else len(made))
        # The budget of cache that may be read is for index tensors that we do not have.
        return super().schedule_batch(min(token_budget, room), sys.maxsize)

    def clear_cancelled_requests(self) -> list[RequestState]:
        """See FIFOScheduler; the room that they leave is for new ones."""
        gone = super().clear_cancelled_requests()
        if gone:
            self.block_new_requests = False
        return gone

    def _process_candidates(self, candidates: list[RequestState], *others: Any) -> Any:
        if self._burst:
            begun = sum(state.status == RequestStatus.DECODING for state in candidates)
            prompts = candidates[begun : self.max_requests_per_batch]  # answers that wait keep their slots
            found = super()._process_candidates(prompts, *others)
            if found[0]:
                return found
        return super()._process_candidates(candidates, *others)


SCHEDULER_MAPPING[SCHEDULER] = Scheduler
