"""The tuned NumPy kernels against the readable ones, over many shapes, with every buffer full of NaN at first."""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-incomplete-defs

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bareconv import ops
from bareconv.errors import BareconvError, ShapeError, UsageError
from bareconv.kernels.tuned import ConvBlock, DenseBlock, SoftmaxCrossEntropyBlock, conv
from bareconv.ops.windows import Window

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
EMPTY, EMPTY_LIKE = np.empty, np.empty_like


def nan(*shape, dtype="float64"):
    return np.full(shape, np.nan, dtype)


def make(shape, window, filters, **options) -> ConvBlock:
    """A block of 4 images without bias, with a relu, unless ``options`` say so."""
    usual = {"bias": False, "relu": True, "pool": None, "images": 4, "need_dx": True}
    return ConvBlock(shape, window, filters, **{**usual, **options})


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """What nobody has written to is NaN, and shows in whatever is computed from it."""

    def fill(array):
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array

    monkeypatch.setattr(np, "empty", lambda *a, **k: fill(EMPTY(*a, **k)))
    monkeypatch.setattr(np, "empty_like", lambda *a, **k: fill(EMPTY_LIKE(*a, **k)))


def reference(x, w, b, window, relu, pool, dy):
    """(y, dx, dw, db) by ``ops``, in float64."""
    y, cols = ops.conv2d_forward(x, w, b, window)
    if relu:
        active = y = ops.relu_forward(y)
    shape = y.shape
    if pool:
        y, where = ops.max_pool_forward(y, pool)
    dy = dy(y.shape)
    gradient = ops.max_pool_backward(dy, where, shape, pool) if pool else dy
    if relu:
        gradient = ops.relu_backward(gradient, active)
    dx, dw, db = ops.conv2d_backward(gradient, cols, w, x.shape, window)
    return y, dy, dx, dw, db


def close(got, expected, dtype):
    assert got.dtype == dtype
    scale = np.linalg.norm(expected) or 1.0
    assert np.linalg.norm(got - expected) <= TOLERANCE[dtype] * scale


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def problems(draw):
    window = Window(
        draw(st.tuples(st.integers(1, 5), st.integers(1, 5))),
        draw(pairs),
        draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        draw(pairs),
    )
    size = draw(st.tuples(st.integers(1, 11), st.integers(1, 11)))
    assume(all(n + 2 * p >= e for n, p, e in zip(size, window.padding, window.extent, strict=True)))
    pool = draw(st.none() | st.builds(lambda k: Window(k, k), pairs))
    P, Q = window.output_size(size)
    assume(pool is None or (pool.kernel[0] <= P and pool.kernel[1] <= Q))
    channels, filters = draw(st.sampled_from([(1, 3), (2, 5), (14, 4), (30, 1)]))
    return size, channels, filters, window, pool


