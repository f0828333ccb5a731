"""Faults on purpose, for a sanitizer to find: what finds nothing here would find nothing elsewhere.

    python tests/harness/planted.py beyond    # reads beyond an allocation: memcheck's
    python tests/harness/planted.py race      # warps read what another has written, without a barrier: racecheck's
    python tests/harness/planted.py teams     # no fault, but racecheck reports one

In the last, teams of warps go round a different number of times, with a barrier of their own; then __syncthreads stands
between what one warp writes and another reads. Where all go round as often racecheck sees that, and where they do not
it does not: so tests for it (``BARECONV_TEST_RACECHECK``) leave such launches out. When it no longer reports this one,
they need not.
"""

from __future__ import annotations

import sys

THREADS = 192
SOURCE = r"""
extern "C" __global__ void beyond(const float* from, float* to, int length) {
    to[threadIdx.x] = from[length + threadIdx.x];
}

extern "C" __global__ void race(const float* from, float* to, int length) {
    __shared__ float shared[192];
    shared[threadIdx.x] = from[threadIdx.x];
    to[threadIdx.x] = shared[191 - threadIdx.x];
}

extern "C" __global__ void teams(const float* from, float* to, int length) {
    __shared__ float shared[192];
    const int team = threadIdx.x / 64, thread = threadIdx.x % 64, rounds = team == 0 ? 1 : 0;
    float sum = from[threadIdx.x];
    for (int i = 0; i < rounds; i++) {
        asm volatile("bar.sync %0, 64;" ::"r"(1 + team) : "memory");
        shared[team * 64 + thread] = sum;
        asm volatile("bar.sync %0, 64;" ::"r"(1 + team) : "memory");
        sum += shared[team * 64 + 63 - thread];
    }
    for (int other = 1; other < 6; other++) {
        __syncthreads();
        if (threadIdx.x / 32 == other) shared[threadIdx.x % 32] = sum;
        __syncthreads();
        if (threadIdx.x / 32 == 0) sum += shared[threadIdx.x];
    }
    to[threadIdx.x] = sum;
}
"""


def main() -> None:
    """Launch what is named."""
    import cupy

    (name,) = sys.argv[1:]
    kernel = cupy.RawModule(code=SOURCE).get_function(name)
    with cupy.cuda.using_allocator(None):  # each array is an allocation of its own
        given, made = (cupy.ones(THREADS, cupy.float32) for _ in range(2))
        kernel((3,), (THREADS,), (given, made, cupy.int32(THREADS)))
        cupy.cuda.runtime.deviceSynchronize()


if __name__ == "__main__":
    main()
