"""Window: the geometry that convolution and pooling share."""

from __future__ import annotations

import numpy as np
import pytest

from bareconv.errors import ShapeError
from bareconv.ops.windows import Window


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel": (0, 3)}, r"kernel \(0, 3\): expected both at least 1"),
        ({"kernel": (3, 3), "stride": (1, 0)}, r"stride \(1, 0\): expected both at least 1"),
        ({"kernel": (3, 3), "dilation": (-1, 1)}, r"dilation \(-1, 1\): expected both at least 1"),
        ({"kernel": (3, 3), "padding": (0, -1)}, r"padding \(0, -1\): expected both at least 0"),
    ],
)
def test_what_no_window_can_be(arguments, message):
    with pytest.raises(ShapeError, match=message):
        Window(**arguments)


@pytest.mark.parametrize(
    ("window", "size", "expected"),
    [
        (Window((3, 3)), (28, 28), (26, 26)),
        (Window((3, 3), padding=(1, 1)), (28, 28), (28, 28)),
        (Window((2, 2), (2, 2)), (7, 8), (3, 4)),  # the odd row is left over
        (Window((3, 1), (2, 5), (1, 0), (2, 1)), (9, 11), (4, 3)),
        (Window((4, 5)), (4, 5), (1, 1)),
    ],
)
def test_output_size(window, size, expected):
    assert window.output_size(size) == expected


@pytest.mark.parametrize("size", [(4, 9), (9, 4)])
def test_a_window_that_does_not_fit_is_named(size):
    message = f"a window of 5 x 5 does not fit an image of {size[0]} x {size[1]} with padding 0 x 0"
    with pytest.raises(ShapeError, match=message):
        Window((3, 3), dilation=(2, 2)).output_size(size)


def test_crop_undoes_pad(device, rng):
    window = Window((5, 3), padding=(2, 1))
    x = rng.standard_normal((2, 4, 3, 2))
    padded = window.pad(device.asarray(x), -7.0)
    assert padded.shape == (2, 8, 5, 2)
    np.testing.assert_array_equal(device.to_host(window.crop(padded)), x)
    window.crop(padded)[...] = -7.0  # a view: what is left is the border alone
    np.testing.assert_array_equal(device.to_host(padded), -7.0)


def test_no_padding_copies_nothing(device):
    x = device.xp.zeros((1, 2, 2, 1))
    assert Window((1, 1)).pad(x) is x


def test_view_and_tap_read_the_same_pixels(device, rng):
    """Two ways to the same window; the loop over the definition is the third."""
    window = Window((3, 2), (2, 3), dilation=(2, 1))
    x = rng.standard_normal((2, 9, 8, 3))
    on_device = device.asarray(x)
    P, Q = window.output_size((9, 8))
    views = device.to_host(window.view(on_device))
    assert views.shape == (2, P, Q, 3, 2, 3)
    for r, s in window.taps:
        np.testing.assert_array_equal(device.to_host(on_device[window.tap(r, s, (P, Q))]), views[:, :, :, r, s])
        for p, q in np.ndindex(P, Q):
            np.testing.assert_array_equal(views[:, p, q, r, s], x[:, p * 2 + r * 2, q * 3 + s])
