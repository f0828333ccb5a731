"""Dense layers' kernels against float64 NumPy, and compiled for every GPU."""

import copy

import numpy as np
import pytest
from cuda_host import TOLERANCE, from_kept, needs_nvrtc, pad_channels, poison, relative_error, to_kept

from bareconv.kernels.cuda import dense
from bareconv.kernels.cuda.compiler import compile_kernel
from bareconv.kernels.cuda.dense import DenseShape
from bareconv.kernels.cuda.kernel import PRECISIONS, padded
from bareconv.kernels.cuda.limits import GENERATIONS, H100, Limits
from bareconv.kernels.cuda.matrix import Tiling
from bareconv.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from bareconv.optim.rule import SCALARS, Rule, scalars

SMALL = Limits("sm_86", 28, 101376, 3 << 20)
TURING = Limits("sm_75", 72, 65536, 6 << 20)  # without instructions for bf16 and tf32

# (taps, channels, units), batch, images that the step has, limits
CASES = [
    (DenseShape(1, 20, 10), 9, 9, H100),
    (DenseShape(6, 5, 33), 20, 13, H100),
    (DenseShape(9, 16, 128), 40, 40, SMALL),
    (DenseShape(25, 3, 7), 70, 37, TURING),
    (DenseShape(1, 300, 84), 17, 16, H100),
]
ORDERS = ["forward", "backward", "random"]


def control(images: int, batch: int, position: int = 0) -> np.ndarray:
    return np.array([position, images, position * batch + images, batch, 0], np.int32)


