"""Training by a plan: runs beside the reference, every optimizer, threads, memory, going on from a checkpoint."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from plan_harness import STRICT, Reference, assert_same, data_of, off, orders, planned

from bareconv.errors import BareconvError, ShapeError, UsageError
from bareconv.nn import models
from bareconv.nn.layer import Layer
from bareconv.nn.layers import GELU, BatchNorm, Conv2d, Dense, Dropout, Flatten, MaxPool2d, ReLU
from bareconv.nn.model import Model
from bareconv.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from bareconv.plan.cpu.plan import CpuPlan

RUNS: dict[str, tuple[Callable[[], Model], int]] = {
    "mlp": (lambda: models.mlp((9, 9, 1)), 6),
    "lenet5": (lambda: models.lenet5((14, 14, 1)), 6),
    "small": (lambda: models.small((12, 12, 1)), 6),
    "basic": (lambda: models.basic((12, 12, 1)), 5),
    "resnet9": (lambda: models.resnet9((8, 8, 3)), 2),
}
RULES: dict[str, Callable[[], Optimizer]] = {
    "sgd": lambda: SGD(0.05),
    "momentum and decay": lambda: SGD(0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda: SGD(0.05, momentum=0.9, nesterov=True),
    "rmsprop": lambda: RMSprop(0.001, momentum=0.5),
    "adam": lambda: Adam(0.002),
    "adamw": lambda: AdamW(0.002),
}


def mixed(precision: str = "float32") -> Model:
    """A bit of everything: a sparse backward, a norm, dropout, a layer without kernel, dense layers."""
    layers: list[Layer] = [
        *(Conv2d(9, 3, padding=1), ReLU(), Conv2d(12, 3), ReLU(), MaxPool2d(2)),
        *(Conv2d(8, 3, stride=2, padding=1, bias=False), BatchNorm(), ReLU(), GELU()),
        *(Flatten(), Dropout(0.2), Dense(20), ReLU(), Dense(10)),
    ]
    return Model(layers, (12, 12, 2), seed=3, name="mixed").to("cpu", precision)


def run(model: Model, optimizer: Optimizer, steps: int = 5, begin: int = 0, **options: Any) -> list[float]:
    """The losses of these steps of a plan."""
    pixels, labels = data_of(model.input_shape, 10)
    with planned(model, optimizer, 8, **options) as plan:
        chosen = orders(len(pixels), 8, 12)[begin : begin + steps]
        return [plan.step(pixels, labels, order, optimizer.lr, begin + i)[0] for i, order in enumerate(chosen)]


def copied(state: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: array.copy() for name, array in state.items()}


def assert_equal(found: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> None:
    """Bit by bit."""
    assert found.keys() == expected.keys()
    different = [name for name in expected if not np.array_equal(found[name], expected[name])]
    assert not different, f"not the same: {', '.join(different)}"


@pytest.mark.parametrize("name", [*list(RUNS)[:-1], pytest.param("resnet9", marks=pytest.mark.slow)])
def test_a_run_step_by_step(name: str) -> None:
    """Momentum, a rate that changes, a short last batch; in float64."""
    make, steps = RUNS[name]
    model, other = make().to("cpu", "float64"), make().to("cpu", "float64")
    pixels, labels = data_of(model.input_shape, 10)
    reference = Reference(other, SGD(0.02, momentum=0.9, weight_decay=1e-3))
    optimizer = SGD(0.02, momentum=0.9, weight_decay=1e-3)
    with planned(model, optimizer, 6, threads=2) as plan:
        for step, order in enumerate(orders(len(pixels), 6, steps, 4)):
            lr = 0.02 / (step + 1)
            loss, hits = plan.step(pixels, labels, order, lr, step)
            expected_loss, expected_hits = reference.step(pixels, labels, order, lr, step)
            assert abs(loss - expected_loss) <= STRICT * max(1.0, abs(expected_loss)), f"step {step}"
            assert hits == expected_hits
            assert_same(model.state(), other.state(), 1e-8, f"after step {step}")
        assert optimizer.step == steps
        assert off(plan.predict(pixels), reference.engine.predict(pixels)) <= 1e-8


@pytest.mark.parametrize("name", RULES)
def test_every_optimizer(name: str) -> None:
    """State and all, where the update is fused to the gradient of dense layers, and where it is not."""
    model, other = mixed("float64"), mixed("float64")
    pixels, labels = data_of(model.input_shape, 10)
    optimizer, reference = RULES[name](), Reference(other, RULES[name]())
    with planned(model, optimizer, 8, threads=2) as plan:
        for step, order in enumerate(orders(len(pixels), 8, 4, 5)):
            plan.step(pixels, labels, order, optimizer.lr, step)
            reference.step(pixels, labels, order, optimizer.lr, step)
        assert_same(model.state(), other.state(), 1e-8, "parameters")
        if optimizer.slots:
            assert_same(optimizer.state(), reference.optimizer.state(), 1e-8, "optimizer")


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"clip_norm": 0.05}, {"clip_norm": 1e6}], ids=str)
def test_options(options: dict[str, float]) -> None:
    model, other = mixed("float64"), mixed("float64")
    pixels, labels = data_of(model.input_shape, 10)
    optimizer, reference = Adam(0.01), Reference(other, Adam(0.01), **options)
    with planned(model, optimizer, 8, threads=2, **options) as plan:
        for step, order in enumerate(orders(len(pixels), 8, 4, 5)):
            loss, _ = plan.step(pixels, labels, order, 0.01, step)
            expected, _ = reference.step(pixels, labels, order, 0.01, step)
            assert abs(loss - expected) <= 1e-8
        assert_same(model.state(), other.state(), 1e-7, "parameters")
    assert optimizer.step == 4


def test_an_optimizer_that_someone_else_wrote() -> None:
    """The plan makes the gradients, and its own rule the step."""

    class Signs(SGD):
        def _rule(self, w: Any, g: Any, state: list[Any], scratch: Any, lr: float) -> None:
            w -= lr * np.sign(g)

    model, other = mixed("float64"), mixed("float64")
    pixels, labels = data_of(model.input_shape, 10)
    reference = Reference(other, Signs(0.01))
    with planned(model, Signs(0.01), 8) as plan:
        for step, order in enumerate(orders(len(pixels), 8, 3)):
            plan.step(pixels, labels, order, 0.01, step)
            reference.step(pixels, labels, order, 0.01, step)
    assert_same(model.state(), other.state(), STRICT, "parameters")


def test_thread_counts_agree_and_each_repeats_itself() -> None:
    """To rounding between counts; bit by bit for the same count."""
    states: dict[int, tuple[list[float], dict[str, NDArray[Any]]]] = {}
    for threads in (1, 2, 3, 3, 2, 1, 11):
        model = mixed()
        losses = run(model, SGD(0.05, momentum=0.9), threads=threads)
        if threads in states:
            assert losses == states[threads][0]
            assert_equal(model.state(), states[threads][1])
        states[threads] = losses, copied(model.state())
    for losses, state in states.values():
        assert np.allclose(losses, states[1][0], rtol=1e-4)
        assert_same(state, states[1][1], 1e-3, "parameters")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_nothing_is_left_from_the_last_step(threads: int, clip_norm: float | None) -> None:
    """All memory but tables and arrays that start as zeros is poisoned between steps: the results are the same."""
    results = []
    for poison in (False, True):
        model, optimizer = mixed(), SGD(0.05, momentum=0.9)
        pixels, labels = data_of(model.input_shape, 10)
        losses = []
        with planned(model, optimizer, 8, threads=threads, clip_norm=clip_norm) as plan:
            plan.prepare()
            plan.predict(pixels[:3])
            for step, order in enumerate(orders(len(pixels), 8, 5, 3)):
                for bound in (plan._training, plan._inference):
                    assert bound is not None
                    if poison:
                        poisoned = np.ones(len(bound.memory), np.bool_)
                        for buffer in bound.step.buffers:
                            if buffer.zeros and buffer.offset >= 0:
                                size = buffer.bytes(bound.capacity, threads)
                                poisoned[buffer.offset : buffer.offset + size] = False
                        assert poisoned.mean() > 0.2
                        bound.memory[poisoned] = 0xFF
                losses.append(plan.step(pixels, labels, order, 0.05, step)[0])
                losses.append(float(plan.predict(pixels[: 5 + step]).sum()))
        results.append((losses, copied(model.state())))
    assert results[0][0] == results[1][0]
    assert_equal(results[0][1], results[1][1])


@pytest.mark.parametrize("make", [lambda: SGD(0.05, momentum=0.9), lambda: Adam(0.002)], ids=["sgd", "adam"])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_going_on_from_a_checkpoint(make: Callable[[], Optimizer], clip_norm: float | None) -> None:
    """A new plan on loaded state equals one that was never interrupted, bit by bit."""
    unbroken, optimizer = mixed(), make()
    expected = run(unbroken, optimizer, 6, threads=2, clip_norm=clip_norm)

    first, its_optimizer = mixed(), make()
    losses = run(first, its_optimizer, 3, threads=2, clip_norm=clip_norm)
    model, resumed = mixed(), make()
    model.load_state(copied(first.state()))
    resumed.load_state(copied(its_optimizer.state()), its_optimizer.step)
    losses += run(model, resumed, 3, 3, threads=2, clip_norm=clip_norm)
    assert losses == expected
    assert_equal(model.state(), unbroken.state())
    assert_equal(resumed.state(), optimizer.state())


def test_state_that_is_loaded_between_steps_counts() -> None:
    """Back to an earlier state, in the same plan: the same steps give the same losses."""
    model, optimizer = mixed(), Adam(0.002)
    pixels, labels = data_of(model.input_shape, 10)
    chosen = orders(len(pixels), 8, 6)
    with planned(model, optimizer, 8, threads=2) as plan:

        def steps(begin: int) -> list[float]:
            return [plan.step(pixels, labels, chosen[i], 0.002, i)[0] for i in range(begin, begin + 3)]

        steps(0)
        kept, state, step = copied(model.state()), copied(optimizer.state()), optimizer.step
        logits = plan.predict(pixels)
        once = steps(3)
        assert not np.array_equal(plan.predict(pixels), logits)
        model.load_state(kept)
        optimizer.load_state(state, step)
        assert np.array_equal(plan.predict(pixels), logits)
        assert steps(3) == once


def test_what_is_written_into_parameters_counts() -> None:
    """They are the plan's memory; an array put in their place is taken over."""
    model = mixed()
    pixels, labels = data_of(model.input_shape, 10)
    with planned(model, SGD(0.05), 8) as plan:
        plan.step(pixels, labels, np.arange(8), 0.05)
        last = model.parameters()["dense2.bias"]
        last += 3.0
        moved = plan.predict(pixels)
        (leaf,) = (leaf for leaf in model.leaves() if leaf.name == "dense2")
        leaf.params["bias"] = last - 3.0
        assert np.allclose(plan.predict(pixels), moved - 3.0, atol=1e-4)
        plan.step(pixels, labels, np.arange(8), 0.0)
        assert np.allclose(model.parameters()["dense2.bias"], last, atol=1e-6)


