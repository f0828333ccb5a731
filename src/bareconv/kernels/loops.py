"""conv2d in plain loops, compiled by Numba: what a compiler makes of the definition when it is written to its taste.

The innermost loops run over channels, which lie together in memory, so that the compiler turns them into vector
instructions; four products are added up before a sum goes back to memory. Nothing else is done: no tiles in registers,
no blocking for the cache, no knowledge of the processor. Shapes as in ``ops.conv``; no groups. Needs Numba (importing
this module raises UsageError where it is missing); threads take slices of the batch, for the compiled code lets go of
the interpreter's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from bareconv.device import Array
from bareconv.errors import UsageError
from bareconv.kernels.slices import slices
from bareconv.ops.conv import check_fit
from bareconv.ops.windows import Pair, Window

try:
    import numba
except ImportError:
    raise UsageError("the compiled loops need Numba: pip install numba") from None

F = TypeVar("F", bound=Callable[..., Any])


def _compiled(function: F) -> F:
    # fastmath lets sums be taken in another order, without which the dot product of a vector loop is not one.
    return numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")(function)


@_compiled
def _add_product(out: Array, values: Array, matrix: Array) -> None:
    """out[k] += sum over c of values[c] * matrix[c, k]."""
    K, whole = len(out), len(values) // 4 * 4
    for c in range(0, whole, 4):
        v0, v1, v2, v3 = values[c], values[c + 1], values[c + 2], values[c + 3]
        m0, m1, m2, m3 = matrix[c], matrix[c + 1], matrix[c + 2], matrix[c + 3]
        for k in range(K):
            out[k] += v0 * m0[k] + v1 * m1[k] + v2 * m2[k] + v3 * m3[k]
    for c in range(whole, len(values)):
        v, m = values[c], matrix[c]
        for k in range(K):
            out[k] += v * m[k]


@_compiled
def _forward(x: Array, w: Array, b: Array, stride: Pair, dilation: Pair, y: Array) -> None:
    """Y of padded images."""
    N, P, Q, _ = y.shape
    R, S, _, _ = w.shape
    for n in range(N):
        for p in range(P):
            for q in range(Q):
                out = y[n, p, q]
                out[:] = b
                for r in range(R):
                    for s in range(S):
                        pixel = x[n, p * stride[0] + r * dilation[0], q * stride[1] + s * dilation[1]]
                        _add_product(out, pixel, w[r, s])


@_compiled
def _input_gradient(dy: Array, turned: Array, stride: Pair, dilation: Pair, dx: Array) -> None:
    """Adds to dX of padded images. ``turned`` (R, S, K, C) are the weights with their channels exchanged."""
    N, P, Q, _ = dy.shape
    R, S, _, _ = turned.shape
    for n in range(N):
        for p in range(P):
            for q in range(Q):
                for r in range(R):
                    for s in range(S):
                        pixel = dx[n, p * stride[0] + r * dilation[0], q * stride[1] + s * dilation[1]]
                        _add_product(pixel, dy[n, p, q], turned[r, s])


@_compiled
def _weight_gradient(x: Array, dy: Array, stride: Pair, dilation: Pair, dw: Array) -> None:
    """Adds to dW, four output columns at a time."""
    N, P, Q, K = dy.shape
    R, S, C, _ = dw.shape
    step, whole = stride[1], Q // 4 * 4
    for n in range(N):
        for r in range(R):
            for s in range(S):
                for p in range(P):
                    row = x[n, p * stride[0] + r * dilation[0], s * dilation[1] :]
                    for q in range(0, whole, 4):
                        x0, x1 = row[q * step], row[(q + 1) * step]
                        x2, x3 = row[(q + 2) * step], row[(q + 3) * step]
                        g0, g1, g2, g3 = dy[n, p, q], dy[n, p, q + 1], dy[n, p, q + 2], dy[n, p, q + 3]
                        for c in range(C):
                            out, v0, v1, v2, v3 = dw[r, s, c], x0[c], x1[c], x2[c], x3[c]
                            for k in range(K):
                                out[k] += v0 * g0[k] + v1 * g1[k] + v2 * g2[k] + v3 * g3[k]
                    for q in range(whole, Q):
                        pixel, g = row[q * step], dy[n, p, q]
                        for c in range(C):
                            out, v = dw[r, s, c], pixel[c]
                            for k in range(K):
                                out[k] += v * g[k]


def conv2d_forward(x: Array, w: Array, b: Array | None, window: Window, threads: int = 1) -> Array:
    """Y (N, P, Q, K)."""
    check_fit(x.shape, w.shape, window, 1)
    padded = window.pad(np.ascontiguousarray(x))
    y = np.empty((len(x), *window.output_size((x.shape[1], x.shape[2])), w.shape[3]), x.dtype)
    bias = np.zeros(w.shape[3], x.dtype) if b is None else b
    w = np.ascontiguousarray(w)
    _over_slices(threads, len(x), lambda part: _forward(padded[part], w, bias, window.stride, window.dilation, y[part]))
    return y


def conv2d_backward(
    dy: Array, x: Array, w: Array, window: Window, need_dx: bool = True, threads: int = 1
) -> tuple[Array | None, Array, Array]:
    """(dX, dW, db) as ``ops.conv2d_backward`` gives them, from x itself."""
    dy, padded = np.ascontiguousarray(dy), window.pad(np.ascontiguousarray(x))
    dx = np.zeros_like(padded)
    turned = np.ascontiguousarray(w.transpose(0, 1, 3, 2))

    def one(part: slice) -> Array:
        dw = np.zeros(w.shape, x.dtype)
        _weight_gradient(padded[part], dy[part], window.stride, window.dilation, dw)
        if need_dx:
            _input_gradient(dy[part], turned, window.stride, window.dilation, dx[part])
        return dw

    dw = sum(_over_slices(threads, len(x), one))
    return (window.crop(dx) if need_dx else None), dw, dy.sum(axis=(0, 1, 2))


def _over_slices(threads: int, images: int, work: Callable[[slice], Any]) -> list[Any]:
    """``work`` on equal slices of a batch, each by a thread; its results in the slices' order."""
    parts = slices(images, threads)
    if len(parts) == 1:
        return [work(parts[0])]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(work, parts))
