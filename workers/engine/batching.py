"""transformers' continuous batching, made to fit: the one module that knows its inside (transformers 5.23).

In come streams (a prompt, how to sample, a limit), out go, once per step, the new tokens of all of them. Kept of the
stock manager are the paged cache, its sharing of prefixes, and the scheduler. Ours are the step itself (inputs,
forward pass, picks), what happens when one fails (it ends its own requests and not the engine), and an idle engine
that sleeps until there is work. Knows tokens and threads; no text, no event loop.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.distributed.tensor_parallel import get_kv_heads_per_rank
from transformers.generation.continuous_batching.continuous_api import (
    BackgroundThreadStatus,
    ContinuousBatchingManager,
    ContinuousBatchProcessor,
    OutputRouter,
)
from transformers.generation.continuous_batching.model_runner import infer_max_single_request_tokens
from transformers.generation.continuous_batching.requests import (
    FutureRequestState,
    GenerationOutput,
    RequestState,
    RequestStatus,
)
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler
from transformers.generation.continuous_batching.utils import find_head_dim, find_num_key_value_heads
from transformers.generation.continuous_batching.utils import logger as stock

from broker.messages import Sampling
from workers.engine import attention
from workers.engine.adapters import Adapters
from workers.engine.graphs import Graphs, capture_on
from workers.engine.inputs import TOKEN_BITS, Inputs
from workers.engine.model import Loaded, free_bytes
from workers.engine.pace import Pace, keep_freed_memory
from workers.engine.sampling import Logprob, Row, Sampler, prompt_logprobs

if TYPE_CHECKING:
    from workers.engine.parallel import Followers

logger = logging.getLogger("fleetchat.engine")

PAGE = 32  # tokens in a page of the cache, the unit in which prompts share their beginnings
STEP_TOKENS = 512  # a longer prompt is read in several steps, so that running answers go on
YOUNG = 8  # tokens up to which an answer has no rhythm that a step with prompts could break
SHORT = 128  # tokens of a prompt that does not hold others up
GATHER_SECONDS = 0.001  # an idle engine waits so long for another request to come
AUTO_SHARE = 0.25  # of the free memory, for the cache, when nobody says how much
FAILURES = (
    30  # steps that may fail in a row before the engine takes the device for broken; a poisoned request fails three
)
DEAD = "the engine's thread has ended"
NOT_FINITE = "the model's logits are not finite"
DEVICE_GONE: tuple[type[Exception], ...] = (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()
PRIVATE = (1 << 31 - TOKEN_BITS) - 1  # the root of prefixes that nobody shares; adapters have the numbers below it


@dataclass(eq=False, slots=True)
class Stream:
    """One live request. Once it has joined it belongs to the batching thread."""

    prompt: list[int]  # with the tokens that an earlier worker has said
    limit: int  # new tokens at most
    end_ids: frozenset[int]
    row: Row
    adapter: int = 0  # 0 is the model without one
    prompt_logprobs: int | None = None  # alternatives to score the prompt with
    scored: int = 1  # prompt tokens that have their log-probability; the first one has none
    id: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step brought a stream."""

    stream: Stream
    token: int | None = None
    logprob: Logprob | None = None
    prompt: Sequence[tuple[int, Logprob]] = ()  # the next prompt tokens with theirs; the first one of all has none
    error: str | None = None  # the stream is over, and why


Deliver = Callable[[Sequence[Step]], None]
GONE = Row(Sampling(temperature=0.0), frozenset(), (), ())  # for a request whose reader has left: any token will do


