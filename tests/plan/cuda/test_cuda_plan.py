"""The CUDA plan against the reference: every kind of layer, small models of the zoo, short batches, several precisions.

On a CPU its kernels run in their host build, on a GPU as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from cuda_host import needs_compiler
from cuda_stand_in import StandIn, aligned
from plan_harness import Reference, assert_same, data_of, model_of, off

from bareconv.device import get_device
from bareconv.kernels.cuda.kernel import PRECISIONS
from bareconv.nn import blocks, layers
from bareconv.nn.layer import Layer, Shape
from bareconv.optim import SGD
from bareconv.plan.cuda.plan import CudaPlan
from bareconv.plan.cuda.record import Recorded

MakeLayers = Callable[[], Sequence[Layer]]


@pytest.fixture(params=[pytest.param("host", marks=needs_compiler), pytest.param("gpu", marks=pytest.mark.cuda)])
def place(request):
    """("cpu", a stand-in) or ("cuda", None): where the plan's model is, and its runtime."""
    if request.param == "host":
        yield "cpu", StandIn()
        return
    device = get_device("cuda")
    with device.activate():
        yield "cuda", None


MODELS: dict[str, tuple[MakeLayers, Shape]] = {
    "dense alone": (lambda: [layers.Flatten(), layers.Dense(5)], (3, 3, 2)),
    "two dense": (lambda: [layers.Flatten(), layers.Dense(20), layers.ReLU(), layers.Dense(5)], (4, 4, 1)),
    "three dense": (
        lambda: [layers.Flatten(), layers.Dense(40), layers.ReLU(), layers.Dense(21), layers.ReLU(), layers.Dense(5)],
        (4, 4, 3),
    ),
    "conv": (lambda: [layers.Conv2d(5, 3), layers.Flatten(), layers.Dense(4)], (6, 5, 3)),
    "conv relu pool": (
        lambda: [layers.Conv2d(9, 3, padding=1), layers.ReLU(), layers.MaxPool2d(2), layers.Flatten(), layers.Dense(4)],
        (6, 6, 6),
    ),
    "stem": (
        lambda: [
            *(layers.Conv2d(8, 3), layers.ReLU(), layers.Conv2d(16, 3), layers.ReLU(), layers.MaxPool2d(2)),
            *(layers.Flatten(), layers.Dense(24), layers.ReLU(), layers.Dense(5)),
        ],
        (12, 12, 1),
    ),
    "strides": (
        lambda: [
            *(layers.Conv2d(12, 3, stride=2, padding=1), layers.ReLU(), layers.Conv2d(16, 1, stride=2), layers.ReLU()),
            *(layers.GlobalAvgPool(), layers.Dense(5)),
        ],
        (9, 8, 3),
    ),
    "norm": (
        lambda: [
            *(layers.Conv2d(8, 3, padding=1, bias=False), layers.BatchNorm(), layers.ReLU(), layers.MaxPool2d(2)),
            *(layers.Conv2d(11, 3, padding=1, bias=False), layers.BatchNorm(), layers.ReLU()),
            *(layers.GlobalMaxPool(), layers.Dense(5)),
        ],
        (8, 8, 3),
    ),
    "residual": (
        lambda: [
            *(layers.Conv2d(8, 3, padding=1), layers.ReLU()),
            blocks.Residual(
                blocks.Sequential(
                    [
                        *(layers.Conv2d(8, 3, padding=1, bias=False), layers.BatchNorm(), layers.ReLU()),
                        *(layers.Conv2d(8, 3, padding=1, bias=False), layers.BatchNorm()),
                    ]
                )
            ),
            *(layers.ReLU(), layers.GlobalAvgPool(), layers.Dense(5)),
        ],
        (5, 5, 3),
    ),
    "projected": (
        lambda: [
            layers.Conv2d(8, 3, padding=1),
            blocks.Residual(
                blocks.Sequential([layers.Conv2d(16, 3, stride=2, padding=1, bias=False), layers.BatchNorm()]),
                blocks.Sequential([layers.Conv2d(16, 1, stride=2, bias=False), layers.BatchNorm()]),
            ),
            *(layers.ReLU(), layers.Flatten(), layers.Dense(5)),
        ],
        (6, 6, 3),
    ),
    "sum of relus": (
        lambda: [
            *(layers.Conv2d(8, 3, padding=1), layers.ReLU()),
            blocks.Residual(blocks.Sequential([layers.Conv2d(8, 3, padding=1), layers.ReLU()])),
            *(layers.AvgPool2d(2), layers.Flatten(), layers.Dense(5)),
        ],
        (6, 6, 3),
    ),
    "residuals in a row": (
        lambda: [
            layers.Conv2d(8, 3, padding=1),
            blocks.Residual(
                blocks.Sequential([layers.Conv2d(8, 3, padding=1, bias=False), layers.BatchNorm(), layers.ReLU()])
            ),
            blocks.Residual(
                blocks.Sequential([layers.Conv2d(8, 3, padding=1, bias=False), layers.BatchNorm(), layers.ReLU()])
            ),
            blocks.Residual(blocks.Sequential([layers.Conv2d(8, 1)])),
            *(layers.GlobalMaxPool(), layers.Dense(5)),
        ],
        (4, 4, 3),
    ),
    "overlapping pool": (
        lambda: [layers.Conv2d(8, 3), layers.MaxPool2d(3, 2), layers.Flatten(), layers.Dense(5)],
        (9, 9, 1),
    ),
    "dropout": (
        lambda: [
            *(layers.Conv2d(5, 3), layers.ReLU(), layers.Dropout(0.3), layers.Flatten(), layers.Dropout(0.5)),
            *(layers.Dense(20), layers.ReLU(), layers.Dropout(0.5), layers.Dense(5)),
        ],
        (7, 7, 1),
    ),
    "no kernels": (
        lambda: [
            *(layers.Conv2d(8, 3, groups=2, padding=1), layers.LeakyReLU(0.1), layers.Conv2d(6, 3), layers.GELU()),
            *(layers.Flatten(), layers.Dense(5)),
        ],
        (6, 6, 2),
    ),
}
# Of gradients through several layers: a relu that rounding flips changes more than rounding itself.
STEP_TOLERANCE = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 0.25}  # of gradients through several layers


