"""The one expectation that needs no derivation: a gradient by differences."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def numerical_gradient():
    """The function ``gradient(f, x)``: df/dx by central differences, for ``f`` without arguments that reads ``x``.

    ``x`` is float64 and back as it was afterwards. The error is of the order of 1e-10 where f and its third
    derivative are of the order of 1; a kink within 1e-5 of x makes it wrong, so keep inputs away from kinks.
    """

    def gradient(f, x, h=1e-5):
        assert x.dtype == np.float64
        out = np.empty_like(x)
        for index in np.ndindex(*x.shape):
            kept, values = x[index], []
            for shift in (h, -h):
                x[index] = kept + shift
                values.append(float(f()))
            x[index] = kept
            out[index] = (values[0] - values[1]) / (2 * h)
        return out

    return gradient
