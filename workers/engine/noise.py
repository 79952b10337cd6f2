"""The random numbers of a draw: a hash of (seed, position in the answer, token id) and of nothing else.

Neither batch mates nor a resume on another worker change one. Answers under way are continued by workers of another
version, so the numbers are a contract. Source: splitmix64 (Steele, Lea, Flood 2014): ids are places in the stream that
begins at a key. It is here for the host, and for a device that is to draw without it; the integers are the same, and
a logarithm of a GPU's may differ in its last bit.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
LESS = 1 << 64  # than an unsigned word, the signed one with its bits


def mix(word: int) -> int:
    """The finaliser of splitmix64."""
    word = (word + GOLDEN) & MASK
    word = (word ^ (word >> 30)) * FIRST & MASK
    word = (word ^ (word >> 27)) * SECOND & MASK
    return word ^ (word >> 31)


def log_uniform(keys: NDArray[np.uint64], ids: Ints) -> Floats:
    """Logarithms of uniform numbers, the same for the same key and id; minus the logarithm of minus them is Gumbel noise.

    Args:
        keys: shape (rows,), from `Row.key`.
        ids: shape (rows, n) or (n,).

    Returns:
        Shape (rows, n); finite and below 0.
    """
    bits = keys[:, None] + ids.astype(np.uint64) * np.uint64(GOLDEN)  # (rows, n)
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(FIRST)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(SECOND)
    bits ^= bits >> np.uint64(31)
    bits >>= np.uint64(12)
    uniform = bits.astype(np.float64)
    uniform += 0.5
    uniform *= 2.0**-52
    return np.log(uniform, out=uniform)


def log_uniform_there(keys: Tensor, ids: Tensor) -> Tensor:
    """The same on the device of `keys`, whose 64 bits are those of signed integers: torch has no others that multiply."""
    bits = keys[:, None] + ids * (GOLDEN - LESS)  # (rows, n); what is too large wraps
    bits = (bits ^ _shifted(bits, 30)) * (FIRST - LESS)
    bits = (bits ^ _shifted(bits, 27)) * (SECOND - LESS)
    bits = bits ^ _shifted(bits, 31)
    return _shifted(bits, 12).to(torch.float64).add_(0.5).mul_(2.0**-52).log_()


def _shifted(bits: Tensor, by: int) -> Tensor:
    """To the right, without the copies of the sign that come in from the left."""
    return (bits >> by) & ((1 << 64 - by) - 1)
