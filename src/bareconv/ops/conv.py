"""conv2d: forward, and the gradients of its input, weights and bias.

    Y[n,p,q,k] = b[k] + sum over r,s,c of  X[n, p*stride + r*dilation - pad, q*stride + s*dilation - pad, c] W[r,s,c,k]

    dW[r,s,c,k] = sum over n,p,q of  X[n, (as above), c] * dY[n,p,q,k]
    dX[n, (as above), c] += sum over k of  W[r,s,c,k] * dY[n,p,q,k]      for every n,p,q,r,s
    db[k]       = sum over n,p,q of  dY[n,p,q,k]

Shapes: X (N, H, W, C), W (R, S, C/G, K), b (K), Y and dY (N, P, Q, K); with G groups, output channels k of group g see
input channels of group g alone. Source: Dumoulin, Visin, "A guide to convolution arithmetic for deep learning", 2016.
"""

from __future__ import annotations

import numpy as np

from bareconv.device import Array, namespace
from bareconv.errors import ShapeError
from bareconv.ops.windows import Window


def check_fit(x_shape: tuple[int, ...], w_shape: tuple[int, ...], window: Window, groups: int) -> None:
    """ShapeError where weights do not fit the input, the groups or the window."""
    if w_shape[:2] != window.kernel:
        raise ShapeError(
            f"conv2d with a window of {window.kernel}: weights {w_shape}; expected (R, S) to be the window's"
        )
    if x_shape[3] % groups or w_shape[3] % groups or x_shape[3] // groups != w_shape[2]:
        raise ShapeError(
            f"conv2d with {groups} group(s): input {x_shape} and weights {w_shape} do not fit; expected weights "
            f"(R, S, {x_shape[3]}/{groups}, K) and K a multiple of {groups}"
        )


# --- The definition, in loops: for reading, and for testing what follows ---------------------------------------------


def conv2d_naive(x: Array, w: Array, b: Array | None, window: Window, groups: int = 1) -> Array:
    """Y as the formula says it, one multiply-add at a time."""
    check_fit(x.shape, w.shape, window, groups)
    (N, H, W, _), (R, S, Cg, K) = x.shape, w.shape
    (sh, sw), (ph, pw), (dh, dw) = window.stride, window.padding, window.dilation
    P, Q = window.output_size((H, W))
    y = np.zeros((N, P, Q, K), dtype=x.dtype)
    for n, p, q, k in np.ndindex(N, P, Q, K):
        total = 0.0 if b is None else b[k]
        first = k // (K // groups) * Cg  # the group's first input channel
        for r, s, c in np.ndindex(R, S, Cg):
            i, j = p * sh + r * dh - ph, q * sw + s * dw - pw
            if 0 <= i < H and 0 <= j < W:
                total += x[n, i, j, first + c] * w[r, s, c, k]
        y[n, p, q, k] = total
    return y


def conv2d_backward_naive(dy: Array, x: Array, w: Array, window: Window, groups: int = 1) -> tuple[Array, Array, Array]:
    """(dX, dW, db) as the formulas say them."""
    (N, H, W, _), (R, S, Cg, K) = x.shape, w.shape
    (sh, sw), (ph, pw), (dh, dw_) = window.stride, window.padding, window.dilation
    _, P, Q, _ = dy.shape
    dx, dw, db = np.zeros_like(x), np.zeros_like(w), np.zeros(K, dtype=w.dtype)
    for n, p, q, k in np.ndindex(N, P, Q, K):
        db[k] += dy[n, p, q, k]
        first = k // (K // groups) * Cg
        for r, s, c in np.ndindex(R, S, Cg):
            i, j = p * sh + r * dh - ph, q * sw + s * dw_ - pw
            if 0 <= i < H and 0 <= j < W:
                dw[r, s, c, k] += x[n, i, j, first + c] * dy[n, p, q, k]
                dx[n, i, j, first + c] += w[r, s, c, k] * dy[n, p, q, k]
    return dx, dw, db