class Batcher(ContinuousBatchingManager):
    """Runs all streams, one step of all at a time, in a thread of its own."""

    def __init__(
        self,
        loaded: Loaded,
        slots: int,
        cache_mb: int,
        deliver: Deliver,
        adapters: Adapters | None = None,
        followers: "Followers | None" = None,
    ) -> None:
        """Takes the cache; `start` starts the thread.

        Args:
            slots: streams in one step.
            cache_mb: memory for keys and values; 0 for a share of what is free, or all that the slots can use.
            deliver: called from the thread, once a step.
            followers: the processes that have the other parts of the model.

        Raises:
            MemoryError: the cache does not fit.
            ValueError, NotImplementedError: the model's attention cannot be paged.
        """
        self._streams: dict[str, Stream] = {}
        self._numbers = count()
        self._deliver = deliver
        self._adapters = adapters
        self._followers = followers
        self._failures = 0
        self._slots, self._context = slots, loaded.context
        self._sampler = Sampler(loaded.device)
        self._pace = Pace(max(STEP_TOKENS, slots))
        self.steps = 0
        stock.setLevel(logging.WARNING)  # it has a handler and a format of its own
        config = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=_pages(loaded, slots, cache_mb),
            max_batch_tokens=max(STEP_TOKENS, slots),
            max_requests_per_batch=slots,
            scheduler_type=attention.NAME,
            max_memory_percent=1e6,  # the stock check counts masks that we do not have; _pages has one of its own
            auto_switch_to_flash=False,  # it may fetch kernels from the hub
            use_cuda_graph=False,  # we have our own
            use_async_batching=False,  # a step needs the last token on the host
            disable_nccl_graph_mixing=False,  # no graphs with several GPUs, and it warns about them
        )
        model: Any = loaded.model
        super().__init__(model, GenerationConfig(do_sample=False), config)  # type: ignore[no-untyped-call]
        self._slices = bool(model._supports_logits_to_keep())
        helper = self.distributed_helper  # stock: it takes heads that are gathered again for divided
        helper.tp_plan = {name: style for name, style in helper.tp_plan.items() if style == "colwise"}
        self.output_router = _Router(self._streams, deliver)
        self.batch_processor = self._create_batch_processor()
        capture = capture_on(loaded.device) if helper.tp_size == 1 else None
        self._graphs = None if capture is None else Graphs(self._whole, self._inputs, capture, loaded.dtype)
        helper.tp_size = 1  # the cache has its part of the heads, and steps are shared in our way
        self._try_out()
        if self._graphs is not None:
            logger.info("steps without prompts run as CUDA graphs")

    @property
    def alive(self) -> bool:
        """Whether the thread runs and takes streams."""
        whole = self._followers is None or self._followers.alive
        return whole and self.is_running() and self.background_thread_status.can_accept_new_requests() is None

    @property
    def cache_bytes(self) -> int:
        """Memory that keys and values take."""
        cache = self._processor.cache
        return int(cache.num_sectors * cache.bytes_per_sector)

    @property
    def cache_tokens(self) -> int:
        """Tokens that fit into the cache, all streams together."""
        return int(self._processor.cache.max_tokens_read)

    @property
    def longest(self) -> int:
        """Tokens that one stream can have when it is alone."""
        return int(infer_max_single_request_tokens(self._processor.cache))

    def free_share(self) -> float:
        """The part of the cache that no stream holds; what is kept for later prompts counts as free."""
        cache = self._processor.cache
        kept = sum(len(a.ledger.cached_blocks) * a.bytes_per_block for a in cache.cache_allocators.values())
        return float((cache.compute_free_capacity(relative=False) + kept) / self.cache_bytes)

    def start(self) -> None:
        """Start the thread."""
        self.background_thread_status.clear()
        thread: Any = threading.Thread(target=self._run, name="engine", daemon=True)
        self._generation_thread = thread
        thread.start()

    def join_stream(self, stream: Stream) -> bool:
        """Take a stream in with the next step; False when the thread has ended."""
        if not self.alive:
            return False
        stream.id = str(next(self._numbers))  # the same request may come back while its first try is let go of
        self._streams[stream.id] = stream
        root = stream.adapter if stream.prompt_logprobs is None else PRIVATE  # what is shared is not computed again
        prompt = [stream.prompt[0] | root << TOKEN_BITS, *stream.prompt[1:]]
        taken = self.add_request(
            prompt, request_id=stream.id, max_new_tokens=stream.limit, eos_token_id=sorted(stream.end_ids)
        )
        if taken is None or not self.alive:  # it ended meanwhile
            self._streams.pop(stream.id, None)
            return False
        return True

    def leave(self, stream: Stream) -> None:
        """Let go of a stream: its slot and cache are free before the next step but one. Harmless when it is over."""
        if self._streams.pop(stream.id, None) is not None:
            self.cancel_request(stream.id)

    def shut(self, timeout: float) -> None:
        """Stop the thread, in the middle of everything; waits for at most `timeout` seconds."""
        thread = self._generation_thread
        self.background_thread_status.request_stop(BackgroundThreadStatus.HARD_STOP, 0)
        self._wake_up_loop.set()
        if thread is not None:
            thread.join(timeout)
            if thread.is_alive():
                logger.warning("the engine's step takes longer than %s s; leaving its thread behind", timeout)

    @property
    def _processor(self) -> ContinuousBatchProcessor:
        assert self.batch_processor is not None
        return self.batch_processor

    def _run(self) -> None:
        keep_freed_memory()
        try:
            self._run_generation_loop()
        finally:
            left = list(self._streams.values())
            self._streams.clear()
            self._deliver([Step(stream, error=DEAD) for stream in left])
            self._graphs = None  # and their memory

    def switch_to_cb_friendly_attn(self, model: Any, auto_switch_to_flash: bool = True) -> None:
        """Our attention, whatever the model was made with."""
        model.set_attn_implementation(attention.NAME)

    def _try_out(self) -> None:
        """A prompt step and a decode step, so that a model that cannot run is found now; raises what they raise."""
        self.add_request([1, 2], request_id="try", max_new_tokens=2)  # 0 is often padding, and gives zeros
        for _ in range(2):
            self._processor.prepare_next_batch()
            self._compute()

    def _create_batch_processor(self) -> ContinuousBatchProcessor:
        processor = super()._create_batch_processor()
        inputs: Any = processor.inputs_and_outputs
        if not isinstance(inputs, Inputs):
            self._inputs = Inputs(processor.cache, self._slots, self._context)
            processor.inputs_and_outputs = self._inputs  # type: ignore[assignment]
            processor.scheduler.pace = self._pace  # type: ignore[attr-defined]
        return processor

    def _generation_loop_body(self, batch_processor: ContinuousBatchProcessor, bootstrapping: bool) -> bool:
        """One step, or a sleep until there is work. False ends the thread."""
        scheduler = batch_processor.scheduler
        try:
            ready = batch_processor.prepare_next_batch()
        except Exception as error:
            self._survive(error)
            batch_processor.fail_all_requests(error)
            return True
        if ready:
            self._step(batch_processor)
            return True
        if self.background_thread_status.tp_status != BackgroundThreadStatus.DONT_STOP:
            return False
        self._wake_up_loop.wait(0.1 if scheduler.has_pending_requests() else None)
        self._wake_up_loop.clear()
        self._gather()
        return True

    def _gather(self) -> None:
        """Requests that come together begin together: a first step for one of them would hold the others up."""
        before, now = 0, self.input_queue.qsize()
        while before < now < self._slots:
            time.sleep(GATHER_SECONDS)
            before, now = now, self.input_queue.qsize()

    def _step(self, processor: ContinuousBatchProcessor) -> None:
        news = [new for _, new in self._inputs.lengths]
        running = news.count(1)
        self._pace.begin(running, sum(news) - running)
        try:
            steps = self._compute()
        except Exception as error:
            if self._followers is not None:  # they may wait in the middle of a pass, or have ended
                raise
            self._survive(error)
            processor.handle_batch_error(error)  # type: ignore[no-untyped-call]
            return
        self._pace.end(running, sum(news) - running)
        self._failures = 0
        self.steps += 1
        if steps:
            self._deliver(steps)

    @torch.inference_mode()
    def _compute(self) -> list[Step]:
        """One forward pass over the step's tokens and what follows from it."""
        requests = self._inputs.requests_in_batch
        streams = [self._streams.get(future.state.request_id) for future in requests]
        scores = self._to_score(requests, streams)
        logits = self._logits(streams, [rows for _, rows, _ in scores])
        asked = [(f, s) for f, s in zip(requests, streams, strict=True) if f.has_new_token]
        rows = [GONE if stream is None else stream.row for _, stream in asked]
        steps = self._score(scores, logits[len(rows) :])
        picked = self._sampler.pick(logits[: len(rows)], rows) if rows else None
        place, over = 0, []
        for future, stream in zip(requests, streams, strict=True):
            token = None
            if future.has_new_token and picked is not None:
                token = picked.tokens[place]
            ended = self._advance(future, token)
            if stream is None and self.is_running():  # has left, and the stock way can lose that
                self._processor.scheduler.set_request_cancellation(future.state.request_id)
            if token is not None and stream is not None:
                if ended:
                    over.append(stream.id)
                elif token >= 0:
                    stream.row.advance(token)
                if token < 0:
                    steps.append(Step(stream, error=NOT_FINITE))
                else:
                    steps.append(Step(stream, token, picked.logprobs.get(place) if picked else None))
            place += future.has_new_token
        for stream_id in over:  # not before all went well: who is not here is not told of a failure
            self._streams.pop(stream_id, None)
        return steps

    def _logits(self, streams: Sequence[Stream | None], more: Sequence[Tensor]) -> Tensor:
        """Logits, float32, shape (kept, vocab), good until the next step.

        Of the requests that get a token, in order, and then of `more` tokens of the step.
        """
        adapters = [] if self._adapters is None else [0 if stream is None else stream.adapter for stream in streams]
        graphs = self._graphs
        answers = None if graphs is None or more or any(adapters) else self._inputs.answers()
        if graphs is None or answers is None:
            return self._one_by_one(adapters, more)
        logits = graphs.replay(answers)
        if logits is None:
            logits = self._one_by_one(adapters, more)
            if not graphs.capture(answers, logits):
                self._graphs = None
        return logits

    def _one_by_one(self, adapters: Sequence[int], more: Sequence[Tensor]) -> Tensor:
        """See _logits; the kernels are started by Python."""
        inputs = self._inputs
        inputs.build()
        keep = inputs.last
        if more:
            keep = torch.cat((keep, *(rows.to(keep.device) for rows in more)))
        if self._adapters is not None:
            self._adapters.use([(a, new) for a, (_, new) in zip(adapters, inputs.lengths, strict=True)])
        return self._forward(keep)

    def _whole(self, kwargs: dict[str, Any]) -> Tensor:
        """Logits, shape (tokens, vocab), of all tokens."""
        model: Any = self.model
        return model(**kwargs).logits[0]  # type: ignore[no-any-return]

    def _forward(self, keep: Tensor) -> Tensor:
        """Logits, float32, shape (kept, vocab), of these tokens of the step."""
        if self._followers is not None:
            self._followers.send(self._inputs.kwargs, keep)
        model: Any = self.model
        if self._slices:
            return model(**self._inputs.kwargs, logits_to_keep=keep).logits[0].float()  # type: ignore[no-any-return]
        return self._whole(self._inputs.kwargs)[keep].float()

    def _to_score(
        self, requests: Sequence[FutureRequestState], streams: Sequence[Stream | None]
    ) -> list[tuple[Stream, Tensor, list[int]]]:
        """Streams whose prompts are scored: the tokens of the step that foretell the next prompt tokens, and those."""
        found = []
        begin = 0
        for stream, (past, new) in zip(streams, self._inputs.lengths, strict=True):
            if stream is not None and stream.prompt_logprobs is not None:
                first, end = stream.scored, min(past + new + 1, len(stream.prompt))  # of the foretold tokens
                if first < end:
                    rows = torch.arange(begin + first - 1 - past, begin + end - 1 - past)
                    found.append((stream, rows, stream.prompt[first:end]))
                    stream.scored = end
            begin += new
        return found

    def _score(self, scores: Sequence[tuple[Stream, Tensor, list[int]]], logits: Tensor) -> list[Step]:
        steps, begin = [], 0
        for stream, rows, targets in scores:
            found = prompt_logprobs(logits[begin : begin + len(rows)], targets, stream.prompt_logprobs or 0)
            steps.append(Step(stream, prompt=list(zip(targets, found, strict=True))))
            begin += len(rows)
        return steps

    def _advance(self, future: FutureRequestState, token: int | None) -> bool:
        """Books a step of a request: its new token, its complete pages, its end. True when it is over."""
        state, processor = future.state, self._processor
        ended = False
        if token is not None and token < 0:
            processor.cache.free_blocks(state.request_id, no_cache=True)
            processor.scheduler.finish_request(state.request_id)
            processor.scheduler.block_new_requests = False
            return True
        if future.complete_blocks and state.initial_tokens[0] >> TOKEN_BITS != PRIVATE:
            # Before the end is booked: the stock way is after it, and forgets the last pages of a short answer's prompt.
            processor.cache.mark_complete_blocks(state, future.complete_blocks)
            self._inputs.pages_changed(state.request_id)
        if token is not None:
            state.status = RequestStatus.DECODING
            ended = state.update_and_check_completion(token, None)
        if ended:
            processor.scheduler.finish_request(state.request_id)
            processor.scheduler.block_new_requests = False
        return ended

    def _survive(self, error: Exception) -> None:
        """Notes a failed step; passes the error on, which ends the thread, when too many fail in a row."""
        self._failures += 1
        self.steps += 1
        logger.error("a step of the model failed", exc_info=error)
        if isinstance(error, DEVICE_GONE) or self._failures >= FAILURES:
            raise error


