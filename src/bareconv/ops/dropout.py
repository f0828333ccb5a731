"""Dropout: in training each number is zeroed with probability p, and the others grow by 1/(1-p).

    y = x * mask          dx = dy * mask          mask = 1/(1-p) where a uniform number >= p, else 0

The uniform numbers come from (seed, step, layer), the same on every device. In evaluation there is no dropout.
Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", 2014.
"""

from __future__ import annotations

import numpy as np

from bareconv import random
from bareconv.device import Array, namespace


def dropout_mask(x: Array, p: float, seed: int, step: int, layer: int) -> Array:
    """The mask for an array like ``x``: 0 or 1/(1-p), of its shape, dtype and array library."""
    xp = namespace(x)
    u = random.uniform(seed, (random.DROPOUT, step, layer), x.shape, xp)
    return (u >= p).astype(x.dtype) * (1.0 / (1.0 - p))


def dropout_mask_naive(x: Array, p: float, seed: int, step: int, layer: int) -> Array:
    """The same mask, one number at a time."""
    u = random.uniform(seed, (random.DROPOUT, step, layer), x.shape)
    return np.array([0.0 if v < p else 1.0 / (1.0 - p) for v in u.ravel()], dtype=x.dtype).reshape(x.shape)


def dropout_forward(x: Array, mask: Array) -> Array:
    """y = x * mask."""
    return x * mask


def dropout_backward(dy: Array, mask: Array) -> Array:
    """dx = dy * mask."""
    return dy * mask