# --- The array form: a row of taps for every output pixel ("im2col"), then one matrix product -----------------------


def im2col(x: Array, window: Window, groups: int = 1) -> Array:
    """(N, H, W, C) -> (G, N*P*Q, R*S*C/G): row (n,p,q) holds all that output pixel (n,p,q) sees."""
    views = window.view(window.pad(x))
    N, P, Q, R, S, C = views.shape
    split = views.reshape(N, P, Q, R, S, groups, C // groups) if groups > 1 else views[..., None, :]
    return split.transpose(5, 0, 1, 2, 3, 4, 6).reshape(groups, N * P * Q, R * S * (C // groups))


def conv2d_forward(x: Array, w: Array, b: Array | None, window: Window, groups: int = 1) -> tuple[Array, Array]:
    """(Y, cols): the output, and the im2col matrix that the gradient of the weights needs again.

    Chellapilla, Puri, Simard, "High performance convolutional neural networks for document processing", 2006.
    """
    check_fit(x.shape, w.shape, window, groups)
    P, Q = window.output_size((x.shape[1], x.shape[2]))
    K = w.shape[3]
    cols = im2col(x, window, groups)
    y = _product(cols, _by_group(w.reshape(-1, K), groups))  # (G, N*P*Q, K/G)
    y = y.transpose(1, 0, 2).reshape(x.shape[0], P, Q, K)
    if b is not None:
        y += b
    return y, cols


def conv2d_backward(
    dy: Array,
    cols: Array,
    w: Array,
    x_shape: tuple[int, ...],
    window: Window,
    groups: int = 1,
    need_dx: bool = True,
) -> tuple[Array | None, Array, Array]:
    """(dX, dW, db). ``cols`` is what forward returned; dX is None where it is not needed (the first layer)."""
    dw, db = conv2d_weight_gradient(dy, cols, w.shape, groups)
    return (conv2d_input_gradient(dy, w, x_shape, window, groups) if need_dx else None), dw, db


def conv2d_weight_gradient(dy: Array, cols: Array, w_shape: tuple[int, ...], groups: int = 1) -> tuple[Array, Array]:
    """(dW, db), from the ``cols`` that forward returned."""
    rows = dy.reshape(-1, dy.shape[3])
    dw = _product(cols.transpose(0, 2, 1), _by_group(rows, groups))  # (G, R*S*C/G, K/G)
    return dw.transpose(1, 0, 2).reshape(w_shape), rows.sum(axis=0)


def conv2d_input_gradient(dy: Array, w: Array, x_shape: tuple[int, ...], window: Window, groups: int = 1) -> Array:
    """dX: one product per tap, added to where that tap had read. Windows overlap, so it must add, never assign."""
    xp, (N, P, Q, K), (_, H, W, C) = namespace(dy), dy.shape, x_shape
    rows = _by_group(dy.reshape(N * P * Q, K), groups)  # (G, N*P*Q, K/G)
    dx = xp.zeros((N, H + 2 * window.padding[0], W + 2 * window.padding[1], C), dtype=dy.dtype)
    for r, s in window.taps:
        tap = _product(rows, _by_group(w[r, s], groups).transpose(0, 2, 1))  # (G, N*P*Q, C/G)
        dx[window.tap(r, s, (P, Q))] += tap.transpose(1, 0, 2).reshape(N, P, Q, C)
    return window.crop(dx)


def _by_group(matrix: Array, groups: int) -> Array:
    """(rows, K) -> (G, rows, K/G): a view; the groups' columns apart, for a batched product."""
    return matrix.reshape(matrix.shape[0], groups, -1).transpose(1, 0, 2)


def _product(a: Array, b: Array) -> Array:
    """(G, n, m) (G, m, k) -> (G, n, k), group by group.

    A single group goes through the plain matrix product: CuPy's batched one copies operands that are transposed.
    """
    return (a[0] @ b[0])[None] if len(a) == 1 else namespace(a).matmul(a, b)