def test_the_optimizers_state_is_not_copied_in_every_step() -> None:
    model, optimizer = mixed(), SGD(0.05, momentum=0.9)
    pixels, labels = data_of(model.input_shape, 10)
    with planned(model, optimizer, 8) as plan:
        plan.step(pixels, labels, np.arange(8), 0.05)
        before = optimizer.state()
        plan.step(pixels, labels, np.arange(8), 0.05)
        assert all(array is before[name] for name, array in optimizer.state().items())


def test_a_step_allocates_nothing_large() -> None:
    """Python's part of a step is small; so is what the reference's update needs, after the first time."""
    model = models.basic((16, 16, 1))
    pixels, labels = data_of(model.input_shape, 10, images=64)
    order = np.arange(64)
    with planned(model, SGD(0.05, momentum=0.9), 64) as plan:
        plan.step(pixels, labels, order, 0.05)
        tracemalloc.start()
        try:
            plan.step(pixels, labels, order, 0.05)
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(3):
                plan.step(pixels, labels, order, 0.05)
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak - before < 100_000
        assert after - before < 20_000
        assert sum(plan.kept_bytes().values()) > 1_000_000


def test_a_prediction_in_parts() -> None:
    """More images than go through at once; none; and the batch's neighbours do not matter."""
    model = mixed()
    pixels, _ = data_of(model.input_shape, 10, images=300)
    with planned(model, SGD(0.05), 8, threads=2) as plan:
        logits = plan.predict(pixels)
        assert logits.shape == (300, 10)
        assert logits.dtype == np.float32
        assert np.array_equal(plan.predict(pixels[250:270]), logits[250:270])
        assert plan.predict(pixels[:0]).shape == (0, 10)
        assert off(logits, model.forward(model.prepare(pixels))) < 1e-5