@settings(max_examples=150)
@given(
    problem=problems(),
    images=st.integers(1, 7),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    dtype=st.sampled_from(["float32", "float64"]),
    chunk_bytes=st.sampled_from([1, 20_000, 1 << 20]),
)
def test_conv_block_is_conv_relu_and_pool(problem, images, flags, dtype, chunk_bytes):
    (H, W), C, K, window, pool = problem
    bias, relu, need_dx, ties = flags
    rng = np.random.default_rng(images)

    def draw(*shape):
        return rng.integers(-2, 3, shape).astype("float64") if ties else rng.standard_normal(shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv, "CACHE", chunk_bytes)
        block = make((H, W, C), window, K, bias=bias, relu=relu, pool=pool, images=images, need_dx=need_dx, dtype=dtype)
    w, b = draw(*window.kernel, C, K), draw(K) if bias else None
    weight, bias_ = w.astype(dtype), None if b is None else b.astype(dtype)
    w, b = weight.astype("float64"), None if bias_ is None else bias_.astype("float64")
    for n in (images, max(1, images // 2), images):  # a short batch in between leaves nothing behind
        x, gradients = draw(n, H, W, C).astype(dtype), []
        y, dy, dx, dw, db = reference(
            x.astype("float64"), w, b, window, relu, pool, lambda shape: draw(*shape).astype(dtype).astype("float64")
        )
        out = nan(*y.shape, dtype=dtype)
        block.forward(x, weight, bias_, out)
        close(out, y, dtype)
        for _ in range(2):  # a second backward of one forward gives the same
            got = (nan(*w.shape, dtype=dtype), nan(K, dtype=dtype), nan(*x.shape, dtype=dtype))
            block.backward(dy.astype(dtype), weight, got[0], got[1] if bias else None, got[2] if need_dx else None)
            gradients.append(got)
            close(got[0], dw, dtype)
            if bias:
                close(got[1], db, dtype)
            if need_dx:
                close(got[2], dx, dtype)
        np.testing.assert_array_equal(gradients[0][0], gradients[1][0])


@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((1, 1), Window((1, 1))),
        ((1, 1), Window((3, 3), padding=(1, 1))),
        ((5, 4), Window((5, 4))),
        ((9, 9), Window((2, 2), stride=(3, 4))),
        ((9, 8), Window((3, 2), stride=(2, 1), padding=(1, 0), dilation=(2, 3))),
    ],
    ids=["one pixel", "one pixel, padded", "kernel = image", "stride > kernel", "all at once"],
)
@pytest.mark.parametrize("channels", [1, 40])
def test_corner_shapes(size, window, channels, rng):
    x, w = rng.standard_normal((2, *size, channels)), rng.standard_normal((*window.kernel, channels, 3))
    y, dy, dx, dw, _ = reference(x, w, None, window, False, None, lambda shape: rng.standard_normal(shape))
    block = make((*size, channels), window, 3, relu=False, dtype="float64")
    out, got_dw, got_dx = nan(*y.shape), nan(*w.shape), nan(*x.shape)
    block.forward(x, w, None, out)
    block.backward(dy, w, got_dw, None, got_dx)
    for got, expected in ((out, y), (got_dw, dw), (got_dx, dx)):
        close(got, expected, "float64")


def test_first_of_equal_maxima_wins():
    """A constant image: every window is a tie, and its first pixel takes the gradient."""
    block = make((4, 6, 1), Window((1, 1)), 1, relu=False, pool=Window((2, 3), (2, 3)), dtype="float64")
    out, dw, dx = nan(1, 2, 2, 1), nan(1, 1, 1, 1), nan(1, 4, 6, 1)
    block.forward(np.full((1, 4, 6, 1), 2.0), np.ones((1, 1, 1, 1)), None, out)
    block.backward(np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1), np.ones((1, 1, 1, 1)), dw, None, dx)
    expected = np.zeros((4, 6))
    expected[::2, ::3] = [[1, 2], [3, 4]]
    np.testing.assert_array_equal(dx[0, :, :, 0], expected)


def test_a_relu_of_zero_passes_nothing_on():
    """Not even of a negative zero, whose sign bit is set."""
    block = DenseBlock(1, 1, bias=False, relu=True, images=3, dtype="float64")
    out = nan(3, 1)
    block.forward(np.array([[-0.0], [0.0], [1.0]]), np.ones((1, 1)), None, out)
    out[0] = -0.0
    dz = block.backward(np.ones((3, 1)), np.ones((1, 1)), None, None, None)
    np.testing.assert_array_equal(dz, [[0], [0], [1]])


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 12)),
    bias=st.booleans(),
    relu=st.booleans(),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_dense_block(shape, bias, relu, dtype):
    n, F, K = shape
    rng = np.random.default_rng(n)
    x, w, b, dy = (rng.standard_normal(s).astype(dtype) for s in ((n, F), (F, K), (K,), (n, K)))
    wide = [a.astype("float64") for a in (x, w, b, dy)]
    y = ops.dense_forward(wide[0], wide[1], wide[2] if bias else None)
    y = ops.relu_forward(y) if relu else y
    dx, dw, db = ops.dense_backward(ops.relu_backward(wide[3], y) if relu else wide[3], wide[0], wide[1])
    block = DenseBlock(F, K, bias=bias, relu=relu, images=n + 1, dtype=dtype)
    out, got = nan(n, K, dtype=dtype), [nan(*s, dtype=dtype) for s in ((F, K), (K,), (n, F))]
    block.forward(x, w, b if bias else None, out)
    block.backward(dy, w, got[0], got[1] if bias else None, got[2])
    close(out, y, dtype)
    close(got[0], dw, dtype)
    close(got[2], dx, dtype)
    if bias:
        close(got[1], db, dtype)


