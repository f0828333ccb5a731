"""What a plan is made of: the fused graph, memory laid out by time, and the table that explains it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from drawn_models import Drawn, models
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plan_harness import data_of, planned

from bareconv.kernels.cpu.norm import NormApply, NormBackwardSums
from bareconv.kernels.cpu.target import host_target
from bareconv.nn.blocks import Residual, Sequential
from bareconv.nn.layer import Layer
from bareconv.nn.layers import GELU, BatchNorm, Conv2d, Dense, Dropout, Flatten, MaxPool2d, ReLU
from bareconv.nn.model import Model
from bareconv.optim import SGD
from bareconv.plan.cpu.covers import is_sparse
from bareconv.plan.cpu.lowering import lower
from bareconv.plan.cpu.memory import LINE, PAGE, SLACK, Buffer, allocate, lay_out
from bareconv.plan.cpu.record import RecordedStage
from bareconv.plan.cpu.step import Step
from bareconv.plan.graph import graph_of


def names(layers: Sequence[Layer], **options: tuple[type[Layer], ...]) -> list[str]:
    return [node.name for node in graph_of(Model(layers, (12, 12, 2)), **options).nodes]


def test_what_is_fused() -> None:
    layers = [
        *(Conv2d(8, 3), ReLU(), MaxPool2d(2)),
        *(Conv2d(8, 3, bias=False), BatchNorm(), ReLU(), Dropout()),
        *(Flatten(), Dense(10), ReLU(), Dense(10)),
    ]
    assert names(layers) == [
        *("conv1 + relu1 + pool1", "conv2", "norm1 + relu2", "dropout1", "flatten1", "dense1 + relu3", "dense2")
    ]
    assert "dropout1" not in names(layers, drop=(Dropout,))


def test_what_is_not_fused() -> None:
    """Windows that overlap, are padded or too large; a second relu; a sum whose input another reads."""
    assert names([Conv2d(8, 3), MaxPool2d(3, 2)]) == ["conv1", "pool1"]
    assert names([Conv2d(8, 3), MaxPool2d(2, padding=1)]) == ["conv1", "pool1"]
    assert names([Conv2d(8, 3), MaxPool2d(4)]) == ["conv1", "pool1"]
    assert names([Conv2d(8, 3), ReLU(), ReLU()]) == ["conv1 + relu1", "relu2"]
    block: list[Layer] = [Conv2d(8, 3), Residual(Sequential([ReLU(), Conv2d(8, 3, padding=1)])), ReLU()]
    assert names(block) == ["conv1", "residual1.body.relu1", "residual1.body.conv1", "residual1.add + relu1"]


@settings(max_examples=100)
@given(data=st.data(), images=st.integers(1, 9), workers=st.integers(1, 4))
def test_arrays_in_use_at_one_time_lie_apart(data: st.DataObject, images: int, workers: int) -> None:
    buffers = []
    for number in range(data.draw(st.integers(1, 12))):
        per = data.draw(st.sampled_from(["image", "worker", "plan"]))
        first = data.draw(st.integers(0, 6))
        made = Buffer(str(number), data.draw(st.integers(1, 3000)), per=per)
        made.span = first, data.draw(st.integers(first, 6))
        made.zeros, made.kept = data.draw(st.integers(0, 5)) == 0, data.draw(st.integers(0, 5)) == 0
        made.local = per == "image" and not made.kept and data.draw(st.booleans())
        made.chunk = data.draw(st.integers(1, 3)) if made.local else 1
        buffers.append(made)
    size = lay_out(buffers, images, workers)
    for i, a in enumerate(buffers):
        assert a.offset % LINE == 0
        assert a.offset + a.bytes(images, workers) <= size
        for b in buffers[:i]:
            at_once = a.span[0] <= b.span[1] and b.span[0] <= a.span[1]  # type: ignore[index]
            if at_once or a.zeros or b.zeros or a.kept or b.kept:
                apart = (
                    a.offset + a.bytes(images, workers) <= b.offset or b.offset + b.bytes(images, workers) <= a.offset
                )
                assert apart


def test_what_lives_at_other_times_shares_its_place() -> None:
    early, late = Buffer("early", 1000), Buffer("late", 1000)
    early.span, late.span = (0, 1), (2, 3)
    assert lay_out([early, late], 4, 1) < 2 * early.bytes(4, 1)


def test_distances_between_images() -> None:
    """Rows a page apart fall on the same lines of the cache; but the rows of a matrix follow each other."""
    assert Buffer("x", PAGE // 4).pitch == PAGE + LINE
    assert Buffer("x", PAGE // 4, rows=True).pitch == PAGE
    assert Buffer("x", 5).pitch == 20
    assert Buffer("x", 5, per="worker").pitch % LINE == 0
    assert Buffer("x", 5).bytes(3, 1) == 60 + SLACK
    block = allocate(1000)
    assert block.nbytes == 1000
    assert block.ctypes.data % PAGE == 0
    assert not block.any()


LAYERS: list[Layer] = [
    *(Conv2d(8, 3, padding=1), ReLU(), Conv2d(16, 3), ReLU(), MaxPool2d(2)),
    *(Conv2d(8, 3, groups=2), GELU(), Flatten(), Dropout(), Dense(10)),
]


WRITTEN = {
    *("y", "dx", "out", "dlogits", "losses", "hits", "where", "packed", "gradient", "sums", "dgamma", "dbeta"),
    *("coefficients", "terms", "mean", "var", "partial", "state1", "state2", "places", "values", "scratch"),
}


def accesses(stage: RecordedStage) -> Iterator[tuple[Buffer, bool]]:
    """What a stage touches, and whether it writes there."""
    for call in stage.calls:
        update = call.phase == "update"
        for name, place in call.operands.items():
            reads = name in ("coefficients", "terms") and isinstance(call.kernel, NormApply | NormBackwardSums)
            yield place.buffer, (name in WRITTEN and not reads) or (update and name == "weight")


@settings(max_examples=40)
@given(drawn=models())
@example(drawn=Drawn((8, 9, 1), [BatchNorm(), ReLU(), Flatten(), Dense(5)]))
def test_no_worker_reads_what_another_may_still_write(drawn: Drawn) -> None:
    """Between two waits, what is touched by stages that deal out their work differently is only read."""
    model = Model(drawn.make(), drawn.shape)
    with planned(model, SGD(0.1, momentum=0.9), 8, threads=1) as plan:
        step = Step(plan._graph, model, plan.target, plan.parameters, plan.rule, 8)
        lowered = lower(step)
    stretch: list[RecordedStage] = []
    for stage in lowered.stages:
        if stage.wait or stage.host is not None:
            stretch = []
        for earlier in stretch:
            if (earlier.extent, earlier.grain) == (stage.extent, stage.grain):
                continue
            both_update = all(call.phase == "update" for one in (earlier, stage) for call in one.calls)
            for buffer, writes in accesses(stage):
                clash = any(buffer is other and (writes or wrote) for other, wrote in accesses(earlier))
                # Updates share arrays, of which each has its own part.
                fine = not clash or (both_update and buffer.per == "outside")
                assert fine, f"{buffer.name}: {stage.calls[0].node} after {earlier.calls[0].node} without a wait"
        stretch.append(stage)


def test_explain() -> None:
    """Every call with its kernel; what no kernel covers is named; times grow with steps."""
    model = Model(LAYERS, (12, 12, 2))
    pixels, labels = data_of(model.input_shape, 10)
    with planned(model, SGD(0.1, momentum=0.9), 8, threads=2) as plan:
        before = plan.explain()
        assert {row.node for row in before.fallbacks} == {"conv3", "gelu1", "dropout1"}
        assert {row.phase for row in before.rows} == {"prepare", "forward", "backward", "update"}
        assert all(row.seconds == 0 for row in before.rows if row.kernel != "Python")
        for _ in range(3):
            plan.step(pixels, labels, np.arange(8), 0.1)
        after = plan.explain()
        timed = [row for row in after.rows if row.kernel != "Python"]
        assert sum(row.seconds or 0.0 for row in timed) > 0.0
        assert all((row.seconds or 0.0) >= 0.0 for row in timed)
        plan.clear_times()
        assert all(row.seconds == 0 for row in plan.explain().rows if row.kernel != "Python")

    text = str(after)
    assert text.startswith(f"custom: {host_target().name}, float32, 2 threads, batches of up to 8")
    for part in ("conv1 + relu1", "conv2 + relu2 + pool1", "SoftmaxCrossEntropy", "no kernel, the layer itself", "MiB"):
        assert part in text
    lines = {len(line) for line in text.splitlines() if line.startswith("--")}
    assert lines == {max(len(line) for line in text.splitlines()[1:-1])}
    (forward,) = (row for row in after.rows if row.node == "conv1 + relu1" and row.phase == "forward")
    assert forward.flops == 2 * 12 * 12 * 8 * 3 * 3 * 2


def test_a_sparse_backward_has_room_behind_each_image() -> None:
    """It adds zeros past an image's end; there another thread's image must not begin."""
    model = Model(LAYERS, (12, 12, 2))
    with planned(model, SGD(0.1), 8) as plan:
        plan.prepare()
        assert plan._training is not None
        step = plan._training.step
        (node,) = (node for node in step.graph.nodes if is_sparse(node, step.target))
        buffer, plane = step.gradient(node.inputs[0])
        assert buffer.elements >= plane.size + step.target.lanes


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_plan_takes_the_models_arrays_in(precision: str) -> None:
    """Parameters keep their values, and lie in one array, each from a multiple of 64 bytes on."""
    model = Model(LAYERS, (12, 12, 2)).to("cpu", precision)
    before = {name: array.copy() for name, array in model.parameters().items()}
    with planned(model, SGD(0.1, momentum=0.9), 8) as plan:
        for name, array in model.parameters().items():
            assert np.array_equal(array, before[name])
            assert array.dtype == precision
            assert array.ctypes.data % 64 == 0
            assert np.shares_memory(array, plan.parameters.weight)
