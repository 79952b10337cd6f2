"""What goes to a device and comes from it without the host waiting for what the device is at.

A copy from ordinary memory waits until all that was asked of a GPU before is done. One from memory that the system
may not move (pinned) only joins the queue; PyTorch uses such memory again when the copy is over.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Fetch = Callable[[Tensor], Callable[[], list[int]]]
"""Starts a tensor's way to the host, and gives what waits for it and has its numbers."""


def pinned(values: Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of the host, from which `copy_(..., non_blocking=True)` to the device does not wait."""
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")


def send(values: Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor on the device, there when what is asked of the device next begins."""
    return pinned(values, device, dtype).to(device, non_blocking=True)


def fetch_on(device: torch.device) -> Fetch | None:
    """What brings numbers from this device while it works on; None where the host is the device."""
    if device.type != "cuda":
        return None

    def fetch(tensor: Tensor) -> Callable[[], list[int]]:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        here = torch.cuda.Event()  # type: ignore[no-untyped-call]
        here.record(torch.cuda.current_stream(device))

        def wait() -> list[int]:
            here.synchronize()
            return host.tolist()

        return wait

    return fetch
