"""A network's first block as one kernel each way, on a CPU against the layers in float64, and compiled for GPUs."""

import os
from typing import Any

import numpy as np
import pytest
from cuda_host import FOR_RACECHECK, TOLERANCE, from_kept, needs_nvrtc, pad_channels, poison, relative_error, to_kept

from bareconv.kernels.cuda.compiler import compile_kernel
from bareconv.kernels.cuda.geometry import Convolution
from bareconv.kernels.cuda.kernel import PRECISIONS, padded
from bareconv.kernels.cuda.limits import GENERATIONS, H100, Limits
from bareconv.kernels.cuda.stem import (
    backward_a_choices,
    backward_b_choices,
    forward_choices,
    stem_backward,
    stem_forward,
)
from bareconv.kernels.cuda.stem_block import Stem
from bareconv.ops.conv import conv2d_backward, conv2d_forward
from bareconv.ops.pool import max_pool_backward, max_pool_forward
from bareconv.ops.windows import Window

PIXELS_MEAN, PIXELS_STD = 33.0, 78.0
SQUARE = Window((2, 2), (2, 2))
MULTIPROCESSORS = 3  # so few that a block has several images


def stem_of(shape, a, b):
    """A stem on images of ``shape``, from (filters, kernel, padding, pool) of both convolutions."""
    H, W, C = shape
    first = Convolution(H, W, C, a[0], a[1], padding=a[2])
    P, Q = (n // (2 if a[3] else 1) for n in first.output)
    return Stem(first, a[3], Convolution(P, Q, a[0], b[0], b[1], padding=b[2]), b[3], PIXELS_MEAN, PIXELS_STD)


BASIC = stem_of((28, 28, 1), (32, (3, 3), (0, 0), False), (64, (3, 3), (0, 0), True))
SMALL = stem_of((28, 28, 1), (16, (3, 3), (1, 1), True), (32, (3, 3), (1, 1), True))
LENET5 = stem_of((28, 28, 1), (6, (5, 5), (2, 2), True), (16, (5, 5), (0, 0), True))

STEMS = {
    "basic": stem_of((12, 12, 1), (32, (3, 3), (0, 0), False), (64, (3, 3), (0, 0), True)),
    "small": stem_of((12, 12, 1), (16, (3, 3), (1, 1), True), (32, (3, 3), (1, 1), True)),
    "lenet5": stem_of((16, 16, 1), (6, (5, 5), (2, 2), True), (16, (5, 5), (0, 0), True)),
    "no pools, odd sizes": stem_of((9, 10, 3), (9, (3, 3), (1, 0), False), (10, (3, 2), (1, 1), False)),
    "pools of odd sizes": stem_of((15, 13, 2), (8, (2, 4), (1, 1), True), (12, (2, 3), (1, 2), True)),
    "pool then none": stem_of((11, 10, 4), (17, (3, 3), (1, 1), True), (8, (1, 1), (0, 0), False)),
    "many channels": stem_of((10, 12, 2), (60, (3, 2), (0, 1), False), (12, (2, 3), (1, 1), True)),
    "wide border": stem_of((7, 7, 1), (5, (3, 1), (2, 2), False), (7, (2, 2), (2, 3), True)),
}


class Case:
    """One step's operands and what comes of them in float64."""

    def __init__(self, stem, precision, batch, images, seed=0, ties=False):
        rng = np.random.default_rng(seed)
        self.stem, self.precision, self.batch, self.images = stem, precision, batch, images
        a, b = stem.a, stem.b
        self.pixels = rng.integers(0, 256, (2 * batch + images, a.height, a.width, a.channels), dtype=np.uint8)
        if ties:
            self.pixels //= 128
            self.pixels[:, : a.height // 2] = 0
        self.order = rng.permutation(len(self.pixels)).astype(np.int32)
        self.control = np.array([2, images, len(self.pixels), batch, 0], np.int32)
        self.weights, self.copies, self.biases = [], [], []
        for one in (a, b):
            size = (*one.kernel, one.channels, one.filters)
            weight = to_kept(rng.standard_normal(size) / np.sqrt(one.taps * one.channels), precision)
            self.weights.append(from_kept(weight))
            copy = pad_channels(weight).reshape(one.taps, one.channels, -1)
            self.copies.append(np.pad(copy, [(0, 0), (0, -one.channels % 8), (0, 0)]))
            bias = np.zeros(one.filters) if ties else rng.standard_normal(one.filters) * 0.3
            self.biases.append(bias.astype(np.float32))
        chosen = self.pixels[self.order[2 * batch :]].astype(np.float32)
        self.x = self.rounded((chosen - np.float32(PIXELS_MEAN)) * np.float32(1 / PIXELS_STD))

    def rounded(self, values):
        return from_kept(to_kept(values, self.precision))

    def conv(self, layer, x):
        window = (self.stem.a, self.stem.b)[layer].window
        return conv2d_forward(x, self.weights[layer], self.biases[layer].astype(np.float64), window)

    def operands(self, kernel):
        P, Q = self.stem.output
        K = padded(self.stem.b.filters)
        everything = {
            "pixels": self.pixels,
            "order": self.order,
            "control": self.control,
            "weight_a": self.copies[0],
            "bias_a": self.biases[0],
            "weight_b": self.copies[1],
            "bias_b": self.biases[1],
            "y": poison((self.batch, P, Q, K), self.precision),
            "where": np.full((self.batch, P, Q, K), 0xEE, np.uint8),
        }
        return {name: everything[name] for name in kernel.operands if name in everything}

    def partials(self, kernel):
        layers = (("a", self.stem.a), ("b", self.stem.b))
        sizes = {f"partial_weight_{name}": (*one.kernel, one.channels, one.filters) for name, one in layers}
        sizes |= {f"partial_bias_{name}": (one.filters,) for name, one in layers}
        return {name: poison((kernel.grid[0], *size)) for name, size in sizes.items() if name in kernel.operands}


def middle_of(case):
    """A's outputs, where each maximum of its pool is, and what is kept of them."""
    outputs, cols = case.conv(0, case.x)
    pooled, where = max_pool_forward(outputs, SQUARE) if case.stem.a_pool else (outputs, None)
    return outputs, cols, where, np.maximum(pooled, 0)


def check_forward(launch, case, kernel=None, order="forward"):
    """Of the kernel that is chosen for few multiprocessors, or of this one. How many squares' values are all alike."""
    kernel = kernel or stem_forward(case.stem, case.precision, case.batch, FEW)
    assert kernel is not None
    operands = case.operands(kernel)
    launch(kernel, operands, order)
    images, K = case.images, case.stem.b.filters
    y, where = from_kept(operands["y"]), operands["where"]
    outputs, _ = case.conv(1, case.rounded(middle_of(case)[-1]))
    expected = np.maximum(max_pool_forward(outputs, SQUARE)[0] if case.stem.b_pool else outputs, 0)
    assert relative_error(y[:images, ..., :K], expected) < TOLERANCE[case.precision]
    assert (y[:images, ..., K:] == 0).all()
    assert np.isnan(y[images:]).all(), "an image that the batch does not have was written"
    # The place that was chosen has the maximum, but for rounding; what relu stops is marked.
    near = TOLERANCE[case.precision] * np.abs(outputs).max()
    got = where[:images, ..., :K]
    assert (got < 8).all()
    alive = got < 4
    assert (expected[alive] > -near).all()
    assert (expected[~alive] < near).all()
    assert (alive == (y[:images, ..., :K] > 0)).all()
    if case.stem.b_pool:
        P, Q = case.stem.output
        squares = (
            outputs[:, : 2 * P, : 2 * Q]
            .reshape(images, P, 2, Q, 2, K)
            .transpose(0, 1, 3, 5, 2, 4)
            .reshape(*got.shape, 4)
        )
        chosen = np.take_along_axis(squares, (got & 3)[..., None].astype(int), -1)[..., 0]
        assert (chosen > squares.max(-1) - near).all()
        alike = (squares == squares[..., :1]).all(-1)
        assert (got[alike] & 3 == 0).all(), "not the first of equals"
        return float(alike.mean())
    assert (got & 3 == 0).all()
    return 0.0


def has_even_teams(kernel, images):
    """Whether the teams of every block have as many rounds as each other."""
    made = dict(kernel.defines)
    teams, workers, items = made["TEAMS"], kernel.grid[0] // made.get("SLICES", 1), images * made["BANDS"]
    rounds = [
        [len(range(block * teams + team, items, workers * teams)) for team in range(teams)] for block in range(workers)
    ]
    return all(len(set(of_block)) == 1 for of_block in rounds)


def check_backward(launch, case, kernels=None, order="forward"):
    stem, rng = case.stem, np.random.default_rng(1)
    made = None
    if kernels is None:
        made = stem_backward(stem, case.precision, case.batch, FEW)
        assert made is not None
        assert {kernel.grid[0] for kernel in made.kernels} == {made.parts}
        kernels = made.kernels
    if os.environ.get(FOR_RACECHECK) and not all(has_even_teams(kernel, case.images) for kernel in kernels):
        pytest.skip(f"{FOR_RACECHECK}: it loses track in a block whose teams have different numbers of rounds")
    (P, Q), K = stem.output, stem.b.filters
    shape = (case.batch, P, Q, K)
    dy = to_kept(rng.standard_normal(shape), case.precision)
    where = rng.integers(0, 4, shape) * stem.b_pool + 4 * (rng.random(shape) < 0.4)
    partials: dict[str, Any] = {}
    for kernel in kernels:
        poisoned = case.partials(kernel)
        operands = {"dy": pad_channels(dy), "where": pad_channels(where.astype(np.uint8))}
        launch(kernel, case.operands(kernel) | poisoned | operands, order)
        partials |= poisoned

    where, dy = where[: case.images], from_kept(dy)[: case.images]
    outputs, cols, of_pool, middle = middle_of(case)
    middle = case.rounded(middle)
    again, cols_b = case.conv(1, middle)
    dy = dy * (where < 4)
    if stem.b_pool:
        dy = max_pool_backward(dy, where & 3, again.shape, SQUARE)
    d_middle, dw_b, db_b = conv2d_backward(dy, cols_b, case.weights[1], middle.shape, stem.b.window)
    da = d_middle * (middle > 0)
    if stem.a_pool:
        da = max_pool_backward(da, of_pool, outputs.shape, SQUARE)
    _, dw_a, db_a = conv2d_backward(da, cols, case.weights[0], case.x.shape, stem.a.window, need_dx=False)
    expected = {"partial_weight_b": dw_b, "partial_bias_b": db_b, "partial_weight_a": dw_a, "partial_bias_a": db_a}
    assert made is None or set(partials) == set(expected)
    for name, value in expected.items():
        if name not in partials:  # only one of the kernels was asked for
            continue
        got = partials[name].astype(np.float64)
        assert np.isfinite(got).all(), f"{name}: a part was not written"
        assert relative_error(got.sum(axis=0), value) < TOLERANCE[case.precision], name


FEW = Limits("sm_90", MULTIPROCESSORS, H100.shared_bytes, H100.cache_bytes)
# In float32 B has a pool; backward A has none, and 32 channels for a warp. Other precisions have no registers for many
# channels.
FORWARD = [
    (name, precision)
    for precision in PRECISIONS
    for name, stem in STEMS.items()
    if (stem.b_pool if precision == "float32" else name != "many channels")
]
BACKWARD = [
    (name, precision)
    for name, precision in FORWARD
    if precision != "float32" or (padded(STEMS[name].a.filters) % 32 == 0 and not STEMS[name].a_pool)
]
FINEST = [("small", "backward"), ("pools of odd sizes", "random"), ("no pools, odd sizes", "random")]


@pytest.mark.parametrize(("name", "precision"), FORWARD)
def test_forward(launch, name, precision):
    check_forward(launch, Case(STEMS[name], precision, 9, 7))


@pytest.mark.parametrize("images", [7, 9])
@pytest.mark.parametrize(("name", "precision"), BACKWARD)
def test_backward(launch, name, precision, images):
    check_backward(launch, Case(STEMS[name], precision, 9, images))


@pytest.mark.parametrize(
    ("name", "order", "precision"),
    [(name, order, precision) for name, order in FINEST for precision in ("tf32", "bfloat16")]
    + [("basic", "backward", "float32"), ("many channels", "random", "float32")],
)
def test_bands_and_teams(launch, name, order, precision):
    """Of all ways to launch the kernels: small bands, many teams."""
    case = Case(STEMS[name], precision, 4, 3, seed=1)

    def finest(choices):
        kernels = [choice.kernel for choice in choices(case.stem, case.precision, case.batch, FEW)]
        keys = ("BANDS", "SLICES", "TEAMS", "WARPS")
        return max(kernels, key=lambda kernel: [dict(kernel.defines).get(key, 1) for key in keys])

    forward, backward = finest(forward_choices), [finest(backward_b_choices), finest(backward_a_choices)]
    assert all(dict(kernel.defines)["BANDS"] > 2 for kernel in (forward, *backward))
    check_forward(launch, case, forward, order)
    check_backward(launch, case, backward, order)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize("name", ["basic", "pools of odd sizes", "no pools, odd sizes"])
@pytest.mark.parametrize("staged", [False, True])
def test_gradients_staged_or_not(launch, name, precision, staged):
    """Two bands of an image, and several of them for a team."""
    case = Case(STEMS[name], precision, 5, 4, seed=2)

    def coarse(choices):
        kernels = (choice.kernel for choice in choices(case.stem, case.precision, case.batch, FEW))
        return next(one for one in kernels if {("BANDS", 2), ("STAGED", staged)} <= set(one.defines))

    check_backward(launch, case, [coarse(backward_b_choices), coarse(backward_a_choices)], "random")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_first_of_equals_wins(launch, precision):
    """Where images are black, all of a square is alike."""
    case = Case(STEMS["basic"], precision, 3, 3, ties=True)
    assert check_forward(launch, case) > 0.2
    check_backward(launch, case)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_without_images(launch, precision):
    """Partials are written all the same; what lies in other memory does not matter."""
    case = Case(STEMS["basic"], precision, 3, 0)
    kernel = stem_forward(case.stem, precision, 3, FEW)
    operands = case.operands(kernel)
    launch(kernel, operands)
    assert np.isnan(from_kept(operands["y"])).all()
    made = stem_backward(case.stem, precision, 3, FEW)
    assert made is not None
    for kernel in made.kernels:
        partials = case.partials(kernel)
        shape = (3, *case.stem.output, padded(case.stem.b.filters))
        operands = {"dy": poison(shape, precision), "where": np.zeros(shape, np.uint8)}
        launch(kernel, case.operands(kernel) | partials | operands)
        assert all((partial == 0).all() for partial in partials.values())


def test_images_as_they_lie(launch):
    case = Case(STEMS["lenet5"], "bfloat16", 2, 2)
    kernel = stem_forward(case.stem, "bfloat16", 2, FEW)
    ordered, plain = case.operands(kernel), case.operands(kernel)
    launch(kernel, ordered)
    launch(kernel, plain | {"order": None, "pixels": case.pixels[case.order]})
    assert (ordered["y"] == plain["y"]).all()
    assert (ordered["where"] == plain["where"]).all()


def test_what_does_not_fit():
    assert stem_forward(BASIC, "bfloat16", 64, Limits("sm_75", 72, 65536, 6 << 20)) is None  # no matrices of bf16
    wide = stem_of((32, 32, 3), (64, (3, 3), (1, 1), False), (512, (3, 3), (1, 1), False))
    assert stem_forward(wide, "bfloat16", 64, H100) is None
    assert stem_backward(wide, "bfloat16", 64, H100) is None
    assert stem_backward(SMALL, "float32", 64, H100) is None  # half a warp's channels
    strided = Stem(Convolution(28, 28, 1, 8, (3, 3), (2, 2)), False, Convolution(13, 13, 8, 8, (3, 3)), True, 0.0, 1.0)
    assert stem_forward(strided, "bfloat16", 64, H100) is None


@needs_nvrtc
@pytest.mark.parametrize("limits", GENERATIONS, ids=lambda one: one.architecture)
def test_no_registers_are_spilled(limits):
    found = 0
    for stem in (BASIC, SMALL, LENET5):
        for precision in PRECISIONS:
            forward, backward = stem_forward(stem, precision, 256, limits), stem_backward(stem, precision, 256, limits)
            for kernel in (*([forward] if forward else ()), *(backward.kernels if backward else ())):
                made = compile_kernel(kernel, limits.architecture)
                assert made.spilled == made.stack == 0, f"{kernel.entry} {made.registers} {kernel.defines}"
                blocks = dict(kernel.defines).get("BLOCKS", 1)
                assert made.registers * kernel.threads * blocks <= 65536
                found += 1
    # Three each in the precisions of matrices; in float32 backward only the first one's.
    assert found == (5 if limits.capability < 80 else 23)
