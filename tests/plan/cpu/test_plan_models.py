"""A plan computes what the reference computes, whatever the model: in float64, to rounding.

Only there is a strict comparison fair. In float32 the two round differently, and where a relu's input or the difference
of two pixels of a pool is next to zero, they may choose differently: the gradients then differ by more than rounding.
The float32 comparison takes the gradients of all parameters together, and allows for that.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from drawn_models import CLASSES, Drawn, models
from hypothesis import given, settings
from plan_harness import DRAWN, Reference, compare_step, data_of, model_of, orders, planned

from bareconv.errors import UsageError
from bareconv.kernels.cpu.target import host_target
from bareconv.nn.blocks import Residual, Sequential
from bareconv.nn.layer import Layer, Shape
from bareconv.nn.layers import (
    GELU,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    GlobalMaxPool,
    LeakyReLU,
    MaxPool2d,
    ReLU,
)
from bareconv.optim import SGD


@pytest.mark.slow
@settings(max_examples=40)
@given(drawn=models())
def test_any_model(drawn: Drawn) -> None:
    """Losses, gradients, statistics and predictions, of full and of short batches, on two threads."""
    compare_step(drawn.make, drawn.shape, CLASSES, tolerance=DRAWN, threads=2)


@pytest.mark.parametrize("unit", ["AVX2", "SSE2"])
def test_any_model_with_narrower_vectors(unit: str) -> None:
    try:
        host_target("float64", unit)
    except UsageError as error:
        pytest.skip(str(error))

    @settings(max_examples=8)
    @given(drawn=models())
    def same(drawn: Drawn) -> None:
        compare_step(drawn.make, drawn.shape, CLASSES, tolerance=DRAWN, threads=3, simd=unit)

    same()


@settings(max_examples=12)
@given(drawn=models())
def test_any_model_in_single_precision(drawn: Drawn) -> None:
    """The first step, against float64: as good as the reference in float32 is, and better than 1e-3 where that is."""
    pixels, labels = data_of(drawn.shape, CLASSES)
    order = orders(len(pixels), 6, 1)[0]
    gradients = []
    for precision in ("float64", "float32"):
        model = model_of(drawn.make(), drawn.shape, precision)
        Reference(model, SGD(0.0)).step(pixels, labels, order, 0.0)
        gradients.append(np.concatenate([g.ravel().astype(np.float64) for g in model.gradients().values()]))
    exact, reference = gradients
    model = model_of(drawn.make(), drawn.shape, "float32")
    with planned(model, SGD(0.0), 6, clip_norm=1e30, threads=2) as plan:
        plan.step(pixels, labels, order, 0.0)
        found = np.concatenate([g.ravel().astype(np.float64) for g in plan.gradients().values()])
    scale = float(np.linalg.norm(exact)) + 1e-6
    assert np.isfinite(found).all()
    assert np.linalg.norm(found - exact) / scale <= max(1e-3, 30 * float(np.linalg.norm(reference - exact)) / scale)


# Where arrays are shared between nodes, where borders meet, where no kernel covers a node: most once went wrong.
CASES: dict[str, tuple[Callable[[], list[Layer]], Shape]] = {
    "conv, relu and pool": (lambda: [Conv2d(7, 3), ReLU(), MaxPool2d(2)], (9, 8, 2)),
    "pool, then relu": (lambda: [Conv2d(7, 3), MaxPool2d(3), ReLU()], (10, 8, 2)),
    "conv and pool without relu": (lambda: [Conv2d(8, 3), Conv2d(7, 3), MaxPool2d(2)], (9, 8, 2)),
    "pool that does not cover all": (lambda: [Conv2d(4, 3), ReLU(), MaxPool2d(4)], (9, 8, 2)),
    "dense layer of a page": (lambda: [Flatten(), Dense(512), ReLU(), Dense(1024), BatchNorm()], (5, 5, 1)),
    "image of a page": (lambda: [Conv2d(8, 3, padding=1), ReLU()], (8, 8, 8)),
    "relu and pool after groups": (lambda: [Conv2d(8, 3, groups=2), ReLU(), MaxPool2d(2)], (9, 8, 2)),
    "norm after groups": (lambda: [Conv2d(8, 3, groups=2, bias=False), BatchNorm(), ReLU()], (9, 8, 2)),
    "stride and dilation": (lambda: [Conv2d(8, 3, stride=2, dilation=2), BatchNorm(), ReLU()], (9, 8, 2)),
    "maximum of a large image": (lambda: [Conv2d(8, 3, padding=1), GlobalMaxPool()], (17, 17, 2)),
    "mean of a large image": (lambda: [Conv2d(8, 3, padding=1), GlobalAvgPool()], (17, 17, 2)),
    "padded pools": (lambda: [Conv2d(8, 3), MaxPool2d(3, 2, 1), AvgPool2d(3, 1, 1)], (9, 9, 1)),
    "overlapping pools": (lambda: [Conv2d(8, 3), ReLU(), MaxPool2d(3, 2), AvgPool2d(2, 1)], (12, 12, 1)),
    "pools with gaps": (lambda: [Conv2d(8, 3), MaxPool2d(1, 3), AvgPool2d(1, 2)], (12, 12, 1)),
    "pool first": (lambda: [MaxPool2d(2), Conv2d(8, 3)], (12, 12, 1)),
    "norm first": (lambda: [BatchNorm(), Conv2d(8, 3), BatchNorm(), BatchNorm(), ReLU(), ReLU()], (12, 12, 1)),
    "norm and pool": (lambda: [Conv2d(8, 3, bias=False), BatchNorm(), ReLU(), MaxPool2d(2)], (9, 8, 1)),
    "norm before a sparse conv": (
        lambda: [Conv2d(8, 3, padding=1, bias=False), BatchNorm(), Conv2d(8, 3), ReLU(), MaxPool2d(2)],
        (8, 8, 1),
    ),
    "conv with a border before a sparse conv": (
        lambda: [
            *(Conv2d(8, 3, padding=1, bias=False), Conv2d(8, 3, padding=1, bias=False)),
            *(Conv2d(8, 3, padding=1), ReLU(), MaxPool2d(2)),
        ],
        (8, 8, 1),
    ),
    "residual before a sparse conv": (
        lambda: [
            *(Conv2d(8, 3, padding=1, bias=False), Residual(Sequential([Conv2d(8, 3, padding=1), ReLU()]))),
            *(Conv2d(8, 3, padding=1), ReLU(), MaxPool2d(2)),
        ],
        (8, 8, 1),
    ),
    "sparse conv in a residual": (
        lambda: [
            Conv2d(8, 3, padding=1),
            Residual(Sequential([Conv2d(8, 3, padding=1), ReLU(), MaxPool2d(2)]), Conv2d(8, 2, 2)),
        ],
        (8, 8, 1),
    ),
    "dropout": (lambda: [Conv2d(8, 3), ReLU(), Dropout(0.3), Flatten(), Dropout()], (8, 8, 1)),
    "no kernels": (
        lambda: [Conv2d(8, 3), GELU(), Flatten(), Dense(12), LeakyReLU(), GELU(), BatchNorm()],
        (8, 8, 1),
    ),
    "activation first": (lambda: [LeakyReLU(), ReLU(), Conv2d(10, 3)], (6, 6, 1)),
    "dense only": (lambda: [Flatten()], (6, 6, 1)),
    "residual first": (lambda: [Residual(Conv2d(2, 3, padding=1)), ReLU()], (6, 6, 2)),
    "residual of a dense layer and its relu": (
        lambda: [Flatten(), Dense(16), Residual(Sequential([Dense(16), ReLU()]))],
        (5, 5, 1),
    ),
    "residual of one small conv": (lambda: [Conv2d(8, 3), Residual(Conv2d(8, 1, bias=False))], (7, 7, 1)),
    "residual of one norm": (lambda: [Conv2d(8, 3), Residual(BatchNorm()), ReLU()], (7, 7, 1)),
    "residual of nothing": (lambda: [Conv2d(8, 3), Residual(Sequential([])), ReLU()], (7, 7, 1)),
    "residual without kernels": (lambda: [Conv2d(8, 3), Residual(GELU(), LeakyReLU()), ReLU()], (6, 6, 2)),
    "residual within, first": (lambda: [Conv2d(8, 3), Residual(Residual(Conv2d(8, 3, padding=1)))], (7, 7, 1)),
    "residual within, last": (
        lambda: [Conv2d(8, 3), Residual(Sequential([Conv2d(8, 3, padding=1), Residual(Conv2d(8, 3, padding=1))]))],
        (7, 7, 1),
    ),
    "residual within, and a relu": (
        lambda: [Conv2d(8, 3), Residual(Sequential([Residual(Conv2d(8, 3, padding=1)), ReLU()]))],
        (7, 7, 1),
    ),
    "pixels between windows, added to": (
        lambda: [
            Conv2d(8, 3),
            Residual(Sequential([Conv2d(8, 1, 2), Conv2d(8, 3, padding=1)]), Conv2d(8, 3, 2, 1)),
        ],
        (9, 9, 1),
    ),
    "pixels between windows, after a pool": (
        lambda: [Conv2d(8, 3), Residual(Conv2d(8, 1, 3), MaxPool2d(3, 3)), ReLU()],
        (8, 8, 2),
    ),
    "pixels between windows, after a sum": (
        lambda: [Conv2d(8, 3), Residual(Conv2d(8, 3, padding=1)), Conv2d(8, 1, 2)],
        (8, 8, 2),
    ),
    "flat both ways": (
        lambda: [
            Conv2d(8, 3),
            ReLU(),
            Residual(Sequential([Flatten(), Dense(9)]), Sequential([Conv2d(9, 4), Flatten()])),
        ],
        (6, 6, 2),
    ),
    "by transforms": (
        lambda: [Conv2d(16, 3, padding=1), ReLU(), Conv2d(17, 3, padding=1), ReLU(), Conv2d(16, 3), MaxPool2d(2)],
        (10, 8, 16),
    ),
    "by transforms, around a shortcut": (
        lambda: [
            Conv2d(16, 3),
            Residual(Sequential([Conv2d(16, 3, padding=1, bias=False), BatchNorm(), ReLU(), Conv2d(16, 3, 1, 1)])),
            *(Conv2d(24, 3, padding=2, bias=False), ReLU(), MaxPool2d(2)),
        ],
        (8, 10, 3),
    ),
    "pixels read by the first layer": (lambda: [Flatten(), Dense(4), ReLU(), Dense(3), BatchNorm()], (9, 9, 1)),
    "a few units anywhere": (lambda: [Conv2d(8, 3), ReLU(), Flatten(), Dense(4), BatchNorm(), Dense(3)], (9, 9, 1)),
    "one pixel": (lambda: [Conv2d(5, 3, padding=1), ReLU(), BatchNorm()], (1, 1, 3)),
    "kernel as large as the image": (lambda: [Conv2d(5, (4, 6)), ReLU()], (4, 6, 2)),
    "stride beyond the kernel": (lambda: [Conv2d(6, 3), Conv2d(5, (1, 2), (3, 3)), ReLU()], (9, 9, 1)),
}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_case(case: str, threads: int) -> None:
    layers, shape = CASES[case]

    def make() -> list[Layer]:
        return [*layers(), *([] if any(type(one) in FLAT for one in layers()) else [Flatten()]), Dense(10)]

    compare_step(make, shape, 10, threads=threads)


FLAT = (Flatten, GlobalAvgPool, GlobalMaxPool)


def test_a_model_that_ends_without_a_dense_layer() -> None:
    compare_step(lambda: [Conv2d(10, 3, padding=1), GlobalAvgPool()], (6, 6, 1), 10)
    compare_step(lambda: [Conv2d(10, 6), Flatten()], (6, 6, 1), 10)


@pytest.mark.parametrize("batch", [1, 2, 17])
def test_batches_of_any_size(batch: int) -> None:
    compare_step(lambda: [Conv2d(7, 3), BatchNorm(), ReLU(), Flatten(), Dense(10)], (6, 6, 1), 10, batch=batch, short=1)


class Half(Conv2d):
    """A layer of someone else's, made from one that has a kernel."""

    kind = "half"

    def forward(self, x, training=False, step=0, watch=None):
        return 0.5 * super().forward(x, training, step, watch)

    def backward(self, dy, need_dx=True, watch=None):
        return super().backward(0.5 * dy, need_dx, watch)


def test_a_layer_that_someone_else_wrote() -> None:
    """It is called, not taken for the one that it is made from."""
    compare_step(lambda: [Half(6, 3), ReLU(), Half(6, 3), MaxPool2d(2), Flatten(), Dense(10)], (8, 8, 1), 10)
