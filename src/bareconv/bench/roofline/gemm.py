"""The ceiling of matrix products by the device's own library: what a step could reach if it were nothing else."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from bareconv import random
from bareconv.bench.roofline.records import Ceiling
from bareconv.device import Array, Device

GEMM = {"float32": "SGEMM", "float64": "DGEMM"}
GPU_SIZES = (4096, 8192)


def matrix_product(
    device: Device, precision: str, sizes: Sequence[int], seconds: float, threads: int | None = None
) -> Ceiling:
    """The best of square products of several sizes, each repeated for ``seconds``, by the device's own clock."""
    best, size = max((_rate(device, precision, size, seconds), size) for size in sizes)
    others = f", the fastest of {', '.join(map(str, sizes))}" if len(sizes) > 1 else ""
    how = f"{device.xp.__name__}'s matrix product of {size} x {size}{others}"
    return Ceiling(GEMM[precision], best, "FLOP", how, threads)


def _rate(device: Device, precision: str, size: int, seconds: float) -> float:
    """Operations a second of the fastest product."""
    left, right = (device.asarray(_matrix(precision, size, part)) for part in range(2))
    out = left @ right
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        begun = device.mark()
        device.xp.matmul(left, right, out=out)
        best = min(best, *device.seconds_between([begun, device.mark()]))
        if time.perf_counter() >= end:
            return 2 * size**3 / best


def _matrix(precision: str, size: int, part: int) -> Array:
    """Numbers between -1/2 and 1/2, the rows shifted, so that few are drawn: zeros would take less power."""
    row = random.uniform(0, (random.SYNTHETIC, 2, part), (2 * size,)) - 0.5
    return np.stack([row[first : first + size] for first in range(size)]).astype(precision)
