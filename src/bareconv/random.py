"""Random numbers that are the same on every device: Philox4x32-10, in array form.

A counter-based generator has no state to carry along: number ``i`` of a stream is a pure function of
(seed, stream, i). So initialisation, shuffling and dropout draw the same numbers on a CPU and on a
GPU, and a resumed run draws what the unbroken one would have drawn.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import math
import operator
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # the two multipliers
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # what the key grows by from round to round
_LOW = 0xFFFFFFFF

_PIECE = 1 << 18  # blocks of four words that are drawn at once: rounds of many more would take ten times their memory

# What a stream is for; the second word of a stream's name tells draws of one purpose apart (epoch, step, layer).
INIT, SHUFFLE, DROPOUT, SPLIT, SYNTHETIC, BOOTSTRAP = range(6)


def philox(counter: list[Any], key: tuple[int, int]) -> list[Any]:
    """Ten Philox rounds over four counter words.

    ``counter``: four arrays of uint64 that hold 32-bit words, of any array library; ``key``: two 32-bit words.
    Returns four arrays of the same shape, 32-bit words in uint64.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _LOW, (p0 >> 32) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return [c0, c1, c2, c3]


def words(seed: int, stream: tuple[int, int, int], count: int, xp: ModuleType = np) -> Any:
    """``count`` random 32-bit words, uint32 on ``xp``'s device.

    ``seed``: any integer, of which the low 64 bits are the key. ``stream``: (purpose, a, b), for example
    (DROPOUT, step, layer); each at least 0 and below 2**32 (purpose and b share a word: below 2**8 and 2**24).
    """
    seed, purpose, a, b = map(operator.index, (seed, *stream))  # Python's integers: NumPy's would overflow below
    if not (0 <= purpose < 1 << 8 and 0 <= a < 1 << 32 and 0 <= b < 1 << 24):
        raise ValueError(f"random stream {stream}: expected 0 <= purpose < 2**8, 0 <= a < 2**32, 0 <= b < 2**24")
    blocks = -(-count // 4)
    key = seed & _LOW, seed >> 32 & _LOW
    pieces = []
    for start in range(0, max(blocks, 1), _PIECE):
        index = xp.arange(start, min(start + _PIECE, blocks), dtype=xp.uint64)
        fixed = [xp.full(len(index), value, dtype=xp.uint64) for value in (a, purpose << 24 | b)]
        out = philox([index & _LOW, index >> 32, *fixed], key)
        pieces.append(xp.stack([word.astype(xp.uint32) for word in out], axis=1).reshape(-1))
    return (pieces[0] if len(pieces) == 1 else xp.concatenate(pieces))[:count]


def uniform(seed: int, stream: tuple[int, int, int], shape: tuple[int, ...], xp: ModuleType = np) -> Any:
    """Uniform numbers in [0, 1) of float32 with 24 random bits, exactly the same on every device."""
    bits = words(seed, stream, math.prod(shape), xp)
    return ((bits >> 8).astype(xp.float32) * xp.float32(2.0**-24)).reshape(shape)


def uniform64(seed: int, stream: tuple[int, int, int], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) of float64 with 53 random bits, on the host."""
    bits = words(seed, stream, 2 * math.prod(shape)).astype(np.uint64).reshape(-1, 2)
    mantissa = (bits[:, 0] >> np.uint64(5) << np.uint64(26)) | bits[:, 1] >> np.uint64(6)
    return (mantissa * 2.0**-53).reshape(shape)


def normal(seed: int, stream: tuple[int, int, int], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Standard normal numbers, float64, drawn on the host (a GPU's log and cos differ in the last bit).

    Box and Muller, "A note on the generation of random normal deviates", 1958.
    """
    count = math.prod(shape)
    u = uniform64(seed, stream, (-(-count // 2), 2))
    radius = np.sqrt(-2.0 * np.log1p(-u[:, 0]))
    angle = 2.0 * np.pi * u[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:count].reshape(shape)


def permutation(seed: int, stream: tuple[int, int, int], n: int) -> NDArray[np.int64]:
    """A random order of 0 .. n-1, int64, on the host: the order that sorts ``n`` random 64-bit keys."""
    pairs = words(seed, stream, 2 * n).reshape(n, 2)
    keys = pairs[:, 0].astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= pairs[:, 1]
    return np.argsort(keys, kind="stable")