class Data:
    """Operands of a dense layer as kernels have them, and as float64 without padding."""

    def __init__(self, shape: DenseShape, batch: int, images: int, precision: str, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.shape, self.batch, self.images, self.precision = shape, batch, images, precision
        x = rng.standard_normal((batch, shape.taps, shape.channels))
        x[x < -0.3] = 0.0  # as a relu leaves it
        w = rng.standard_normal((shape.taps, shape.channels, shape.units)) / np.sqrt(shape.taps * shape.channels)
        dy = rng.standard_normal((batch, shape.units))
        self.x_kept, self.dy_kept = to_kept(pad_channels(x), precision), to_kept(pad_channels(dy), precision)
        self.w_kept = np.zeros((shape.taps, padded(shape.channels), padded(shape.units)), self.x_kept.dtype)
        self.w_kept[:, : shape.channels, : shape.units] = to_kept(w, precision)
        # What the step does not have must not matter.
        self.x_kept[images:] = poison(self.x_kept[images:].shape, precision)
        self.dy_kept[images:] = poison(self.dy_kept[images:].shape, precision)
        self.x = from_kept(self.x_kept)[:images, :, : shape.channels].reshape(images, -1)
        self.dy = from_kept(self.dy_kept)[:images, : shape.units]
        self.w = from_kept(self.w_kept)[:, : shape.channels, : shape.units].reshape(-1, shape.units)
        self.bias = rng.standard_normal(shape.units).astype(np.float32)
        self.control = control(images, batch)

    def check_y(self, y: np.ndarray, expected: np.ndarray) -> None:
        got = from_kept(y)[: self.images]
        assert relative_error(got[:, : self.shape.units], expected) <= TOLERANCE[self.precision]
        assert (got[:, self.shape.units :] == 0).all(), "padding columns"


def spread(cases):
    """Each case with a precision and an order of threads, or two, so that every precision meets several orders."""
    return [
        (PRECISIONS[(i + j) % 3], *case, ORDERS[(i + j + i // 3) % 3])
        for i, case in enumerate(cases)
        for j in range(1 + i % 2)
    ]


@pytest.mark.parametrize(("precision", "shape", "batch", "images", "limits", "order"), spread(CASES))
def test_product_and_finish(launch, precision, shape, batch, images, limits, order):
    data = Data(shape, batch, images, precision)
    splits = dense.splits_of(precision, shape, batch, limits)
    sums = poison((splits, batch, padded(shape.units)))
    operands = {"x": data.x_kept, "w": data.w_kept, "control": data.control, "sums": sums}
    launch(dense.product(precision, shape, batch, limits), operands, order)
    total = sums[:, :images].astype(np.float64).sum(0)
    assert relative_error(total[:, : shape.units], data.x @ data.w) <= TOLERANCE[precision]
    assert (total[:, shape.units :] == 0).all()
    y = poison((batch, padded(shape.units)), precision)
    finish = dense.finish(precision, shape, batch, splits, relu=True)
    launch(finish, {"sums": sums, "bias": data.bias, "control": data.control, "y": y}, order)
    data.check_y(y, np.maximum(data.x @ data.w + data.bias, 0))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("relu", "bias"), [(True, True), (False, False)])
def test_forward_in_one_launch(launch, precision, relu, bias):
    shape, batch, images = DenseShape(6, 5, 33), 20, 13
    data = Data(shape, batch, images, precision)
    y = poison((batch, padded(shape.units)), precision)
    operands = {
        "x": data.x_kept,
        "w": data.w_kept,
        "bias": data.bias if bias else None,
        "control": data.control,
        "y": y,
    }
    launch(dense.forward(precision, shape, batch, relu, SMALL), operands)
    expected = data.x @ data.w + (data.bias if bias else 0)
    data.check_y(y, np.maximum(expected, 0) if relu else expected)


@pytest.mark.parametrize(
    ("precision", "m_n", "limits"),
    [(one, (128, 128), H100) for one in PRECISIONS]
    + [
        ("float32", (16, 64), H100),
        ("float32", (32, 16), H100),
        ("tf32", (64, 128), H100),
        ("bfloat16", (32, 16), H100),
    ]
    + [("bfloat16", (128, 32), TURING), ("tf32", (16, 64), TURING)],
    ids=str,
)
def test_every_form_of_tile(launch, precision, m_n, limits):
    """Sizes that the estimate chooses for large layers alone, for all three products."""
    shape, batch, images = DenseShape(3, 40, 40), 133, 131
    data = Data(shape, batch, images, precision)
    m, n = m_n
    warps = {(16, 64): (1, 2), (32, 16): (1, 1), (64, 128): (2, 4), (128, 32): (4, 1), (128, 128): (2, 4)}[m_n]
    chunk = 32 if precision == "bfloat16" else 16
    tiling = Tiling(m, n, chunk, *warps, 3)
    y = poison((batch, padded(shape.units)), precision)
    operands = {"x": data.x_kept, "w": data.w_kept, "bias": None, "control": data.control, "y": y}
    launch(dense._forward(precision, shape, batch, limits, tiling, 1, False), operands)
    data.check_y(y, data.x @ data.w)
    partials = poison((2, shape.weight_size)), poison((2, shape.units))
    kernel = dense._weight(precision, shape, batch, limits, tiling, 2, None)
    launch(kernel, dict(zip(kernel.operands, (data.x_kept, data.dy_kept, data.control, *partials), strict=True)))
    check_gradients(data, *partials)


@pytest.mark.parametrize(("mask", "add"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("precision", "shape", "batch", "images", "limits", "order"), spread(CASES[1:3]))
def test_gradient_of_input(launch, precision, shape, batch, images, limits, order, mask, add):
    data = Data(shape, batch, images, precision)
    dx = poison((batch, shape.taps, padded(shape.channels)), precision)
    before = np.zeros((images, shape.taps * shape.channels))
    if add:
        there = np.random.default_rng(1).standard_normal((batch, shape.taps, shape.channels))
        dx[...] = to_kept(pad_channels(there), precision)
        before = from_kept(dx)[:images, :, : shape.channels].reshape(images, -1)
    kernel = dense.gradient_of_input(precision, shape, batch, limits, mask, add)
    operands = {"dy": data.dy_kept, "w": data.w_kept, "x": data.x_kept, "control": data.control, "dx": dx}
    launch(kernel, {name: operands[name] for name in kernel.operands}, order)
    expected = data.dy @ data.w.T
    if mask:
        expected[data.x <= 0] = 0
    got = from_kept(dx)[:images]
    got_there = got[..., : shape.channels].reshape(images, -1)
    assert relative_error(got_there, expected + before) <= TOLERANCE[precision]
    assert (got[..., shape.channels :] == 0).all(), "padding channels"


def check_gradients(data: Data, weight_partial: np.ndarray, bias_partial: np.ndarray | None) -> None:
    dw = weight_partial.astype(np.float64).sum(0).reshape(-1, data.shape.units)
    assert relative_error(dw, data.x.T @ data.dy) <= TOLERANCE[data.precision]
    if bias_partial is not None:
        assert relative_error(bias_partial.astype(np.float64).sum(0), data.dy.sum(0)) <= TOLERANCE[data.precision]


@pytest.mark.parametrize(("precision", "shape", "batch", "images", "limits", "order"), spread(CASES))
def test_gradient_of_weight(launch, precision, shape, batch, images, limits, order):
    data = Data(shape, batch, images, precision)
    parts = dense.parts_of(precision, shape, batch, limits)
    weight_partial, bias_partial = poison((parts, shape.weight_size)), poison((parts, shape.units))
    operands = {"x": data.x_kept, "dy": data.dy_kept, "control": data.control}
    operands |= {"weight_partial": weight_partial, "bias_partial": bias_partial}
    launch(dense.gradient_of_weight(precision, shape, batch, limits), operands, order)
    check_gradients(data, weight_partial, bias_partial)


def test_parts_without_images_are_zeros(launch):
    shape, batch, images = DenseShape(1, 8, 8), 4096, 3
    data = Data(shape, batch, images, "float32")
    parts = dense.parts_of("float32", shape, batch, H100)
    assert parts > 1, "this shape is split among parts"
    weight_partial = poison((parts, shape.weight_size))
    operands: dict[str, np.ndarray | None] = {"x": data.x_kept, "dy": data.dy_kept, "control": data.control}
    operands |= {"weight_partial": weight_partial, "bias_partial": None}
    launch(dense.gradient_of_weight("float32", shape, batch, H100), operands)
    assert (weight_partial[1:] == 0).all()
    check_gradients(data, weight_partial, None)


RULES: list[tuple[str, Optimizer]] = [
    ("float32", SGD(0.1)),
    ("bfloat16", SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01)),
    ("tf32", RMSprop(0.1, momentum=0.5)),
    ("bfloat16", Adam(0.1, weight_decay=0.02)),
    ("float32", AdamW(0.1, weight_decay=0.02)),
]


@pytest.mark.parametrize(("precision", "optimizer"), RULES, ids=lambda one: getattr(type(one), "__name__", one))
@pytest.mark.parametrize(
    ("shape", "batch", "images", "limits", "order"), [(*CASES[1], "random"), (*CASES[2], "backward")]
)
def test_gradient_and_update(launch, precision, optimizer, shape, batch, images, limits, order):
    """The second step of three: the optimizer's own rule, in float64, upon the same gradient."""
    data = Data(shape, batch, images, precision)
    rng = np.random.default_rng(2)
    data.control = control(images, batch, position=1)
    shapes = {"weight": (shape.taps * shape.channels, shape.units), "bias": (shape.units,)}
    masters = {name: rng.standard_normal(one).astype(np.float32) for name, one in shapes.items()}
    states = {
        name: [np.abs(rng.standard_normal(one)).astype(np.float32) for _ in optimizer.slots]
        for name, one in shapes.items()
    }
    gradients = {"weight": data.x.T @ data.dy, "bias": data.dy.sum(0)}
    wide = {name: array.astype(np.float64) for name, array in masters.items()}
    optimizer = copy.deepcopy(optimizer)
    optimizer.load_state(
        {
            f"{slot}/{name}": array.astype(np.float64)
            for name, arrays in states.items()
            for slot, array in zip(optimizer.slots, arrays, strict=True)
        },
        step=1,
    )
    row = scalars(optimizer, 0.1)
    rows = np.full((3, SCALARS), np.nan, np.float32)
    rows[1] = [*row, *[0.0] * (SCALARS - len(row))]
    optimizer.update(wide, gradients, 0.1)
    kept = optimizer.state()
    working = np.zeros_like(data.w_kept)
    working[:, : shape.channels, : shape.units] = poison((shape.taps, shape.channels, shape.units), precision)
    two = {name: [*arrays, None, None][:2] for name, arrays in states.items()}
    operands: dict[str, np.ndarray | None] = {"x": data.x_kept, "dy": data.dy_kept, "control": data.control}
    operands |= {"scalars": rows, "copy": working}
    for name, master in masters.items():
        operands |= {name: master, f"{name}_state1": two[name][0], f"{name}_state2": two[name][1]}
    launch(dense.gradient_and_update(precision, shape, batch, limits, Rule.of(optimizer)), operands, order)
    for name, array in masters.items():
        assert relative_error(array, wide[name]) <= 1e-5, name
        for slot, mine in zip(optimizer.slots, states[name], strict=True):
            assert relative_error(mine, kept[f"{slot}/{name}"]) <= 1e-5, name
    written = working[:, : shape.channels, : shape.units]
    np.testing.assert_array_equal(written, to_kept(masters["weight"].reshape(written.shape), precision))
    assert not working[:, shape.channels :].any()
    assert not working[:, :, shape.units :].any(), "padding of the copy"


# shapes, batch, images, limits, whether dx is wanted, mask, add, order
BACKWARD_CASES = [
    ([DenseShape(9, 16, 40), DenseShape(1, 40, 21), DenseShape(1, 21, 10)], 70, 67, SMALL, True, True, False, "random"),
    ([DenseShape(6, 5, 33), DenseShape(1, 33, 7)], 20, 13, H100, False, False, False, "backward"),
    ([DenseShape(12, 32, 144)], 130, 130, Limits("sm_90", 5, 232448, 50 << 20), True, True, True, "forward"),
    # Of shared memory as much as 64 images at a time take, and no more.
    ([DenseShape(12, 32, 40)], 200, 197, Limits("sm_90", 5, 90 << 10, 50 << 20), True, True, False, "random"),
]


@pytest.mark.parametrize(("precision", "optimizer"), [RULES[1], RULES[2], ("tf32", Adam(0.1)), ("bfloat16", SGD(0.1))])
@pytest.mark.parametrize(("shapes", "batch", "images", "limits", "dx", "mask", "add", "order"), BACKWARD_CASES)
def test_backward_of_several_layers(launch, precision, optimizer, shapes, batch, images, limits, dx, mask, add, order):
    """Against the same by single kernels, of which other tests show that they are right."""
    rule = Rule.of(optimizer)
    kernel = dense.backward(precision, shapes, batch, limits, rule, dx, mask, add)
    assert kernel is not None
    rng = np.random.default_rng(4)
    rows = np.tile(np.array([0.1, 0.97, 0.9, 0.1, 0.2, 1e-3, 0.0, 0.0], np.float32), (2, 1))
    common = {"control": control(images, batch, position=1), "scalars": rows}
    together: dict[str, np.ndarray] = dict(common)
    alone: list[dict[str, np.ndarray]] = []
    for i, shape in enumerate(shapes):
        data = Data(shape, batch, images, precision, seed=i)
        own: dict[str, np.ndarray] = {"x": data.x_kept, "dy": data.dy_kept, "copy": data.w_kept}
        for name, size in (("weight", shape.weight_size), ("bias", shape.units)):
            own[name] = rng.standard_normal(size).astype(np.float32)
            own |= {f"{name}_state{j}": np.abs(rng.standard_normal(size)).astype(np.float32) for j in (1, 2)}
        together |= {
            name.replace("weight", f"weight_{i}").replace("bias", f"bias_{i}")
            if name.startswith(("weight", "bias"))
            else f"{name}_{i}": array.copy()
            for name, array in own.items()
        }
        alone.append(own)
    before = to_kept(rng.standard_normal((batch, shapes[0].taps, padded(shapes[0].channels))), precision)
    together["dx"] = before.copy()
    launch(kernel, {name: together[name] for name in kernel.operands}, order)
    for i, (shape, own) in enumerate(zip(shapes, alone, strict=True)):
        if i == 0 and dx:
            single = dense.gradient_of_input(precision, shape, batch, limits, mask, add)
            given = {**common, "dy": own["dy"], "w": own["copy"], "x": own["x"], "dx": before}
            launch(single, {name: given[name] for name in single.operands})
            got, expected = from_kept(together["dx"])[:images], from_kept(before)[:images]
            assert relative_error(got, expected) <= TOLERANCE[precision]
        single = dense.gradient_and_update(precision, shape, batch, limits, rule)
        launch(single, {name: {**common, **own}[name] for name in single.operands})
        for name in ("weight", "bias"):
            for state in ("", "_state1", "_state2"):
                array = together[f"{name}_{i}{state}"]
                assert relative_error(array, own[name + state]) <= 1e-5, f"{name}_{i}{state}"
        written, expected = from_kept(together[f"copy_{i}"]), from_kept(own["copy"])
        assert relative_error(written, expected) <= TOLERANCE[precision]
        assert not written[:, shape.channels :].any()
        assert not written[:, :, shape.units :].any(), "padding of the copy"


@pytest.mark.parametrize(("batch", "shared", "chunk"), [(64, 232448, 64), (65, 232448, 128), (256, 90 << 10, 64)])
def test_images_that_a_backward_takes_at_a_time(batch, shared, chunk):
    shapes = [DenseShape(12, 32, 40), DenseShape(1, 40, 10)]
    kernel = dense.backward("bfloat16", shapes, batch, Limits("sm_90", 5, shared, 50 << 20), Rule.of(SGD(0.1, 0.9)))
    assert kernel is not None
    assert dict(kernel.defines)["CHUNK"] == chunk


def test_backward_where_several_launches_are_better():
    sgd, small = Rule.of(SGD(0.1)), DenseShape(1, 10, 10)
    assert dense.backward("bfloat16", [DenseShape(1, 4096, 8192)], 64, H100, sgd) is None
    assert dense.backward("bfloat16", [small], 41000, H100, sgd) is None
    assert dense.backward("float32", [small], 64, H100, sgd) is None
    assert dense.backward("tf32", [small], 64, TURING, sgd) is None
    assert dense.backward("tf32", [small] * 4, 64, H100, sgd) is None


# Upon the images themselves: (H * W, C, units), batch, images, limits
PIXEL_CASES = [
    (DenseShape(49, 1, 10), 70, 70, Limits("sm_90", 2, 232448, 50 << 20)),
    (DenseShape(16, 3, 7), 100, 67, Limits("sm_86", 1, 101376, 3 << 20)),
    (DenseShape(18, 4, 16), 40, 40, Limits("sm_90", 1, 232448, 50 << 20)),
]


@pytest.mark.parametrize(("precision", "shape", "batch", "images", "limits", "order"), spread(PIXEL_CASES))
def test_layer_upon_pixels(launch, precision, shape, batch, images, limits, order):
    data = Data(shape, batch, images, precision)
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (2 * batch, shape.taps, shape.channels), np.uint8)
    places = rng.permutation(2 * batch).astype(np.int32)
    data.control = control(images, batch, position=1)
    chosen = places[batch : batch + images]
    data.x = ((pixels[chosen].astype(np.float64) - 30.0) / 80.0).reshape(images, -1)
    product = dense.pixel_product(precision, shape, batch, 30.0, 80.0, limits)
    gradient = dense.pixel_gradient(precision, shape, batch, 30.0, 80.0, limits)
    assert product is not None
    assert gradient is not None
    sums = poison((batch, padded(shape.units)))
    common = {"pixels": pixels, "order": places, "control": data.control}
    launch(product, {**common, "w": data.w_kept, "sums": sums}, order)
    assert relative_error(sums[:images, : shape.units], data.x @ data.w) <= 1e-5
    assert (sums[:images, shape.units :] == 0).all()
    weight_partial, bias_partial = poison((gradient.parts, shape.weight_size)), poison((gradient.parts, shape.units))
    partials = {"weight_partial": weight_partial, "bias_partial": bias_partial}
    launch(gradient.kernel, {**common, "dy": data.dy_kept, **partials}, order)
    dw = weight_partial.astype(np.float64).sum(0).reshape(-1, shape.units)
    assert relative_error(dw, data.x.T @ data.dy) <= 1e-5
    assert relative_error(bias_partial.astype(np.float64).sum(0), data.dy.sum(0)) <= 1e-5


def test_pixels_are_for_few_units():
    assert dense.pixel_product("float32", DenseShape(784, 1, 17), 64, 0.0, 1.0, H100) is None
    assert dense.pixel_gradient("float32", DenseShape(784, 1, 17), 64, 0.0, 1.0, H100) is None
    assert dense.pixel_product("float32", DenseShape(784, 1, 10), 64, 0.0, 1.0, TURING) is None


@needs_nvrtc
@pytest.mark.parametrize("limits", GENERATIONS, ids=lambda one: one.architecture)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_register_is_spilled(precision, limits):
    basic, images = DenseShape(144, 64, 128), DenseShape(784, 1, 10)
    kernels = [
        dense.product(precision, basic, 1024, limits),
        dense.forward(precision, DenseShape(1, 1024, 1024), 1024, True, limits),
        dense.gradient_of_input(precision, basic, 1024, limits, mask=True),
        dense.gradient_of_weight(precision, basic, 1024, limits),
        dense.gradient_and_update(precision, basic, 256, limits, Rule("adam", decay=True)),
    ]
    product = dense.pixel_product(precision, images, 41000, 33.0, 78.0, limits)
    gradient = dense.pixel_gradient(precision, images, 41000, 33.0, 78.0, limits)
    if product is not None and gradient is not None:
        kernels += [product, gradient.kernel]
    else:
        assert limits.architecture == "sm_75", "it alone has no matrix unit for tf32"
    lenet = [DenseShape(25, 16, 120), DenseShape(1, 120, 84), DenseShape(1, 84, 10)]
    for shapes in (lenet, [basic, DenseShape(1, 128, 10)]):
        for rule in (Rule("sgd", momentum=True), Rule("adam", decay=True)):
            together = dense.backward(precision, shapes, 256, limits, rule, mask=True)
            if together is not None:
                kernels.append(together)
    for kernel in kernels:
        code = compile_kernel(kernel, limits.architecture)
        assert (code.spilled, code.stack) == (0, 0), f"{kernel.entry}: {code.log}"


@pytest.mark.parametrize("multiprocessors", [1, 2, 7])
def test_a_gpu_with_fewer_multiprocessors_than_blocks(multiprocessors):
    """The choice of tiles ends there, too."""
    few = Limits("sm_90", multiprocessors, H100.shared_bytes, 1 << 20)
    rule = Rule.of(SGD(0.1, momentum=0.9))
    shapes = [DenseShape(144, 64, 128), DenseShape(1, 128, 10)]
    kernel = dense.backward("bfloat16", shapes, 64, few, rule)
    assert kernel is None or kernel.shared_bytes <= few.shared_bytes
