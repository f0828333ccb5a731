"""Everything once more against PyTorch on the CPU in float64: forward and every gradient, to 1e-10.

The loops are this project's own reading of the formulas; this is somebody else's. Layouts are PyTorch's own: NCHW
images, (K, C/G, R, S) weights, (out, in) dense weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bareconv import ops
from bareconv.ops.windows import Window

torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install "bareconv[peers]"')
F = torch.nn.functional

# (N, H, W, C, K, groups, window)
CONVOLUTIONS = {
    "plain": (2, 7, 6, 3, 4, 1, Window((3, 3))),
    "one pixel": (1, 1, 1, 2, 3, 1, Window((1, 1))),
    "1 x 1": (2, 4, 5, 6, 3, 1, Window((1, 1))),
    "kernel equal to the image": (3, 5, 4, 2, 3, 1, Window((5, 4))),
    "same padding": (2, 9, 9, 3, 5, 1, Window((3, 3), padding=(1, 1))),
    "strided, overlapping": (2, 11, 10, 3, 4, 1, Window((5, 3), (2, 2), (2, 1))),
    "stride larger than the kernel": (2, 13, 11, 2, 3, 1, Window((2, 2), (3, 4))),
    "dilated": (2, 12, 11, 2, 3, 1, Window((3, 2), padding=(2, 1), dilation=(2, 3))),
    "groups": (2, 6, 7, 6, 9, 3, Window((3, 3), padding=(1, 1))),
    "depthwise": (2, 8, 7, 5, 5, 5, Window((3, 3), (2, 1), (1, 1))),
    "depthwise with a multiplier": (1, 6, 6, 3, 6, 3, Window((3, 3))),
    "padding wider than the image": (1, 2, 3, 1, 2, 1, Window((3, 3), padding=(4, 3))),
    "everything at once": (2, 15, 14, 4, 8, 2, Window((3, 4), (2, 3), (3, 2), (2, 2))),
}
# (N, H, W, C, window)
POOLS = {
    "plain": (2, 6, 8, 3, Window((2, 2), (2, 2))),
    "overlapping": (2, 9, 8, 3, Window((3, 3), (2, 2), (1, 1))),
    "overlapping at every pixel": (1, 6, 5, 2, Window((3, 2))),
    "stride larger than the kernel": (2, 9, 11, 2, Window((2, 2), (3, 4))),
    "odd sizes, a row left over": (2, 7, 5, 2, Window((2, 2), (2, 2))),
    "kernel equal to the image": (2, 5, 6, 2, Window((5, 6))),
    "padding of half the kernel": (1, 7, 6, 2, Window((4, 2), (1, 2), (2, 1))),
    "more than 256 taps": (1, 20, 18, 1, Window((17, 16), (1, 2), (8, 8))),
}


def to_torch(image):
    """NHWC of NumPy -> NCHW of torch, a leaf that collects its gradient."""
    return torch.from_numpy(image.transpose(0, 3, 1, 2).copy()).requires_grad_()


def leaf(array):
    return torch.from_numpy(array.copy()).requires_grad_()


def from_torch(tensor):
    """NCHW -> NHWC, or what has no image axes as it is."""
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def assert_equal(device, ours, theirs):
    ours = device.to_host(ours)
    assert ours.dtype == theirs.dtype == np.float64
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) <= 1e-10 * np.linalg.norm(theirs) + 1e-13


def check_conv(device, rng, N, size, C, K, groups, window, bias=True):
    x = rng.standard_normal((N, *size, C))
    w = rng.standard_normal((*window.kernel, C // groups, K))
    b = rng.standard_normal(K) if bias else None
    dy = rng.standard_normal((N, *window.output_size(size), K))

    x_t, w_t = to_torch(x), leaf(w.transpose(3, 2, 0, 1))
    b_t: Any = leaf(b) if bias else None
    y_t = F.conv2d(x_t, w_t, b_t, window.stride, window.padding, window.dilation, groups)
    y_t.backward(torch.from_numpy(dy.transpose(0, 3, 1, 2).copy()))

    x_, w_, dy_ = (device.asarray(a) for a in (x, w, dy))
    b_ = device.asarray(b) if bias else None
    y, cols = ops.conv2d_forward(x_, w_, b_, window, groups)
    dx, dw, db = ops.conv2d_backward(dy_, cols, w_, x.shape, window, groups)
    assert_equal(device, y, from_torch(y_t))
    assert_equal(device, dx, from_torch(x_t.grad))
    assert_equal(device, dw, w_t.grad.numpy().transpose(2, 3, 1, 0))
    assert_equal(device, db, b_t.grad.numpy() if bias else dy.sum(axis=(0, 1, 2)))
    assert_equal(device, ops.conv2d_fft(x_, w_, b_, window, groups), from_torch(y_t))
    if (window.kernel, window.stride, window.dilation) == ((3, 3), (1, 1), (1, 1)):
        assert_equal(device, ops.conv2d_winograd(x_, w_, b_, window, groups), from_torch(y_t))


def check_pools(device, rng, N, size, C, window, ties):
    shape = N, *size, C
    x = rng.integers(-3, 0, shape).astype(np.float64) if ties else rng.standard_normal(shape)
    dy = rng.standard_normal((N, *window.output_size(size), C))
    dy_t = torch.from_numpy(dy.transpose(0, 3, 1, 2).copy())
    x_, dy_ = device.asarray(x), device.asarray(dy)

    x_t = to_torch(x)
    y_t = F.max_pool2d(x_t, window.kernel, window.stride, window.padding, window.dilation)
    y_t.backward(dy_t)
    y, where = ops.max_pool_forward(x_, window)
    assert_equal(device, y, from_torch(y_t))
    assert_equal(device, ops.max_pool_backward(dy_, where, x.shape, window), from_torch(x_t.grad))

    if window.dilation == (1, 1):  # PyTorch's mean knows no dilation
        x_t = to_torch(x)
        y_t = F.avg_pool2d(x_t, window.kernel, window.stride, window.padding, count_include_pad=True)
        y_t.backward(dy_t)
        assert_equal(device, ops.avg_pool_forward(x_, window), from_torch(y_t))
        assert_equal(device, ops.avg_pool_backward(dy_, x.shape, window), from_torch(x_t.grad))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_conv(case, bias, device, rng):
    N, H, W, C, K, groups, window = case
    check_conv(device, rng, N, (H, W), C, K, groups, window, bias)


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize("case", POOLS.values(), ids=POOLS)
def test_pools(case, ties, device, rng):
    N, H, W, C, window = case
    check_pools(device, rng, N, (H, W), C, window, ties)


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
def test_dilated_max_pool(ties, device, rng):
    check_pools(device, rng, 2, (11, 10), 3, Window((3, 2), (2, 1), (1, 1), (2, 3)), ties)


images = st.tuples(st.integers(3, 12), st.integers(3, 12))
small, pairs = st.integers(1, 3), st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(
    N=small,
    size=images,
    per_group=st.tuples(small, small),
    groups=small,
    kernel=pairs,
    stride=pairs,
    dilation=st.tuples(small, small),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    bias=st.booleans(),
)
def test_random_convs(N, size, per_group, groups, kernel, stride, dilation, padding, bias, device):
    window = Window(kernel, stride, padding, dilation)
    assume(all(e <= s + 2 * p for e, s, p in zip(window.extent, size, padding, strict=True)))
    C, K = per_group[0] * groups, per_group[1] * groups
    check_conv(device, np.random.default_rng(0), N, size, C, K, groups, window, bias)


@given(
    N=small,
    size=images,
    C=small,
    kernel=pairs,
    stride=pairs,
    dilation=st.tuples(small, small),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    ties=st.booleans(),
)
def test_random_pools(N, size, C, kernel, stride, dilation, padding, ties, device):
    padding = min(padding[0], kernel[0] // 2), min(padding[1], kernel[1] // 2)
    window = Window(kernel, stride, padding, dilation)
    assume(all(e <= s + 2 * p for e, s, p in zip(window.extent, size, padding, strict=True)))
    check_pools(device, np.random.default_rng(0), N, size, C, window, ties)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_dense(bias, device, rng):
    x, w, dy = (rng.standard_normal(shape) for shape in ((7, 12), (12, 5), (7, 5)))
    b = rng.standard_normal(5) if bias else None
    x_t, w_t = leaf(x), leaf(w.T)
    b_t: Any = leaf(b) if bias else None
    y_t = F.linear(x_t, w_t, b_t)
    y_t.backward(torch.from_numpy(dy))
    x_, w_, dy_ = (device.asarray(a) for a in (x, w, dy))
    assert_equal(device, ops.dense_forward(x_, w_, device.asarray(b) if bias else None), from_torch(y_t))
    dx, dw, db = ops.dense_backward(dy_, x_, w_)
    assert_equal(device, dx, x_t.grad.numpy())
    assert_equal(device, dw, w_t.grad.numpy().T)
    assert_equal(device, db, b_t.grad.numpy() if bias else dy.sum(axis=0))


@pytest.mark.parametrize(
    ("theirs", "forward", "backward"),
    [
        (F.relu, ops.relu_forward, lambda dy, x: ops.relu_backward(dy, ops.relu_forward(x))),
        (
            lambda x: F.leaky_relu(x, 0.1),
            lambda x: ops.leaky_relu_forward(x, 0.1),
            lambda dy, x: ops.leaky_relu_backward(dy, x, 0.1),
        ),
        (lambda x: F.gelu(x, approximate="tanh"), ops.gelu_forward, ops.gelu_backward),
    ],
    ids=["relu", "leaky relu", "gelu"],
)
def test_activations(theirs, forward, backward, device, rng):
    x, dy = 3.0 * rng.standard_normal((20, 30)), rng.standard_normal((20, 30))
    x[0, :6] = [0.0, -0.0, 1e-12, -1e-12, 50.0, -50.0]
    x_t = leaf(x)
    y_t = theirs(x_t)
    y_t.backward(torch.from_numpy(dy))
    assert_equal(device, forward(device.asarray(x)), from_torch(y_t))
    assert_equal(device, backward(device.asarray(dy), device.asarray(x)), x_t.grad.numpy())


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
@pytest.mark.parametrize("shape", [(9, 4), (5, 6, 7, 3), (2, 1, 1, 3)], ids=str)
def test_batch_norm(shape, eps, device, rng):
    C = shape[-1]
    x, dy = rng.standard_normal(shape) * 2.0 + 1.0, rng.standard_normal(shape)
    gamma, beta, mean = (rng.standard_normal(C) for _ in range(3))
    var = rng.uniform(0.2, 3.0, C)
    x_, gamma_, beta_, mean_, var_ = (device.asarray(a) for a in (x, gamma, beta, mean, var))
    x_t, dy_t = (to_torch(x), to_torch(dy).detach()) if len(shape) == 4 else (leaf(x), torch.from_numpy(dy))
    gamma_t, beta_t = leaf(gamma), leaf(beta)
    y_t = F.batch_norm(x_t, None, None, gamma_t, beta_t, training=True, eps=eps)
    y_t.backward(dy_t)
    y, xhat, inv_std, _, _ = ops.batch_norm_forward(x_, gamma_, beta_, eps)
    assert_equal(device, y, from_torch(y_t))
    dx, dgamma, dbeta = ops.batch_norm_backward(device.asarray(dy), xhat, inv_std, gamma_)
    assert_equal(device, dx, from_torch(x_t.grad))
    assert_equal(device, dgamma, gamma_t.grad.numpy())
    assert_equal(device, dbeta, beta_t.grad.numpy())

    statistics = torch.from_numpy(mean), torch.from_numpy(var)
    y_t = F.batch_norm(x_t, *statistics, gamma_t, beta_t, training=False, eps=eps)
    assert_equal(device, ops.batch_norm_inference(x_, gamma_, beta_, mean_, var_, eps), from_torch(y_t))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_cross_entropy(smoothing, scale, device, rng):
    logits, labels = scale * rng.standard_normal((13, 10)), rng.integers(0, 10, 13)
    z_t = leaf(logits)
    loss_t = F.cross_entropy(z_t, torch.from_numpy(labels), label_smoothing=smoothing)
    loss_t.backward()
    loss, p, t = ops.softmax_cross_entropy_forward(device.asarray(logits), device.asarray(labels), smoothing)
    assert float(loss) == pytest.approx(loss_t.item(), rel=1e-10)
    assert_equal(device, p, torch.softmax(z_t, dim=1).detach().numpy())
    assert_equal(device, ops.softmax_cross_entropy_backward(p, t), z_t.grad.numpy())
