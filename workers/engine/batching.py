"""transformers' continuous batching, made to fit: the one module that knows its inside (transformers 5.23).

In come streams (a prompt, how to sample, a limit), out go, once per step, the new tokens of all of them. Kept of the
stock manager are the paged cache, its sharing of prefixes, and the scheduler. Ours are the step itself (inputs,
forward pass, picks), what happens when one fails (it ends its own requests and not the engine), and an idle engine
that sleeps until there is work. Knows tokens and threads; no text, no event loop.
"""

import logging
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
    RequestStatus,
)
from transformers.generation.continuous_batching.utils import find_head_dim, find_num_key_value_heads
from transformers.generation.continuous_batching.utils import logger as stock

from broker.messages import Sampling
from workers.engine import attention
from workers.engine.adapters import Adapters
from workers.engine.ahead import Ahead, Flight
from workers.engine.draws import NOT_FINITE
from workers.engine.forward import Forward
from workers.engine.graphs import capture_on
from workers.engine.inputs import TOKEN_BITS, Inputs
from workers.engine.model import Loaded, free_bytes
from workers.engine.pace import Pace, keep_freed_memory
from workers.engine.sampling import Logprob, Picked, Row, Sampler, prompt_logprobs
from workers.engine.scheduler import SCHEDULER
from workers.engine.transfer import Fetch, fetch_on

if TYPE_CHECKING:
    from workers.engine.parallel import Followers

logger = logging.getLogger("fleetchat.engine")

