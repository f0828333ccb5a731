"""Faults on purpose, for a sanitizer to find: what finds nothing here would find nothing elsewhere.

python tests/harness/planted.py beyond    # reads beyond an allocation: memcheck's
python tests/harness/planted.py race      # warps read what another has written, without a barrier: racecheck's
"""

from __future__ import annotations

import sys

SOURCE = r"""
extern "C" __global__ void beyond(const float* from, float* to, int length) {
    to[threadIdx.x] = from[length + threadIdx.x];
}

extern "C" __global__ void race(const float* from, float* to, int length) {
    __shared__ float shared[64];
    shared[threadIdx.x] = from[threadIdx.x];
    to[threadIdx.x] = shared[63 - threadIdx.x];
}
"""


def main() -> None:
    """Launch the fault that is named."""
    import cupy

    (fault,) = sys.argv[1:]
    kernel = cupy.RawModule(code=SOURCE).get_function(fault)
    with cupy.cuda.using_allocator(None):  # each array is an allocation of its own
        given, made = (cupy.ones(64, cupy.float32) for _ in range(2))
        kernel((1,), (64,), (given, made, cupy.int32(given.size)))
        cupy.cuda.runtime.deviceSynchronize()


if __name__ == "__main__":
    main()
