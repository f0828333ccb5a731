"""The rungs of one convolution. To add one: a function from problem to ``Task``, and a ``Rung`` in ``CONV_RUNGS``.

A rung is checked against the problem's reference in float64 before it is timed.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from bareconv import ops
from bareconv.bench.problems import ConvProblem, Task
from bareconv.device import Array, get_device, why_no_cuda
from bareconv.kernels.slices import slices
from bareconv.kernels.tuned import ConvBlock
from bareconv.ops.conv import conv2d_naive
from bareconv.ops.windows import Window
from bareconv.training import why_no_plan

P = TypeVar("P")

NAIVE_WORK = 60_000  # multiply-adds of the naive loops in one run: some hundredths of a second


def always(problem: object) -> str | None:
    """Available everywhere."""
    return None


@dataclass(frozen=True)
class Rung(Generic[P]):
    """One way to do the work. ``change``: what it changes. ``available``: None, or the reason why it cannot run."""

    name: str
    change: str
    prepare: Callable[[P], Task]
    available: Callable[[P], str | None] = always
    device: str = "cpu"


def naive(problem: ConvProblem) -> Task:
    """A corner of the first output row: all of it would take minutes."""
    x, w, b = problem.arrays
    window, (R, S), C = problem.window, problem.window.kernel, problem.in_shape[2]
    P, Q, K = problem.out_shape
    columns = max(1, min(Q, NAIVE_WORK // (R * S * C)))
    filters = max(1, min(K, NAIVE_WORK // (columns * R * S * C)))
    corner = window.pad(x[:1])[:, : window.extent[0], : (columns - 1) * window.stride[1] + window.extent[1]]
    weights, unpadded = (
        np.ascontiguousarray(w[..., :filters]),
        Window(window.kernel, window.stride, (0, 0), window.dilation),
    )
    return kept(
        lambda: conv2d_naive(corner, weights, b[:filters], unpadded),
        share=columns * filters / (problem.batch_size * P * Q * K),
        part=lambda y: y[:1, :1, :columns, :filters],
    )


def im2col(problem: ConvProblem) -> Task:
    """The reference engine's."""
    x, w, b = problem.arrays
    return kept(lambda: ops.conv2d_forward(x, w, b, problem.window)[0])


def shifted(problem: ConvProblem) -> Task:
    """One product for each tap, of the image shifted by it; added up."""
    x, w, b = problem.arrays
    return kept(lambda: shifted_forward(x, w, b, problem.window))


def shifted_forward(x: Array, w: Array, b: Array | None, window: Window) -> Array:
    """One product for each tap, of the image shifted by it; added up."""
    (P, Q), K = window.output_size(x.shape[1:3]), w.shape[3]
    padded = window.pad(x)
    y = np.zeros((len(x) * P * Q, K), x.dtype)
    if b is not None:
        y += b
    for r, s in window.taps:
        y += padded[window.tap(r, s, (P, Q))].reshape(len(y), -1) @ w[r, s]
    return y.reshape(len(x), P, Q, K)


