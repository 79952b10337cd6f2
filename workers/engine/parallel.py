"""One model over several GPUs of this machine, by the tensor-parallel plan that comes with its family.

The worker's process is rank 0 and does all that it would do alone, with a model that is a part of the whole. For each
further GPU it starts a follower, which loads its own part and repeats rank 0's forward passes: what they are fed comes
through a pipe, and what the parts add to each other goes through torch.distributed. So scheduling, sampling and the
cache's books are rank 0's alone, and nothing in them has to be the same everywhere. A follower ends with its pipe, so
also when rank 0 is killed; and when one dies the engine is dead. So far this was run with gloo on CPUs only, never on
two GPUs.
"""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from asyncio import Future
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from transformers.distributed.utils import DISTRIBUTED_BACKEND_MAP
from transformers.generation.continuous_batching.utils import find_num_key_value_heads

from broker.errors import ModelUnusable
from broker.messages import pack, unpack
from broker.sources import ModelSource
from workers.engine import EngineOptions
from workers.engine.attention import Plan, Singles, Span
from workers.engine.batching import Batcher
from workers.engine.model import load, pick_device

WATCH_SECONDS = 0.2  # between looks at the followers while the model loads
END_SECONDS = 1.0  # that a follower has to end by itself
LIMIT = timedelta(hours=2)  # ranks may load at very different speeds; FLEETCHAT_STALL_SECONDS finds what hangs later

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rank:
    """Which of the processes that share a model this is."""

    number: int
    size: int
    store: str  # a file in which they find each other; a port would be open to all users of the machine

    def join(self, config: Any, device: torch.device) -> None:
        """Meet the others; waits for them.

        Raises:
            ModelUnusable: a model with this configuration cannot be divided.
        """
        text = config.get_text_config()
        if not text.base_model_tp_plan:
            raise ModelUnusable(
                f"transformers has no tensor-parallel plan for {text.model_type}. Serve it with FLEETCHAT_PARALLEL=1."
            )
        heads, kv_heads = text.num_attention_heads, find_num_key_value_heads(text)
        if heads % self.size or kv_heads % self.size:
            raise ModelUnusable(
                f"The model has {heads} attention heads and {kv_heads} for keys and values, which cannot be divided by "
                f"{self.size}. Set FLEETCHAT_PARALLEL to a number that divides both."
            )
        if device.type != "cpu":
            torch.accelerator.set_device_index(self.number)
        backend = DISTRIBUTED_BACKEND_MAP[device.type]
        dist.init_process_group(
            backend,
            init_method=f"file://{self.store}",
            rank=self.number,
            world_size=self.size,
            timeout=LIMIT,
            device_id=torch.device(device.type, self.number) if backend == "nccl" else None,
        )


