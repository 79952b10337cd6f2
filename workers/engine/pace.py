"""How a step is run so that it is quick: with how many threads, and with how much of new prompts in it.

Both are learnt from the steps themselves, since machines, models and neighbours differ. Threads that wait for each
other at the end of every operation are the fastest way on a quiet machine; on one that has other work to do, a thread
that is not running holds all others up and one alone is many times faster. And a prompt is read in parts that keep a
step below a multiple of the usual, so that running answers go on evenly.
"""

import ctypes
import math
import sys
import time
from collections import deque
from statistics import median

import torch

STRETCH = 0.6  # time that prompts may add to a step, as a multiple of a step without them
LEAST_TOKENS = 24  # of prompts in a step, however slow: fewer cost hardly less, and would look slower still
RECENT = 0.3  # weight of the newest measurement
STEPS = 9  # without prompts, whose median is the usual
TRIAL_EVERY = 128  # steps, after which the other number of threads is tried for two
BEARABLE = 2.0  # times as long as with all threads, up to which one thread is tried
CLEARLY = 0.9  # of the time with all threads, below which one thread is better
KEEP_BYTES = 2**30  # of freed memory that stays with the process
READY_BYTES = 2**25  # of it that are there from the beginning
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_memory() -> None:
    """Let what one step frees be the memory of the next one; for the steps' thread, when the model is loaded.

    As glibc is by itself, tensors that grow a little with every step, as keys do, are new pages of the system's every
    time, and on a virtual machine a page costs 10 us: a prompt's step took 40 ms in place of 9. Does nothing elsewhere.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEEP_BYTES)
        mallopt(M_MMAP_THRESHOLD, KEEP_BYTES)
        torch.ones(READY_BYTES, dtype=torch.uint8)


class Pace:
    """What has been learnt. Belongs to the engine's thread."""

    def __init__(self, step_tokens: int) -> None:
        """`step_tokens` is the most that a step may have."""
        self._most = step_tokens
        self._decodes: deque[float] = deque(maxlen=STEPS)  # seconds of the last steps without prompts
        self._token: float | None = None  # seconds that a prompt token adds
        self._threads = _Threads()
        self._begun = 0.0

    def room(self, running: int) -> int:
        """Tokens that the next step may have, beside `running` answers that it must not hold up."""
        if not running or not self._decodes or self._token is None:
            return self._most
        prompts = max(LEAST_TOKENS, int(STRETCH * median(self._decodes) / self._token))
        return min(self._most, running + prompts)

    def begin(self, running: int, prompt_tokens: int) -> None:
        """A step begins, with so many answers and so many tokens of prompts."""
        self._threads.choose(0 if prompt_tokens else running)
        self._begun = time.perf_counter()

    def end(self, running: int, prompt_tokens: int) -> None:
        """It is over."""
        spent = time.perf_counter() - self._begun
        if not prompt_tokens:
            self._threads.learn(spent)
        if self._threads.trial:
            return
        if not prompt_tokens:
            self._decodes.append(spent)
        elif not running or self._decodes:
            usual = median(self._decodes) if running else 0.0
            self._token = _mix(self._token, max(spent - usual, 0.1 * spent) / prompt_tokens)


class _Threads:
    """One thread or all of them, whichever is quicker now, for steps with about as many answers and no prompts."""

    def __init__(self) -> None:
        self._all = torch.get_num_threads()
        self._seconds: dict[tuple[int, int], float] = {}  # by size and threads
        self._slowest: dict[int, float] = {}  # by size: what one thread may need, as long as it was not tried
        self._counts: dict[int, int] = {}
        self._now = (0, self._all)
        self.trial = False

    def choose(self, running: int) -> None:
        """For a step with so many answers; 0 for one with prompts, whose time says nothing and which wants all."""
        if self._all == 1:
            return
        size = running.bit_length()
        count = self._counts[size] = self._counts.get(size, 0) + 1
        one, many = (self._seconds.get((size, threads)) for threads in (1, self._all))
        threads = 1 if one is not None and many is not None and one < CLEARLY * many else self._all
        slowest = self._slowest.get(size, math.inf) if one is None else one
        # One thread of many is tried only when it cannot be much slower: with a large model it may take seconds.
        self.trial = (
            running > 0 and count % TRIAL_EVERY in (8, 9) and (threads == 1 or slowest <= BEARABLE * (many or 0.0))
        )
        if self.trial:
            threads = self._all + 1 - threads
        if threads != self._now[1]:
            torch.set_num_threads(threads)
        self._now = (size, threads)

    def learn(self, seconds: float) -> None:
        self._seconds[self._now] = _mix(self._seconds.get(self._now), seconds)
        size, threads = self._now
        if threads == self._all:  # at worst, one alone needs as much longer as there are threads
            self._slowest[size] = min(self._slowest.get(size, math.inf), seconds * threads)


def _mix(before: float | None, now: float) -> float:
    return now if before is None else before + RECENT * (now - before)
