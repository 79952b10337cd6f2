"""Weights of 8 or 4 bits, made by torchao while a model loads: what to ask it for on a device, and what it takes.

    int8   a CPU     products of 8-bit integers; activations are rounded too, each token by itself, so that an answer
                     still does not depend on its batch mates. Against float32, one core with AMX, batch 1 / 8: 390 M
                     parameters 2048 wide 1.2 / 2.9 times the speed in 0.83 instead of 1.96 GB; 135 M 576 wide 0.7 / 1.0
                     times in 0.62 instead of 0.96 GB. Where the CPU has bfloat16, that is as fast
           others    weights of 8 bits, widened for each product: saves memory and no time
    int4   cuda      groups of 64 weights, PyTorch's tinygemm: compute capability 8.0 and bfloat16
           xpu       the same, with PyTorch's kernel for it
           others    nothing: on a CPU torchao has only a prototype, which reads prompts at a tenth of the speed

Embeddings, the output layer and the experts of a mixture stay as they are. A checkpoint that is quantised already is none of this module's.
"""

import ctypes
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

import torch
from transformers import TorchAoConfig

from broker.errors import ModelUnusable

BITS = {"none": 0, "int8": 8, "int4": 4}
GROUP = 64  # weights that share a scale in int4
INT4_PACKING = {"cuda": "tile_packed_to_4d", "xpu": "plain_int32"}


def check(kind: str, device: torch.device) -> None:
    """Refuse what cannot be.

    Raises:
        ModelUnusable: no such quantisation, not on this device, or without torchao.
    """
    if kind not in BITS:
        raise ModelUnusable(f"There is no quantisation {kind!r}; pick one of {', '.join(BITS)}.")
    if kind == "int4" and device.type not in INT4_PACKING:
        raise ModelUnusable(f"int4 needs a GPU (cuda or xpu) and this is {device}; take int8 here.")
    if kind != "none":
        try:
            import_module("torchao.quantization")
        except ImportError as error:
            raise ModelUnusable(f"{kind} needs torchao: pip install 'fleetchat[quantization]'.") from error


def config(kind: str, device: torch.device) -> TorchAoConfig | None:
    """What transformers is to quantise with; None for `none`. `check` has to come first."""
    if kind == "none":
        return None
    ao: Any = import_module("torchao.quantization")
    quiet = {"set_inductor_config": False}  # settings of the whole process
    if kind == "int4":
        how = ao.Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format=INT4_PACKING[device.type], **quiet)
    elif device.type == "cpu":
        utils: Any = import_module("torchao.utils")
        how = ao.Int8DynamicActivationInt8WeightConfig(reduce_range=utils.should_reduce_range(device), **quiet)
    else:
        how = ao.Int8WeightOnlyConfig(**quiet)
    return TorchAoConfig(how)


def needed_bytes(shapes: Mapping[str, tuple[int, ...]], vocabulary: int, dtype: torch.dtype, kind: str) -> int:
    """Memory for tensors of these names and shapes: matrices are quantised, but for those that have a row per word."""
    total = 0.0
    for name, shape in shapes.items():
        small = kind != "none" and len(shape) > 1 and shape[0] != vocabulary and ".experts." not in name
        elements = torch.Size(shape).numel()
        total += elements * (BITS[kind] / 8 if small else dtype.itemsize)
    return int(total)


def give_back() -> None:
    """Return to the system what quantising has freed; glibc keeps it, as much as the whole model in float32."""
    with suppress(OSError, AttributeError, TypeError):  # elsewhere there is no such function
        ctypes.CDLL(None).malloc_trim(0)