def test_a_diverged_model_shows() -> None:
    """Neither a relu nor a pool hides that all weights are NaN."""
    model = models.basic((12, 12, 1))
    pixels, labels = data_of(model.input_shape, 10)
    with planned(model, SGD(0.05), 8) as plan:
        model.parameters()["conv1.weight"][...] = np.nan
        loss, _ = plan.step(pixels, labels, np.arange(8), 0.05)
        assert np.isnan(loss)


def test_data_may_move() -> None:
    """The images and labels of a step are where they are at that step."""
    model, other = mixed(), mixed()
    pixels, labels = data_of(model.input_shape, 10)
    with planned(model, SGD(0.05), 8) as plan, planned(other, SGD(0.05), 8) as same:
        for step, order in enumerate(orders(len(pixels), 8, 3)):
            apart = pixels[order].copy(), labels[order].copy(), np.arange(8)
            assert plan.step(*apart, 0.05, step) == same.step(pixels, labels, order, 0.05, step)


def test_what_does_not_fit() -> None:
    model = mixed()
    pixels, labels = data_of(model.input_shape, 10)
    with planned(model, SGD(0.05), 8) as plan:
        with pytest.raises(UsageError, match="a batch of 9 images: the plan was made for at most 8"):
            plan.step(pixels, labels, np.arange(9), 0.05)
        with pytest.raises(ShapeError, match="expected at least one, each from 0 to 39"):
            plan.step(pixels, labels, np.array([40]), 0.05)
        with pytest.raises(ShapeError, match="expected at least one, each from 0 to 39"):
            plan.step(pixels, labels, np.array([3, -1]), 0.05)
        with pytest.raises(ShapeError, match="expected at least one"):
            plan.step(pixels, labels, np.array([], np.int64), 0.05)
        with pytest.raises(ShapeError, match="expected an int64 for each of 40 images"):
            plan.step(pixels, labels.astype(np.int32), np.arange(8), 0.05)
        wrongs: list[Any] = [pixels[:, 1:], pixels.astype(np.float32)]
        for wrong in wrongs:
            with pytest.raises(ShapeError, match=r"uint8 images of \(12, 12, 2\)"):
                plan.step(wrong, labels, np.arange(8), 0.05)
            with pytest.raises(ShapeError, match=r"uint8 images of \(12, 12, 2\)"):
                plan.predict(wrong)
        with pytest.raises(UsageError, match="it keeps none"):
            plan.gradients()
    with pytest.raises(BareconvError, match="closed"):
        plan.step(pixels, labels, np.arange(8), 0.05)
    with pytest.raises(UsageError, match="threads 0"):
        CpuPlan(mixed(), SGD(0.05), 8, threads=0)
