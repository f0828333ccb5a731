"""Tiles for products of matrices (``source/matrix.cuh``): which sizes a GPU does a product in quickest.

The choice is made by an estimate of the time, from what a multiprocessor computes and loads. It need only rank tilings
well; none is ever wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from bareconv.kernels.cuda.kernel import KEPT_BYTES, Precision
from bareconv.kernels.cuda.limits import Limits

# How an operand lies in memory: what is summed over in rows, or one row for each place of the sum.
ALONG, ACROSS = 0, 1

_FLOPS = {"tf32": 1.2e12, "bfloat16": 2.2e12}  # a second that a multiprocessor sustains
_PLAIN_FLOPS = 0.45e12  # the same without the matrix unit, if no operand had to be loaded
_PLAIN_WARPS = 8  # that a multiprocessor needs for it
_LOADS = 35e9  # bytes a second that a multiprocessor gets from the second-level cache
_LATENCY = 0.8e-6  # seconds until a load's bytes are there
_START = 1e-6  # seconds of a block that are no product: its start, its first and last words to memory
CACHE_RATE = 4e12  # bytes a second to and from the second-level cache, by all multiprocessors


def has_matrix_unit(limits: Limits) -> bool:
    """Whether the GPU multiplies matrices of bf16 and tf32; without it their products are made number by number."""
    return limits.capability >= 80


def is_plain(precision: Precision, limits: Limits) -> bool:
    """Whether products of that precision are made number by number."""
    return precision == "float32" or not has_matrix_unit(limits)


@dataclass(frozen=True)
class Tiling:
    """A block's tile of the result, ``m`` x ``n``: ``chunk`` places of the sum at a time, ``stages`` chunks at once."""

    m: int
    n: int
    chunk: int
    warps_m: int
    warps_n: int
    stages: int

    @property
    def threads(self) -> int:
        return 32 * self.warps_m * self.warps_n

    @property
    def defines(self) -> dict[str, int]:
        """The constants that a kernel is compiled with."""
        return {
            "TILE_M": self.m,
            "TILE_N": self.n,
            "CHUNK": self.chunk,
            "WARPS_M": self.warps_m,
            "WARPS_N": self.warps_n,
            "STAGES": self.stages,
        }

    def shared_bytes(self, precision: Precision, left: int, right: int) -> int:
        """Of a block: the stages, or the result in their place."""
        stage = _operand_bytes(precision, self.m, self.chunk, left) + _operand_bytes(
            precision, self.n, self.chunk, right
        )
        # The sum of a bias's gradient takes 16 bytes a thread, in floats.
        bias = self.threads * 16 // KEPT_BYTES[precision] * 4
        return max(self.stages * stage, self.m * (self.n + 8) * 4, bias)

    def seconds(self, precision: Precision, limits: Limits, left: int, right: int, blocks: int, summed: int) -> float:
        """About how long ``blocks`` of these take, each with a sum over ``summed`` places."""
        shared = self.shared_bytes(precision, left, right)
        most = max(1, min(limits.shared_bytes // shared, 1024 // self.threads))
        together = min(most, -(-blocks // limits.multiprocessors))
        chunks = -(-summed // self.chunk)
        if is_plain(precision, limits):
            # A thread of 4 x 8 lanes loads as many numbers as its tile is high and wide.
            a, b = self.m / self.warps_m / 4, self.n / self.warps_n / 8
            busy = min(1.0, together * self.threads / 32 / _PLAIN_WARPS)
            rate = _PLAIN_FLOPS * busy * a * b / (a * b + 3 * (a + b))
        else:
            rate = _FLOPS[precision]
        compute = together * chunks * 2.0 * self.m * self.n * self.chunk / rate
        load = together * chunks * (self.m + self.n) * self.chunk * KEPT_BYTES[precision] / _LOADS
        wait = _LATENCY * -(-chunks // (self.stages - 1))
        waves = -(-blocks // (limits.multiprocessors * together))
        return waves * (_START + max(compute, load, wait))


def tilings(
    precision: Precision, limits: Limits, left: int, right: int, rows: int, columns: int, summed: int
) -> Iterator[Tiling]:
    """Those that fit into shared memory, for a result of ``rows`` x ``columns``."""
    chunk = 128 // KEPT_BYTES[precision]  # a row of 128 bytes
    smallest = 2 * 16 // KEPT_BYTES[precision]
    while chunk > smallest and chunk // 2 >= summed:
        chunk //= 2
    for m, n in itertools.product((16, 32, 64, 128), repeat=2):
        if (m > 16 and m // 2 >= rows) or (n > 16 and n // 2 >= columns):
            continue
        most = min(4, -(-summed // chunk) + 1)  # all chunks on their way before the first is used
        # Of a warp: as much as keeps the matrix unit busy, or as registers allow.
        each = (512, 1024, 2048) if is_plain(precision, limits) else (512,)
        for warps_m, warps_n in dict.fromkeys(_warps(m, n, one) for one in each):
            for stages in range(most, 1, -1):
                tiling = Tiling(m, n, chunk, warps_m, warps_n, stages)
                if tiling.shared_bytes(precision, left, right) <= limits.shared_bytes:
                    yield tiling
                    break


def _warps(m: int, n: int, each: int) -> tuple[int, int]:
    """Warps along both sides of a tile, at most 8: each has ``each`` numbers, at least 16 x 16, about a square."""
    warps, warps_m, warps_n = max(1, min(8, m * n // each)), 1, 1
    while warps_m * warps_n < warps:
        if m // warps_m > n // warps_n or n // warps_n == 16:
            warps_m *= 2
        else:
            warps_n *= 2
    return warps_m, warps_n


def _operand_bytes(precision: Precision, size: int, chunk: int, lie: int) -> int:
    rows, width = (size, chunk) if lie == ALONG else (chunk, size)
    extra = 8 if precision == "tf32" and lie == ACROSS else 16 // KEPT_BYTES[precision]
    return rows * (width + extra) * KEPT_BYTES[precision]
