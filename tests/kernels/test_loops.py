"""The compiled loops against ``ops``."""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-incomplete-defs

from __future__ import annotations

import sys

import numpy as np
import pytest

from bareconv import ops
from bareconv.errors import ShapeError, UsageError
from bareconv.ops.windows import Window

pytest.importorskip("numba", reason="Numba is not installed: pip install numba")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("shape", "filters", "window"),
    [
        ((3, 7, 6, 5), 6, Window((3, 3), padding=(1, 1))),
        ((1, 1, 1, 1), 1, Window((1, 1))),
        ((2, 5, 9, 4), 3, Window((5, 2), stride=(2, 3), padding=(2, 0))),
        ((5, 9, 9, 2), 8, Window((2, 3), stride=(3, 1), dilation=(2, 3))),
    ],
)
def test_against_ops(shape, filters, window, dtype, rng):
    from bareconv.kernels import loops

    x, w = rng.standard_normal(shape), rng.standard_normal((*window.kernel, shape[3], filters))
    b = rng.standard_normal(filters)
    y, cols = ops.conv2d_forward(x, w, b, window)
    dy = rng.standard_normal(y.shape)
    expected = ops.conv2d_backward(dy, cols, w, x.shape, window)
    x, w, b, dy = (array.astype(dtype) for array in (x, w, b, dy))
    tolerance = {"float64": 1e-12, "float32": 1e-5}[dtype]
    for threads in (1, 2):
        got = (loops.conv2d_forward(x, w, b, window, threads), *loops.conv2d_backward(dy, x, w, window, True, threads))
        for mine, theirs in zip(got, (y, *expected), strict=True):
            assert mine is not None
            assert theirs is not None
            assert mine.dtype == dtype
            assert np.linalg.norm(mine - theirs) <= tolerance * np.linalg.norm(theirs)
    without_bias = loops.conv2d_forward(x, w, None, window)
    np.testing.assert_allclose(without_bias + b, got[0], rtol=1e-4, atol=1e-4)
    assert loops.conv2d_backward(dy, x, w, window, need_dx=False)[0] is None


def test_shapes_that_do_not_fit():
    from bareconv.kernels import loops

    with pytest.raises(ShapeError, match="do not fit"):
        loops.conv2d_forward(np.zeros((1, 4, 4, 2)), np.zeros((3, 3, 1, 2)), None, Window((3, 3)))


def test_without_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "bareconv.kernels.loops", raising=False)
    with pytest.raises(UsageError, match="pip install numba"):
        import bareconv.kernels.loops  # noqa: F401
