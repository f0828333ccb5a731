"""The ceilings of a CPU: multiply-adds, matrix products, caches, memory, starting a step; for a number of threads."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from bareconv import host
from bareconv.bench.roofline.gemm import GEMM, matrix_product
from bareconv.bench.roofline.records import FITS, LAUNCH, MEMORY, Ceiling, Roof
from bareconv.device import get_device
from bareconv.report.format import bytes_
from bareconv.training import why_no_plan

TIMES_LARGER = 4  # than the last cache: an array that it does not hold
USUAL_CACHES = (host.Cache(1, 1 << 15, 1), host.Cache(2, 1 << 20, 1), host.Cache(3, 1 << 25, 8))
LAST_LEVEL_BYTES = 1 << 25  # of the last cache, at most: enough to be in no nearer one


@dataclass(frozen=True)
class CpuEffort:
    """How much the ceilings are measured with: seconds of each, sizes of matrix products, bytes of memory at most."""

    seconds: float = 0.15
    gemm_sizes: tuple[int, ...] = (512, 1024, 2048)
    memory_bytes: int = 1 << 28


def thread_counts(most: int) -> list[int]:
    """All and one first, then the powers of two between: what matters most comes first, should the time run out."""
    between = [1 << i for i in range(1, most.bit_length()) if 1 << i < most]
    return list(dict.fromkeys([most, 1, *between]))


def fma_name(precision: str) -> str:
    """The ceiling of multiply-adds."""
    return f"FMA {precision}"


def measure_ceilings(threads: int, precisions: Sequence[str], effort: CpuEffort | None = None) -> Iterator[Ceiling]:
    """What the CPU does at best on that many threads, one ceiling after another.

    What bounds the kernels comes first: multiply-adds, caches and memory, starting a step. Products by NumPy's BLAS,
    which take the longest, are the last. Without a compiler for kernels there are these and copies by NumPy alone.
    """
    from threadpoolctl import threadpool_limits

    effort = effort or CpuEffort()
    if why_no_plan() is None:
        yield from (_multiply_adds(threads, precision, effort) for precision in precisions)
        yield from _bandwidths(threads, effort)
        yield _start(threads, effort)
    else:
        yield _copies(threads, effort)
    for precision in precisions:
        with threadpool_limits(threads):
            yield matrix_product(get_device("cpu"), precision, effort.gemm_sizes, effort.seconds, threads)


def _start(threads: int, effort: CpuEffort) -> Ceiling:
    from bareconv.bench.alone import start_seconds

    how = "an empty step, from Python to all threads and back, the fastest of many"
    return Ceiling(LAUNCH, 1.0 / start_seconds(threads, effort.seconds), "launch", how, threads)


def _multiply_adds(threads: int, precision: str, effort: CpuEffort) -> Ceiling:
    from bareconv.bench.alone import peak_flops
    from bareconv.kernels.cpu.target import host_target

    how = f"multiply-adds in registers and nothing else, {host_target(precision).name}"
    return Ceiling(fma_name(precision), peak_flops(precision, threads, effort.seconds), "FLOP", how, threads)


def _bandwidths(threads: int, effort: CpuEffort) -> Iterator[Ceiling]:
    """Of memory and of each cache: the best of reading, copying and a triad, by loads and stores as kernels do them."""
    from bareconv.bench.alone import Streams

    caches = host.caches() or list(USUAL_CACHES)
    sizes = _working_sets(caches, threads)
    total, how_large = _memory_bytes(threads, caches, effort)
    near = [(cache_name(cache), size, "") for cache, size in zip(caches, sizes, strict=True)]
    # What is no larger than the array that is to stay in the last cache says nothing of memory.
    far = [(MEMORY, total // threads, how_large)] if total > sizes[-1] * threads else []
    for places in filter(None, (near, far)):  # memory takes its time to be had: for the caches a little is enough
        streams = Streams(threads, max(size for _, size, _ in places))
        try:
            for name, size, where in places:
                each = effort.seconds / len(Streams.OPERATIONS)
                rates = {operation: streams.bandwidth(operation, size, each) for operation in Streams.OPERATIONS}
                best = max(rates, key=rates.__getitem__)
                what = {"read": "reading", "copy": "copying", "triad": "a triad of"}[best]
                how = f"{what} {bytes_(size)} a thread{where}, the fastest of reading, copying and a triad"
                yield Ceiling(name, rates[best], "byte", how, threads)
        finally:
            streams.close()


def _memory_bytes(threads: int, caches: Sequence[host.Cache], effort: CpuEffort) -> tuple[int, str]:
    """How many bytes to go through, and how that compares with the last cache."""
    last = _in_all(caches[-1], threads)
    available = host.available_memory()
    wanted = min(TIMES_LARGER * last, effort.memory_bytes, *([available // 4] if available else []))
    total = int(max(wanted, 1 << 12))
    if total > last:
        return total, f", {total / last:.3g} times the last cache"
    return total, f", no more than the last cache of {bytes_(last)} holds: memory itself may be slower"


def _working_sets(caches: Sequence[host.Cache], threads: int) -> list[int]:
    """Bytes a thread that stay in each cache; of the last one no more than is needed to be in none before it."""
    sizes, before = [], 0.0
    for cache in caches:
        most = FITS * _in_all(cache, threads)
        sizes.append(int((min(most, max(LAST_LEVEL_BYTES, 4 * before)) if cache is caches[-1] else most) / threads))
        before = _in_all(cache, threads)
    return sizes


def _in_all(cache: host.Cache, threads: int) -> float:
    """Bytes of all instances of a cache that so many threads use, spread over the cores."""
    instances = max(1, host.affinity_cores() // cache.cores)
    return float(cache.bytes * min(threads, instances))


def cache_name(cache: host.Cache) -> str:
    """The ceiling of a cache's bandwidth."""
    return f"L{cache.level} cache"


def _copies(threads: int, effort: CpuEffort) -> Ceiling:
    total, how_large = _memory_bytes(threads, host.caches() or USUAL_CACHES, effort)
    source = np.ones(total // 2, np.uint8)
    target = np.ones_like(source)
    bounds = [len(source) * i // threads for i in range(threads + 1)]
    best, end = float("inf"), time.perf_counter() + effort.seconds
    with ThreadPoolExecutor(threads) as pool:

        def copy(part: int) -> None:
            np.copyto(target[bounds[part] : bounds[part + 1]], source[bounds[part] : bounds[part + 1]])

        while best == float("inf") or time.perf_counter() < end:
            begun = time.perf_counter()
            list(pool.map(copy, range(threads)))
            best = min(best, time.perf_counter() - begun)
    how = f"NumPy's copy of {bytes_(total // 2)}{how_large}, read and written"
    return Ceiling(MEMORY, 2 * len(source) / best, "byte", how, threads)


def roof(ceilings: Iterable[Ceiling], threads: int) -> Roof:
    """What bounds steps on that many threads: those of the ceilings that were measured with as many."""
    found = {ceiling.name: ceiling for ceiling in ceilings if ceiling.threads == threads}
    units = {p: next((n for n in (fma_name(p), GEMM[p]) if n in found), "") for p in GEMM}
    caches = host.caches() or USUAL_CACHES
    return Roof(found, units, [(cache_name(cache), _in_all(cache, threads)) for cache in caches])
