"""Pooling: the maximum or the mean of each window, channel by channel.

    max:   Y[n,p,q,c] = max over r,s of X[n, p*stride + r*dilation - pad, q*stride + s*dilation - pad, c]
           dX[n, (where the maximum was found), c] += dY[n,p,q,c]
    mean:  Y[n,p,q,c] = 1/(R*S) * sum over r,s of X[n, (as above), c]
           dX[n, (as above), c] += dY[n,p,q,c] / (R*S)       for every n,p,q,r,s

Shapes: X (N, H, W, C), Y and dY (N, P, Q, C). Padding never wins a maximum; in a mean it counts as zeros. Of several
equal maxima the first in row order wins, alone: ties are common, for an image's background is constant. A NaN in a
window makes its Y NaN.
"""

from __future__ import annotations

import numpy as np

from bareconv.device import Array, namespace
from bareconv.errors import ShapeError
from bareconv.ops.windows import Window


def check_padding(window: Window) -> None:
    """Padding of at most half the kernel, or a window could lie in the padding altogether; else ShapeError."""
    if any(2 * pad > size for pad, size in zip(window.padding, window.kernel, strict=True)):
        raise ShapeError(
            f"pooling with kernel {window.kernel} and padding {window.padding}: "
            "expected padding of at most half the kernel"
        )


# --- The definition, in loops ----------------------------------------------------------------------------------------


def max_pool_naive(x: Array, window: Window) -> tuple[Array, Array]:
    """(Y, where): the maxima, and the tap r*S + s at which each was found first."""
    y = _empty_output(x, window)
    where = np.empty(y.shape, dtype=np.int32)
    for n, p, q, c in np.ndindex(*y.shape):
        best, found = -np.inf, -1
        for tap, (i, j) in enumerate(_pixels(window, p, q)):
            if 0 <= i < x.shape[1] and 0 <= j < x.shape[2]:
                value = x[n, i, j, c]
                if found < 0 or value > best or np.isnan(value):
                    best, found = value, tap
        y[n, p, q, c], where[n, p, q, c] = best, found
    return y, where


def max_pool_backward_naive(dy: Array, where: Array, x_shape: tuple[int, int, int, int], window: Window) -> Array:
    """dX: each dY goes to the one pixel that won."""
    dx = np.zeros(x_shape, dtype=dy.dtype)
    for n, p, q, c in np.ndindex(*dy.shape):
        i, j = _pixels(window, p, q)[where[n, p, q, c]]
        dx[n, i, j, c] += dy[n, p, q, c]
    return dx


def avg_pool_naive(x: Array, window: Window) -> Array:
    """Y, the mean of each window."""
    y = np.zeros_like(_empty_output(x, window))
    for n, p, q, c in np.ndindex(*y.shape):
        for i, j in _pixels(window, p, q):
            if 0 <= i < x.shape[1] and 0 <= j < x.shape[2]:
                y[n, p, q, c] += x[n, i, j, c] / len(window.taps)
    return y


def avg_pool_backward_naive(dy: Array, x_shape: tuple[int, int, int, int], window: Window) -> Array:
    """dX: each dY in equal parts to all pixels of its window."""
    dx = np.zeros(x_shape, dtype=dy.dtype)
    for n, p, q, c in np.ndindex(*dy.shape):
        for i, j in _pixels(window, p, q):
            if 0 <= i < x_shape[1] and 0 <= j < x_shape[2]:
                dx[n, i, j, c] += dy[n, p, q, c] / len(window.taps)
    return dx


def _empty_output(x: Array, window: Window) -> Array:
    N, H, W, C = x.shape
    return np.empty((N, *window.output_size((H, W)), C), dtype=x.dtype)


def _pixels(window: Window, p: int, q: int) -> list[tuple[int, int]]:
    """The image pixels that window (p, q) covers, tap by tap; some may lie in the padding."""
    (sh, sw), (ph, pw), (dh, dw) = window.stride, window.padding, window.dilation
    return [(p * sh + r * dh - ph, q * sw + s * dw - pw) for r, s in window.taps]


# --- The array form: all windows at once, tap by tap -----------------------------------------------------------------


def max_pool_forward(x: Array, window: Window) -> tuple[Array, Array]:
    """(Y, where): the maxima (N, P, Q, C), and the winning taps r*S + s as uint8 (int32 for more than 256)."""
    check_padding(window)
    xp = namespace(x)
    out = window.output_size((x.shape[1], x.shape[2]))
    padded = window.pad(x, -np.inf)
    (r, s), *others = window.taps
    y = padded[window.tap(r, s, out)].copy()
    where = xp.zeros(y.shape, dtype=xp.uint8 if len(window.taps) <= 256 else xp.int32)
    for tap, (r, s) in enumerate(others, start=1):
        candidate = padded[window.tap(r, s, out)]
        # Strictly greater: the first of equals stays. Taps count up, so the largest number is that of the last winner.
        xp.maximum(where, (candidate > y) * where.dtype.type(tap), out=where)
        xp.maximum(y, candidate, out=y)
    return y, where


def max_pool_backward(dy: Array, where: Array, x_shape: tuple[int, ...], window: Window) -> Array:
    """dX (N, H, W, C). Windows may overlap, so that a pixel that won twice gets both gradients."""
    dx = _zeros_padded(dy, x_shape, window)
    for tap, (r, s) in enumerate(window.taps):
        dx[window.tap(r, s, dy.shape[1:3])] += dy * (where == tap)
    return window.crop(dx)


def avg_pool_forward(x: Array, window: Window) -> Array:
    """Y (N, P, Q, C), the mean of each window."""
    check_padding(window)
    out = window.output_size((x.shape[1], x.shape[2]))
    padded = window.pad(x)
    y = namespace(x).zeros((x.shape[0], *out, x.shape[3]), dtype=x.dtype)
    for r, s in window.taps:
        y += padded[window.tap(r, s, out)]
    y *= 1.0 / len(window.taps)
    return y


def avg_pool_backward(dy: Array, x_shape: tuple[int, ...], window: Window) -> Array:
    """dX (N, H, W, C)."""
    dx = _zeros_padded(dy, x_shape, window)
    share = dy * (1.0 / len(window.taps))
    for r, s in window.taps:
        dx[window.tap(r, s, dy.shape[1:3])] += share
    return window.crop(dx)


def _zeros_padded(dy: Array, x_shape: tuple[int, ...], window: Window) -> Array:
    (N, H, W, C), (ph, pw) = x_shape, window.padding
    return namespace(dy).zeros((N, H + 2 * ph, W + 2 * pw, C), dtype=dy.dtype)