def _compare(make: MakeLayers, shape: Shape, precision: str, place: Any, batch: int = 6) -> CudaPlan:
    device, runtime = place
    classes = 4 if make().__len__() and make()[-1].units == 4 else 5  # type: ignore[attr-defined]
    pixels, labels = data_of(shape, classes, images=16)
    model, other = model_of(make(), shape, "float32").to(device), model_of(make(), shape, "float64")
    reference = Reference(other, SGD(0.05))
    plan = CudaPlan(model, SGD(0.05), batch, precision=precision, clip_norm=1e30, runtime=runtime)
    xp, to_host = model.device.xp, model.device.to_host
    there = xp.asarray(pixels) if device == "cuda" else aligned(pixels.shape, np.uint8)
    there[...] = xp.asarray(pixels)
    tolerance = STEP_TOLERANCE[precision]
    for step, chosen in enumerate((np.arange(6), np.array([9, 3, 14, 7]))):
        losses, hits = plan.steps(there, xp.asarray(labels), xp.asarray(chosen), [0.05], step)
        expected_loss, expected_hits = reference.step(pixels, labels, chosen, 0.05, step)
        where = f"step {step}, {len(chosen)} images"
        assert abs(float(losses[0]) - expected_loss) <= tolerance * max(1.0, abs(expected_loss)), where
        if precision == "float32":
            assert int(hits[0]) == expected_hits, where
        gradients = {name: to_host(one) for name, one in plan.gradients().items()}
        assert_same(gradients, other.gradients(), tolerance, f"{where}, gradients")
        state = {name: to_host(one) for name, one in model.state().items()}
        assert_same(state, other.state(), tolerance, f"{where}, parameters and statistics")
    predicted = to_host(plan.predict(there[:7]))
    assert off(predicted, reference.engine.predict(pixels[:7])) <= tolerance, "prediction"
    return plan


@pytest.mark.parametrize("name", MODELS)
def test_a_step_is_the_references(place, name):
    make, shape = MODELS[name]
    plan = _compare(make, shape, "float32", place)
    assert (plan._prepared().program.why_not_captured is not None) == (name == "no kernels")


@pytest.mark.parametrize("precision", PRECISIONS[1:])
@pytest.mark.parametrize("name", ["stem", "norm", "strides", "two dense"])  # of the last, all updates are where dW is
def test_a_step_in_other_precisions(place, name, precision):
    make, shape = MODELS[name]
    _compare(make, shape, precision, place)


def test_a_gradient_that_is_passed_on_is_copied_only_where_it_is_read_later():
    make, shape = MODELS["residuals in a row"]
    runtime: Any = StandIn()
    plan = CudaPlan(model_of(make(), shape, "float32"), SGD(0.05), 4, precision="float32", runtime=runtime)
    launches = [item for item in plan._lowered(4, True).record.items if isinstance(item, Recorded)]
    # The last sum's: the convolution that made one of its operands reads it after that.
    assert [item.node for item in launches if item.kernel.entry == "copy"] == ["residual3.add"]