PAGE = 32  # tokens in a page of the cache, the unit in which prompts share their beginnings
STEP_TOKENS = 512  # a longer prompt is read in several steps, so that running answers go on
GATHER_SECONDS = 0.001  # an idle engine waits so long for another request to come
AUTO_SHARE = 0.25  # of the free memory, for the cache, when nobody says how much
FAILURES = (
    30  # steps that may fail in a row before the engine takes the device for broken; a poisoned request fails three
)
DEAD = "the engine's thread has ended"
SPOILT = "the model's logits are not finite"
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
        self._flight: Flight | None = None  # a step that was launched ahead
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
            scheduler_type=SCHEDULER,
            max_memory_percent=1e6,  # the stock check counts masks that we do not have; _pages has one of its own
            auto_switch_to_flash=False,  # it may fetch kernels from the hub
            use_cuda_graph=False,  # we have our own
            use_async_batching=False,  # stock knows neither our sampler nor our inputs; ours is in ahead.py
            disable_nccl_graph_mixing=False,  # no graphs with several GPUs, and it warns about them
        )
        model: Any = loaded.model
        super().__init__(model, GenerationConfig(do_sample=False), config)  # type: ignore[no-untyped-call]
        helper = self.distributed_helper  # stock: it takes heads that are gathered again for divided
        helper.tp_plan = {name: style for name, style in helper.tp_plan.items() if style == "colwise"}
        self.output_router = _Router(self._streams, deliver)
        self.batch_processor = self._create_batch_processor()
        capture, fetch = None, None
        if helper.tp_size == 1:
            capture, fetch = capture_on(loaded.device), fetch_on(loaded.device)
        helper.tp_size = 1  # the cache has its part of the heads, and steps are shared in our way
        self._forward = Forward(loaded.model, self._inputs, adapters, followers, capture)
        self._try_out()
        self._ahead = None if fetch is None else self._try_ahead(fetch)
        if self._forward.graphs is not None:
            logger.info("steps without prompts run as CUDA graphs")
        if self._ahead is not None:
            logger.info("steps without prompts are launched before the tokens of the step before are known")

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

    def release(self) -> None:
        """Let go of the model and the cache, once it is shut."""
        self.batch_processor = None
        self.model = None  # type: ignore[assignment]
        self._forward.release()

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
            self._flight = self._forward.graphs = None  # and their memory

    def switch_to_cb_friendly_attn(self, model: Any, auto_switch_to_flash: bool = True) -> None:
        """Our attention, whatever the model was made with."""
        model.set_attn_implementation(attention.NAME)

    def _try_out(self) -> None:
        """A prompt step and a decode step, so that a model that cannot run is found now; raises what they raise."""
        self.add_request([1, 2], request_id="try", max_new_tokens=2)  # 0 is often padding, and gives zeros
        for _ in range(2):
            self._processor.prepare_next_batch()
            self._compute()

    @torch.inference_mode()
    def _try_ahead(self, fetch: Fetch) -> Ahead | None:
        """What launches steps ahead, if a trial goes well."""
        processor = self._processor
        ahead = Ahead(self._forward, self._inputs, self._sampler, processor.cache, fetch)
        self.add_request([1, 2], request_id="try", max_new_tokens=3)
        try:
            processor.prepare_next_batch()
            self._compute()
            processor.prepare_next_batch()
            ahead.try_out()
        except Exception as error:  # it may be the device's own
            logger.warning("the engine goes on without launching steps ahead, which is slower but right: %r", error)
            return None
        finally:
            processor.scheduler.finish_request("try")
        return ahead

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
            ready = self._flight is not None or batch_processor.prepare_next_batch()
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
            flight = self._flight or self._launch()
            steps = self._compute() if flight is None else self._land(flight)
        except Exception as error:
            if self._followers is not None:  # they may wait in the middle of a pass, or have ended
                raise
            self._flight = None
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
        adapters = [0 if stream is None else stream.adapter for stream in streams]
        logits = self._forward.logits(adapters, [rows for _, rows, _ in scores])
        asked = [(f, s) for f, s in zip(requests, streams, strict=True) if f.has_new_token]
        rows = [GONE if stream is None else stream.row for _, stream in asked]
        steps = self._score(scores, logits[len(rows) :])
        picked = self._sampler.pick(logits[: len(rows)], rows) if rows else None
        return steps + self._book(requests, streams, picked)

    @torch.inference_mode()
    def _launch(self) -> Flight | None:
        """The scheduled step, if the next one can be launched before its tokens are known."""
        if self._ahead is None:
            return None
        streams = [self._streams.get(future.state.request_id) for future in self._inputs.requests_in_batch]
        here = [stream for stream in streams if stream is not None]
        if len(here) < len(streams):
            return None
        return self._ahead.launch([stream.row for stream in here], [stream.adapter for stream in here])

    @torch.inference_mode()
    def _land(self, flight: Flight) -> list[Step]:
        """What a launched step brought; the next one is launched before, if nothing stands against it."""
        assert self._ahead is not None
        live = flight.live(self._processor.scheduler.active_requests)
        try:
            self._flight = self._ahead.follow(flight, live) if self._may_follow(flight, live) else None
        except Exception:  # is the next step's, and this one may be over for some
            self._deliver(self._booked(flight, live, None))
            raise
        return self._booked(flight, live, self._flight)

    def _may_follow(self, flight: Flight, live: Sequence[int]) -> bool:
        """Whether the scheduler would do nothing but run the requests of this step again."""
        scheduler = self._processor.scheduler
        return (
            self.input_queue.empty()
            and not scheduler.waiting_requests
            and len(live) == len(scheduler.active_requests)
            and all(flight.requests[at].state.request_id in self._streams for at in live)  # nobody has left
            and self.background_thread_status.can_accept_new_requests() is None  # nor is it to stop
        )

    def _booked(self, flight: Flight, live: Sequence[int], following: Flight | None) -> list[Step]:
        """What a launched step brought, booked."""
        assert self._ahead is not None
        self._inputs.requests_in_batch = flight.requests  # are told if it fails
        requests = [flight.requests[at] for at in live]
        streams = [self._streams.get(future.state.request_id) for future in requests]
        return self._book(requests, streams, Picked(self._ahead.tokens(flight, live, following)))

    def _book(
        self, requests: Sequence[FutureRequestState], streams: Sequence[Stream | None], picked: Picked | None
    ) -> list[Step]:
        """Books a step of requests: what they are given, and who is over."""
        steps: list[Step] = []
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
                if token == NOT_FINITE:
                    steps.append(Step(stream, error=SPOILT))
                else:
                    steps.append(Step(stream, token, picked.logprobs.get(place) if picked else None))
            place += future.has_new_token
        for stream_id in over:  # not before all went well: who is not here is not told of a failure
            self._streams.pop(stream_id, None)
        return steps

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