class _Scheduler(FIFOScheduler):
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


SCHEDULER_MAPPING[attention.NAME] = _Scheduler


class _Router(OutputRouter):
    """Tokens go out by step, so only failures are left to route."""

    def __init__(self, streams: dict[str, Stream], deliver: Deliver) -> None:
        super().__init__()
        self._streams, self._deliver = streams, deliver

    def deliver(self, output: GenerationOutput) -> None:
        stream = self._streams.pop(output.request_id, None) if output.error is not None else None
        if stream is not None:
            self._deliver([Step(stream, error=output.error)])


def _pages(loaded: Loaded, slots: int, cache_mb: int) -> int:
    """Pages in the cache: as many as `cache_mb` holds, else a share of what is free or all that the slots can use.

    Raises:
        MemoryError: they do not fit.
    """
    config: Any = loaded.model.config.get_text_config()
    model: Any = loaded.model
    heads: Any = get_kv_heads_per_rank(model.tp_plan or {}, find_num_key_value_heads(config), model.tp_size or 1)
    token_bytes = 2 * heads * find_head_dim(config) * loaded.dtype.itemsize
    page_bytes: int = config.num_hidden_layers * token_bytes * PAGE
    free = free_bytes(loaded.device)
    if cache_mb * 2**20 > free:
        raise MemoryError(f"the cache is to have {cache_mb} MB, and {free // 2**20} MB are free")
    if cache_mb:
        return max(1, cache_mb * 2**20 // page_bytes)
    useful = slots * -(-loaded.context // PAGE)
    return max(1, min(useful, int(free * AUTO_SHARE) // page_bytes))