class Followers:
    """The processes of the ranks behind the first, seen from it."""

    def __init__(self, options: EngineOptions, base: ModelSource, kind: str) -> None:
        """Starts them; they load at once and wait in `join` for rank 0. `kind` is of the devices, as cuda."""
        self._folder = TemporaryDirectory(prefix="fleetchat-")
        self.rank = Rank(0, options.parallel, f"{self._folder.name}/ranks")
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # what the ranks say to each other stays in the machine
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "workers.engine.parallel"],
                stdin=subprocess.PIPE,
                env=os.environ | {"LOCAL_RANK": str(number)},  # read by transformers
            )
            for number in range(1, options.parallel)
        ]
        for number, pipe in enumerate(self._pipes, 1):
            task = {
                "base": asdict(base),
                "device": kind if kind == "cpu" else f"{kind}:{number}",
                "dtype": options.dtype,
                "slots": options.slots,
                "cache_mb": options.cache_mb,
                "rank": [number, options.parallel, self.rank.store],
            }
            with suppress(BrokenPipeError):  # it is dead already, as `watch` finds out
                _write(pipe, pack(task))

    @property
    def alive(self) -> bool:
        """Whether all of them run."""
        return all(process.poll() is None for process in self._processes)

    async def watch(self, loading: Future[T]) -> T:
        """What loading gives; ends the followers if it fails.

        Raises:
            ModelUnusable: a follower ended before it was done.
        """
        try:
            while not loading.done():
                await asyncio.wait({loading}, timeout=WATCH_SECONDS)
                if not loading.done() and not self.alive:
                    raise ModelUnusable("A process that was to share the model has ended. The worker's log says why.")
            return loading.result()
        except BaseException:
            loading.cancel()
            self.close(0)
            raise

    def send(self, kwargs: Mapping[str, Any], keep: Tensor) -> None:
        """Have them make this forward pass as well: rank 0's own needs theirs, and waits for it.

        Raises:
            BrokenPipeError: one of them is dead.
        """
        plans = [
            [
                _plain(plan.writes),
                [[_plain(some.rows), _plain(some.slots), _plain(some.mask)] for some in plan.singles],
                [[s.queries.start, s.queries.stop, _plain(s.past), _plain(s.mask)] for s in plan.spans],
                plan.window,
            ]
            for plan in kwargs["plans"]
        ]
        step = pack([_plain(kwargs["input_ids"]), _plain(kwargs["position_ids"]), plans, _plain(keep)])
        for pipe in self._pipes:
            _write(pipe, step)

    def close(self, seconds: float = END_SECONDS) -> None:
        """End them and leave the group; who does not end by itself within `seconds` is killed."""
        for pipe in self._pipes:
            with suppress(OSError):
                pipe.close()
        if dist.is_initialized() and dist.get_backend() == "gloo":  # others may wait for the dead, and the process ends
            dist.destroy_process_group()
        until = time.monotonic() + seconds
        for process in self._processes:
            try:
                process.wait(max(0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._folder.cleanup()

    @property
    def _pipes(self) -> list[BinaryIO]:
        return [process.stdin for process in self._processes]  # type: ignore[misc]


def start(options: EngineOptions, base: ModelSource, adapters: Sequence[ModelSource]) -> Followers:
    """The followers for a model, started.

    Raises:
        ModelUnusable: this machine or the options cannot have that.
    """
    number = options.parallel
    if adapters:
        raise ModelUnusable(f"Adapters cannot be had with FLEETCHAT_PARALLEL={number}. Serve them from one GPU.")
    if options.quantization != "none":
        raise ModelUnusable(
            f"{options.quantization} cannot be had with FLEETCHAT_PARALLEL={number}. Leave one of the two out."
        )
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    kind, count = ("cpu", number) if accelerator is None else (accelerator.type, torch.accelerator.device_count())
    count = count if kind in DISTRIBUTED_BACKEND_MAP else 0
    device = pick_device(options.device)
    if device.type != kind or device.index is not None:  # transformers takes what PyTorch finds, in its order
        raise ModelUnusable(
            f"FLEETCHAT_PARALLEL={number} takes the first {number} devices of this machine, so FLEETCHAT_DEVICE has to "
            f"be auto or {kind} and cannot be {options.device}."
        )
    if count < number:
        raise ModelUnusable(
            f"FLEETCHAT_PARALLEL is {number}, but this machine has {count} {kind} devices that can share a model."
        )
    return Followers(options, base, kind)


class _Follower(Batcher):
    """Of the batcher only the model and the cache: what is in a step, rank 0 says."""

    def _try_out(self) -> None:
        """Rank 0 does, and this one with it."""

    @torch.inference_mode()
    def repeat(self, step: Sequence[Any], device: torch.device) -> None:
        """The forward pass that rank 0 sent."""

        def tensor(plain: Any) -> Any:
            return None if plain is None else torch.tensor(np.ndarray(plain[1], plain[0], plain[2]), device=device)

        ids, positions, plans, keep = step
        self._inputs.kwargs = {
            "input_ids": tensor(ids),
            "position_ids": tensor(positions),
            "attention_mask": None,
            "use_cache": False,
            "cache": self._processor.cache,
            "plans": [
                Plan(
                    tensor(writes),
                    tuple(Singles(*map(tensor, some)) for some in singles),
                    tuple(Span(slice(begin, end), tensor(past), tensor(mask)) for begin, end, past, mask in spans),
                    window,
                )
                for writes, singles, spans, window in plans
            ],
        }
        self._forward.pass_once(tensor(keep))


def _plain(tensor: Tensor | None) -> Any:
    """What travels of a tensor: its type, shape and bytes."""
    if tensor is None:
        return None
    array = tensor.cpu().numpy()
    return [array.dtype.name, array.shape, array.tobytes()]


def _write(pipe: BinaryIO, data: bytes) -> None:
    pipe.write(len(data).to_bytes(8, "little") + data)
    pipe.flush()


def _read(pipe: BinaryIO, into: SimpleQueue[Any]) -> None:
    """All that comes, and None at the end; then the process ends, in whatever it waits."""
    try:
        while head := pipe.read(8):
            into.put(unpack(pipe.read(int.from_bytes(head, "little"))))
    finally:  # also when rank 0 was killed in the middle of a step
        into.put(None)
        time.sleep(END_SECONDS)
        os._exit(1)


def main() -> None:
    """A follower's life: load, repeat, end with the pipe."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal tells them to all; rank 0 says when it is over
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)  # of no use on a GPU, and on a CPU the ranks would stand in each other's way
    steps: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, steps), daemon=True).start()
    task = steps.get()
    rank = Rank(*task["rank"])
    try:
        loaded = load(ModelSource(**task["base"]), task["device"], task["dtype"], "none", lambda percent: None, rank)
    except ModelUnusable as error:
        sys.exit(f"rank {rank.number}: {error}")
    follower = _Follower(loaded, task["slots"], task["cache_mb"], lambda steps: None)
    while (step := steps.get()) is not None:
        follower.repeat(step, loaded.device)
    os._exit(0)  # the interpreter takes a second to end


if __name__ == "__main__":
    main()
