"""Activations: elementwise, any shape; each forward with its derivative beside it.

    relu        y = max(x, 0)                dx = dy where x > 0, else 0
    leaky relu  y = x where x > 0, else a x  dx = dy where x > 0, else a dy
    gelu        y = x/2 (1 + tanh u),        dx = dy (1/2 (1 + tanh u) + x/2 (1 - tanh^2 u) u'),
                u = c (x + 0.044715 x^3)     u' = c (1 + 3 * 0.044715 x^2),  c = sqrt(2/pi)

At 0 the derivative of the relus is that of the left side. Sources: Nair, Hinton, 2010 (relu); Maas, Hannun, Ng, 2013
(leaky relu); Hendrycks, Gimpel, "Gaussian error linear units", 2016 (gelu, the tanh form).
"""

from __future__ import annotations

import math

import numpy as np

from bareconv.device import Array, namespace

_C, _CUBIC = math.sqrt(2.0 / math.pi), 0.044715


def relu_naive(x: Array) -> Array:
    """y, one number at a time."""
    return np.array([0.0 if value <= 0 else value for value in x.ravel()], dtype=x.dtype).reshape(x.shape)


def relu_backward_naive(dy: Array, x: Array) -> Array:
    """dx, one number at a time."""
    pairs = zip(dy.ravel(), x.ravel(), strict=True)
    return np.array([d if value > 0 else 0.0 for d, value in pairs], dtype=dy.dtype).reshape(x.shape)


def relu_forward(x: Array) -> Array:
    """y = max(x, 0)."""
    return namespace(x).maximum(x, 0.0)


def relu_backward(dy: Array, y: Array) -> Array:
    """dx, from the output: y > 0 exactly where x > 0, so that x need not be kept."""
    return dy * (y > 0)


def leaky_relu_naive(x: Array, slope: float) -> Array:
    """y, one number at a time."""
    values = [value if value > 0 else slope * value for value in x.ravel()]
    return np.array(values, dtype=x.dtype).reshape(x.shape)


def leaky_relu_backward_naive(dy: Array, x: Array, slope: float) -> Array:
    """dx, one number at a time."""
    pairs = zip(dy.ravel(), x.ravel(), strict=True)
    return np.array([d if value > 0 else slope * d for d, value in pairs], dtype=dy.dtype).reshape(x.shape)


def leaky_relu_forward(x: Array, slope: float) -> Array:
    """y = x where x > 0, else slope * x."""
    return namespace(x).where(x > 0, x, slope * x)


def leaky_relu_backward(dy: Array, x: Array, slope: float) -> Array:
    """dx = dy where x > 0, else slope * dy."""
    return namespace(x).where(x > 0, dy, slope * dy)


def gelu_naive(x: Array) -> Array:
    """y, one number at a time."""
    values = [0.5 * v * (1.0 + math.tanh(_C * (v + _CUBIC * v**3))) for v in x.ravel()]
    return np.array(values, dtype=x.dtype).reshape(x.shape)


def gelu_backward_naive(dy: Array, x: Array) -> Array:
    """dx, one number at a time."""
    out = []
    for d, v in zip(dy.ravel(), x.ravel(), strict=True):
        t = math.tanh(_C * (v + _CUBIC * v**3))
        out.append(d * (0.5 * (1.0 + t) + 0.5 * v * (1.0 - t * t) * _C * (1.0 + 3.0 * _CUBIC * v * v)))
    return np.array(out, dtype=dy.dtype).reshape(x.shape)


def gelu_forward(x: Array) -> Array:
    """y = x/2 (1 + tanh u)."""
    return 0.5 * x * (1.0 + _gelu_tanh(x))


def gelu_backward(dy: Array, x: Array) -> Array:
    """dx, as above."""
    t = _gelu_tanh(x)
    du = _C * (1.0 + 3.0 * _CUBIC * x * x)
    return dy * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * du)


def _gelu_tanh(x: Array) -> Array:
    return namespace(x).tanh(_C * (x + _CUBIC * x * x * x))
