"""A dense layer: every output is a weighted sum of all inputs.

    Y = X W + b          dX = dY W^T      dW = X^T dY      db = sum over n of dY[n]

Shapes: X (N, F), W (F, K), b (K), Y and dY (N, K).
"""

from __future__ import annotations

import numpy as np

from bareconv.device import Array, namespace


def dense_naive(x: Array, w: Array, b: Array | None) -> Array:
    """Y as the formula says it, in loops."""
    y = np.zeros((x.shape[0], w.shape[1]), dtype=x.dtype)
    for n, k in np.ndindex(*y.shape):
        y[n, k] = sum(x[n, f] * w[f, k] for f in range(len(w))) + (0.0 if b is None else b[k])
    return y


def dense_backward_naive(dy: Array, x: Array, w: Array) -> tuple[Array, Array, Array]:
    """(dX, dW, db) in loops."""
    dx, dw, db = np.zeros_like(x), np.zeros_like(w), np.zeros(w.shape[1], dtype=w.dtype)
    for n, k in np.ndindex(*dy.shape):
        db[k] += dy[n, k]
        for f in range(len(w)):
            dx[n, f] += dy[n, k] * w[f, k]
            dw[f, k] += dy[n, k] * x[n, f]
    return dx, dw, db


def _tall_and_narrow(rows: int, outputs: int) -> bool:
    """Many rows and few outputs, where OpenBLAS is faster on the transposed product, Y^T = W^T X^T."""
    return outputs <= 32 and rows >= 128 * outputs


def dense_forward(x: Array, w: Array, b: Array | None) -> Array:
    """Y (N, K); where N is large and K small, in column-major order, which also suits sums over a row."""
    y: Array = (w.T @ x.T).T if _tall_and_narrow(len(x), w.shape[1]) else x @ w
    if b is not None:
        y += b
    return y


def dense_backward(dy: Array, x: Array, w: Array, need_dx: bool = True) -> tuple[Array | None, Array, Array]:
    """(dX, dW, db); dX is None where it is not needed (the first layer)."""
    dw, db = dense_weight_gradient(dy, x)
    return (dense_input_gradient(dy, w) if need_dx else None), dw, db


def dense_weight_gradient(dy: Array, x: Array) -> tuple[Array, Array]:
    """(dW, db)."""
    dw: Array = namespace(x).ascontiguousarray((dy.T @ x).T) if _tall_and_narrow(*dy.shape) else x.T @ dy
    return dw, dy.sum(axis=0)


def dense_input_gradient(dy: Array, w: Array) -> Array:
    """dX."""
    dx: Array = dy @ w.T
    return dx
