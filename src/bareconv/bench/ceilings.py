"""What a processor could do at best: the ceiling that measured figures are a share of."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bareconv.device import CpuDevice, Device
from bareconv.training import why_no_plan

SIZE, GPU_SIZE = 1536, 8192  # of the square matrices; on a CPU they just do not fit its second-level caches


@dataclass(frozen=True)
class Peak:
    """Floating-point operations a second of ``device`` on ``threads``, and ``how`` they were measured."""

    device: str
    threads: int
    flops_per_second: float
    how: str


def measured_peak(device: Device, precision: str, threads: int, seconds: float = 0.4) -> Peak:
    """The best of several runs within ``seconds``: of multiply-adds alone, on a CPU with a compiler for them.

    Elsewhere of large matrix products: close to, and below, what the processor can do.
    """
    from threadpoolctl import threadpool_limits

    on_cpu = isinstance(device, CpuDevice)
    if on_cpu and why_no_plan() is None:
        from bareconv.bench.alone import peak_flops

        return Peak(device.name, threads, peak_flops(precision, threads, seconds), "multiply-adds and nothing else")
    size = SIZE if on_cpu else GPU_SIZE
    with device.activate(), threadpool_limits(threads):
        a = device.xp.ones((size, size), dtype=precision)
        out = a @ a
        device.synchronize()
        best, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end:
            begun = time.perf_counter()
            device.xp.matmul(a, a, out=out)
            device.synchronize()
            best = min(best, time.perf_counter() - begun)
    return Peak(device.name, threads if on_cpu else 1, 2 * size**3 / best, f"a matrix product of {size} x {size}")
