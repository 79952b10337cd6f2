"""transformers' continuous batching, made to fit: the one module that knows its inside (transformers 5.23).

In come streams (a prompt, how to sample, a limit), out go, once per step, the new tokens of all of them. What is
changed against the stock manager: our sampler picks for all rows at once; a step that fails ends its own requests and
not the engine; an idle engine sleeps until there is work; results go straight to `deliver` and into no queue; the
thread is a daemon. Knows tokens and threads; no text, no event loop.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cache import group_layers_by_attn_type
from transformers.generation.continuous_batching.cache_allocators import FULL_ATTENTION
from transformers.generation.continuous_batching.continuous_api import (
    BackgroundThreadStatus,
    ContinuousBatchingManager,
    ContinuousBatchProcessor,
    OutputRouter,
)
from transformers.generation.continuous_batching.model_runner import ModelRunner, infer_max_single_request_tokens
from transformers.generation.continuous_batching.requests import GenerationOutput, RequestState, RequestStatus
from transformers.generation.continuous_batching.utils import find_head_dim, find_num_key_value_heads
from transformers.generation.continuous_batching.utils import logger as stock

from workers.engine import attention
from workers.engine.model import Loaded, free_bytes
from workers.engine.sampling import Draw, pick

logger = logging.getLogger(__name__)

PAGE = 32  # tokens in a page of the cache, the unit in which prompts share their beginnings
STEP_TOKENS = 512  # a longer prompt is read in several steps, so that running answers go on
AUTO_SHARE = 0.25  # of the free memory, for the cache, when nobody says how much
FAILURES = 5  # steps that may fail in a row before the engine takes the device for broken
DEAD = "the engine's thread has ended"


@dataclass(eq=False, slots=True)
class Stream:
    """One live request. The batching thread counts `position`; everything else stays as it was made."""

    prompt: list[int]
    limit: int  # new tokens at most
    draw: Draw
    position: int = 0  # of the next token in the answer
    id: str = field(default="")


@dataclass(frozen=True, slots=True)
class Step:
    """What one step brought a stream."""

    stream: Stream
    token: int | None = None
    error: str | None = None  # the stream is over, and why


Deliver = Callable[[Sequence[Step]], None]


class Batcher(ContinuousBatchingManager):
    """Runs all streams, one step of all at a time, in a thread of its own."""

    def __init__(self, loaded: Loaded, slots: int, cache_mb: int, deliver: Deliver) -> None:
        """Takes the cache; `start` starts the thread.

        Args:
            slots: streams in one step.
            cache_mb: memory for keys and values; 0 for a share of what is free, or all that the slots can use.
            deliver: called from the thread, once a step.

        Raises:
            MemoryError: the cache does not fit.
            ValueError: the model's attention cannot be paged.
        """
        self._streams: dict[str, Stream] = {}
        self._numbers = count()
        self._deliver = deliver
        self._end_ids = sorted(loaded.end_ids)
        self._failures = 0
        self.steps = 0
        stock.setLevel(logging.WARNING)  # it has a handler and a format of its own
        config = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=_pages(loaded, slots, cache_mb),
            max_batch_tokens=max(STEP_TOKENS, slots),
            max_requests_per_batch=slots,
            max_memory_percent=1.0,  # num_blocks decides; this only bounds the check that it fits
            auto_switch_to_flash=False,  # it may fetch kernels from the hub
            use_cuda_graph=False,
            use_async_batching=False,  # a step needs the last token on the host
        )
        model: Any = loaded.model
        super().__init__(model, GenerationConfig(do_sample=False), config)  # type: ignore[no-untyped-call]
        self.output_router = _Router(self._streams, deliver)
        self.batch_processor = self._create_batch_processor()
        self._try_out()

    @property
    def alive(self) -> bool:
        """Whether the thread runs and takes streams."""
        return self.is_running() and self.background_thread_status.can_accept_new_requests() is None

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
        taken = self.add_request(
            stream.prompt, request_id=stream.id, max_new_tokens=stream.limit, eos_token_id=self._end_ids
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
        try:
            self._run_generation_loop()
        finally:
            left = list(self._streams.values())
            self._streams.clear()
            self._deliver([Step(stream, error=DEAD) for stream in left])

    def switch_to_cb_friendly_attn(self, model: Any, auto_switch_to_flash: bool = True) -> None:
        """Our attention where it is at home, else what the stock manager takes."""
        layers = group_layers_by_attn_type(model.config.get_text_config())
        if model.device.type == "cpu" and set(layers) == {FULL_ATTENTION}:
            model.set_attn_implementation(attention.NAME)
        else:
            super().switch_to_cb_friendly_attn(model, auto_switch_to_flash)

    def _try_out(self) -> None:
        """A prompt step and a decode step, so that a model that cannot run is found now; raises what they raise."""
        self.add_request([0, 0], request_id="try", max_new_tokens=2)
        for _ in range(2):
            self._processor.prepare_next_batch()
            self._generation_step()
            self._processor.update_batch()

    def _create_batch_processor(self) -> ContinuousBatchProcessor:
        processor = super()._create_batch_processor()
        if not isinstance(processor.model_runner, _Runner):
            processor.model_runner = _Runner(processor, self._streams)
        return processor

    def _generation_loop_body(self, batch_processor: ContinuousBatchProcessor, bootstrapping: bool) -> bool:
        """One step, or a sleep until there is work. False ends the thread."""
        scheduler = batch_processor.scheduler
        if not scheduler.active_requests:
            scheduler.block_new_requests = False  # stock: stays set when all who could finish are cancelled
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
        return True

    def _step(self, processor: ContinuousBatchProcessor) -> None:
        try:
            self._generation_step()
            futures, tokens, _ = processor.inputs_and_outputs.prepare_batch_update()
            processor.update_batch()
        except Exception as error:
            self._survive(error)
            processor.handle_batch_error(error)  # type: ignore[no-untyped-call]
            return
        self._failures = 0
        self.steps += 1
        steps = []
        for future, token in zip((f for f in futures if f.has_new_token), tokens, strict=False):  # tokens has a tail
            stream = self._streams.get(future.state.request_id)
            if stream is not None:  # else it has left
                steps.append(self._advance(processor, stream, future.state, token))
        if steps:
            self._deliver(steps)

    def _advance(self, processor: ContinuousBatchProcessor, stream: Stream, state: RequestState, token: int) -> Step:
        if token < 0:
            processor.cache.free_blocks(stream.id, no_cache=True)
            processor.scheduler.finish_request(stream.id)
            self._streams.pop(stream.id, None)
            return Step(stream, error="the model's logits are not finite")
        stream.position += 1
        if state.status == RequestStatus.FINISHED:  # an end token, or the limit
            self._streams.pop(stream.id, None)
        return Step(stream, token)

    def _survive(self, error: Exception) -> None:
        """Notes a failed step; passes the error on, which ends the thread, when too many fail in a row."""
        self._failures += 1
        self.steps += 1
        logger.error("a step of the model failed", exc_info=error)
        if self._failures >= FAILURES:
            raise error


class _Runner(ModelRunner):
    """The stock runner with our sampler."""

    def __init__(self, processor: ContinuousBatchProcessor, streams: Mapping[str, Stream]) -> None:
        super().__init__(
            logit_processor=processor.logit_processor,
            cb_config=processor.cb_config,
            inputs_and_outputs=processor.inputs_and_outputs,
            cache=processor.cache,
            do_sample=False,
            return_logprobs=False,
        )
        self._streams = streams
        self._batch: Any = processor.inputs_and_outputs  # the synchronous kind

    def compute_batch(self, model: torch.nn.Module, batch_data: dict[str, Any]) -> None:
        """One forward pass and the picks, with our attention's plan where that is in use."""
        config: Any = model.config
        if config._attn_implementation == attention.NAME:
            requests = self._batch.requests_in_batch
            lengths = [(f.state.position_offset - f.query_length, f.query_length) for f in requests]
            batch_data["plan"] = attention.plan(lengths, batch_data["read_index"][0])
        super().compute_batch(model, batch_data)

    def _sample(self, scores: torch.Tensor, output_ids: torch.Tensor) -> None:
        """Fill output_ids[0, :rows]; scores is (1, rows and a tail, vocab), a row per request with a new token."""
        draws = [self._draw(f.state) for f in self._batch.requests_in_batch if f.has_new_token]
        if draws:
            output_ids[0, : len(draws)].copy_(pick(scores[0, : len(draws)], draws))

    def _draw(self, state: RequestState) -> Draw:
        stream = self._streams.get(state.request_id)
        if stream is None:  # has left: any token will do
            return Draw()
        return Draw(stream.draw.temperature, stream.draw.top_p, stream.draw.seed, stream.position)


class _Router(OutputRouter):
    """Tokens go out by step, so only failures are left to route."""

    def __init__(self, streams: dict[str, Stream], deliver: Deliver) -> None:
        super().__init__()
        self._streams, self._deliver = streams, deliver

    def deliver(self, output: GenerationOutput) -> None:
        stream = self._streams.pop(output.request_id, None) if output.error is not None else None
        if stream is not None:
            self._deliver([Step(stream, error=output.error)])

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        pass


def _pages(loaded: Loaded, slots: int, cache_mb: int) -> int:
    """Pages in the cache; at least enough for every slot to have one and for one request to be of some use."""
    config: Any = loaded.model.config.get_text_config()
    token_bytes = 2 * find_num_key_value_heads(config) * find_head_dim(config) * loaded.dtype.itemsize
    page_bytes: int = config.num_hidden_layers * token_bytes * PAGE
    if cache_mb:
        return max(1, cache_mb * 2**20 // page_bytes)
    useful = slots * -(-loaded.context // PAGE)
    return max(1, min(useful, int(free_bytes(loaded.device) * AUTO_SHARE) // page_bytes))