@given(
    n=st.integers(1, 9), K=st.integers(1, 12), smoothing=st.sampled_from([0.0, 0.1]), scale=st.sampled_from([1.0, 1e4])
)
def test_loss_block(n, K, smoothing, scale):
    rng = np.random.default_rng(n)
    z, labels = scale * rng.standard_normal((n, K)), rng.integers(0, K, n)
    loss, p, t = ops.softmax_cross_entropy_forward(z, labels, smoothing)
    block = SoftmaxCrossEntropyBlock(K, images=n, smoothing=smoothing, dtype="float64")
    halves = [slice(0, n // 2), slice(n // 2, n)]
    dz = nan(n, K)
    parts = [block.forward_backward(z[h], labels[h], n, dz[h]) for h in halves if len(z[h])]
    assert sum(loss for loss, _ in parts) == pytest.approx(float(loss), rel=1e-12)
    assert sum(hits for _, hits in parts) == (z.argmax(axis=1) == labels).sum()
    close(dz, ops.softmax_cross_entropy_backward(p, t), "float64")


def test_what_is_not_covered_says_so():
    shape, window = (8, 8, 4), Window((3, 3))
    with pytest.raises(NotImplementedError, match="groups"):
        make(shape, window, 4, groups=2)
    for pool in (Window((2, 2), (1, 1)), Window((2, 2), (2, 2), (1, 1))):
        with pytest.raises(NotImplementedError, match="stride = kernel"):
            make(shape, window, 4, pool=pool)
    with pytest.raises(UsageError, match="int32"):
        make(shape, window, 4, dtype="int32")
    with pytest.raises(ShapeError, match="pool"):
        make(shape, window, 4, pool=Window((7, 7), (7, 7)))


def test_wrong_arrays_are_refused():
    block = make((4, 4, 1), Window((3, 3)), 2, need_dx=False)
    x, w, out = np.zeros((2, 4, 4, 1), "f4"), np.zeros((3, 3, 1, 2), "f4"), np.zeros((2, 2, 2, 2), "f4")
    with pytest.raises(BareconvError, match="forward before"):
        block.backward(out, w, w, None, None)
    with pytest.raises(ShapeError, match="5 images for a block of at most 4"):
        block.forward(np.zeros((5, 4, 4, 1), "f4"), w, None, out)
    with pytest.raises(ShapeError, match="float64"):
        block.forward(x.astype("f8"), w, None, out)
    with pytest.raises(ShapeError, match="built without one"):
        block.forward(x, w, np.zeros(2, "f4"), out)
    with pytest.raises(ShapeError, match="not contiguous"):
        block.forward(x, w, None, out.transpose(0, 2, 1, 3))
    block.forward(x, w, None, out)
    with pytest.raises(BareconvError, match="without a gradient of its input"):
        block.backward(out, w, w, None, x)


def test_a_step_allocates_nothing_big():
    """A ufunc over arrays that are not contiguous takes three buffers of 8192 numbers for itself, whatever the size."""
    block = make((64, 64, 16), Window((3, 3), padding=(1, 1)), 16, bias=True, pool=Window((2, 2), (2, 2)), images=8)
    x, w, out = np.ones((8, 64, 64, 16), "f4"), np.ones((3, 3, 16, 16), "f4"), np.ones((8, 32, 32, 16), "f4")
    b, dw, db, dx = np.ones(16, "f4"), np.ones_like(w), np.ones(16, "f4"), np.ones_like(x)

    def step():
        block.forward(x, w, b, out)
        block.backward(out, w, dw, db, dx)

    step()
    tracemalloc.start()
    step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 8192 * 4 < x[0].nbytes