def fft(problem: ConvProblem) -> Task:
    """Products of spectra. Counted: 5/2 n log2 n for a real transform of n numbers, 8 for a complex multiply-add."""
    x, w, b = problem.arrays
    N, C, K = problem.batch_size, problem.in_shape[2], problem.filters
    H, W = (n + 2 * p for n, p in zip(problem.in_shape[:2], problem.window.padding, strict=True))
    transforms = 2.5 * H * W * math.log2(max(H * W, 2)) * (N * C + C * K + N * K)
    return kept(lambda: ops.conv2d_fft(x, w, b, problem.window), flops=transforms + 8 * N * H * (W // 2 + 1) * C * K)


def winograd(problem: ConvProblem) -> Task:
    """F(2x2, 3x3). Counted: the products, 16 for a tile of 2 x 2 outputs, not the additions of the transforms."""
    x, w, b = problem.arrays
    flops = problem.batch_size * winograd_flops(problem.in_shape[2], problem.out_shape)
    return kept(lambda: ops.conv2d_winograd(x, w, b, problem.window), flops=flops)


def winograd_flops(channels: int, out_shape: tuple[int, ...]) -> int:
    """Of one image's products: 16 multiply-adds for a tile of 2 x 2 outputs, each channel and each filter."""
    P, Q, K = out_shape
    return 32 * -(-P // 2) * -(-Q // 2) * channels * K


def why_no_winograd(problem: ConvProblem) -> str | None:
    """It is made for one kind of window."""
    window = problem.window
    fits = (window.kernel, window.stride, window.dilation) == ((3, 3), (1, 1), (1, 1))
    return None if fits else "F(2x2, 3x3) needs a 3 x 3 kernel, stride 1 and dilation 1"


def tuned(problem: ConvProblem) -> Task:
    """Slices of the batch on threads, BLAS at one thread."""
    from threadpoolctl import ThreadpoolController

    x, w, b = problem.arrays
    parts = slices(problem.batch_size, problem.threads)
    blocks = [
        ConvBlock(
            *(problem.in_shape, problem.window, problem.filters),
            bias=True,
            relu=False,
            pool=None,
            need_dx=False,
            training=False,
            images=part.stop - part.start,
            dtype=problem.precision,
        )
        for part in parts
    ]
    y = np.empty((len(x), *problem.out_shape), x.dtype)
    pool, blas = ThreadPoolExecutor(len(parts)), ThreadpoolController()

    def run() -> None:
        with blas.limit(limits=1, user_api="blas"):
            list(pool.map(lambda block, part: block.forward(x[part], w, b, y[part]), blocks, parts))

    return Task(run, lambda: y)


def loops(problem: ConvProblem) -> Task:
    """Slices of the batch on threads."""
    from bareconv.kernels import loops

    x, w, b = problem.arrays
    return kept(lambda: loops.conv2d_forward(x, w, b, problem.window, problem.threads))


def why_no_numba(problem: object) -> str | None:
    """Numba is optional."""
    return None if importlib.util.find_spec("numba") else "Numba is not installed: pip install numba"


def simd(problem: ConvProblem) -> Task:
    """A tile of outputs in registers."""
    return _alone(problem, winograd=False)


def simd_winograd(problem: ConvProblem) -> Task:
    """The transforms in registers, the products in cache."""
    return _alone(problem, winograd=True)


def _alone(problem: ConvProblem, *, winograd: bool) -> Task:
    from bareconv.bench.alone import Conv2dAlone

    conv = Conv2dAlone(*problem.arrays, problem.window, problem.threads, winograd=winograd)
    return Task(conv.run, lambda: conv.y, flops=float(conv.kernel.flops * problem.batch_size))


def why_no_simd(problem: object) -> str | None:
    """The reason that the plan gives."""
    return why_no_plan()


def im2col_cuda(problem: ConvProblem) -> Task:
    """The same program as on the CPU, on the GPU's arrays."""
    device = get_device("cuda")
    x, w, b = (device.asarray(array) for array in problem.arrays)
    made: list[Array] = []

    def run() -> None:
        made[:] = [ops.conv2d_forward(x, w, b, problem.window)[0]]

    return Task(run, lambda: device.to_host(made[0]))


def why_no_gpu(problem: object) -> str | None:
    """The reason that ``device`` gives."""
    return why_no_cuda()


def kept(
    function: Callable[[], Array],
    share: float = 1.0,
    part: Callable[[Array], Array] = lambda result: result,
    flops: float | None = None,
) -> Task:
    """A task whose result is what ``function`` returns."""
    made: list[Array] = []

    def run() -> None:
        made[:] = [function()]

    return Task(run, lambda: made[0], share, part, flops)


CONV_RUNGS: list[Rung[ConvProblem]] = [
    Rung("naive loops", "the definition: one multiply-add at a time, in Python", naive),
    Rung("im2col", "all that an output pixel sees in a row; one matrix product", im2col),
    Rung("shifted", "a product for each tap; nothing is copied out R x S times", shifted),
    Rung("FFT", "products of spectra instead of sums over taps", fft),
    Rung("Winograd", "16 products for four outputs instead of 36", winograd, why_no_winograd),
    Rung("tuned NumPy", "chunks that stay in the cache, buffers made once, threads over slices", tuned),
    Rung("Numba loops", "plain loops, compiled; threads over slices", loops, why_no_numba),
    Rung("SIMD", "a tile of outputs that never leaves the registers", simd, why_no_simd),
    Rung("SIMD Winograd", "and 16 products for four outputs, transformed where they are", simd_winograd, why_no_simd),
    Rung("im2col, CuPy", "the same program on a GPU", im2col_cuda, why_no_gpu, "cuda:0"),
]
