"""What a CUDA plan decides before anything runs: memory, shapes for every GPU, what it says of itself."""

from __future__ import annotations

import re

import numpy as np
import pytest
from cuda_stand_in import StandIn
from hypothesis import given
from hypothesis import strategies as st

from bareconv.errors import ShapeError, UsageError
from bareconv.kernels.cuda.compiler import sources
from bareconv.kernels.cuda.kernel import PRECISIONS, Kernel
from bareconv.kernels.cuda.limits import GENERATIONS, H100
from bareconv.nn import models
from bareconv.optim import SGD, Adam
from bareconv.plan.cuda.plan import CudaPlan
from bareconv.plan.cuda.record import BRANCH, TRUNK, Buffer, Recorded, Recorder, lay_out


def plan_of(model: str = "lenet5", batch: int = 32, **options) -> CudaPlan:
    shape = (32, 32, 3) if model.startswith("resnet") else (28, 28, 1)
    runtime = options.pop("runtime", None) or StandIn()
    optimizer = options.pop("optimizer", None) or SGD(0.1, momentum=0.9)
    return CudaPlan(models.by_name(model, shape), optimizer, batch, runtime=runtime, **options)


@pytest.mark.parametrize("limits", GENERATIONS, ids=lambda limits: limits.architecture)
@pytest.mark.parametrize("model", ["mlp", "lenet5", "small", "basic", "resnet9"])
def test_every_launch_fits_every_gpu(model, limits):
    for precision in PRECISIONS:
        lowered = plan_of(model, 64, runtime=StandIn(limits), precision=precision)._lowered(64, True)
        kernels = [item.kernel for item in lowered.record.items if isinstance(item, Recorded)]
        assert len(kernels) == len(lowered.record.items), "something falls back to Python"
        for kernel in kernels:
            assert kernel.shared_bytes <= limits.shared_bytes, kernel
            assert 32 <= kernel.threads <= 1024, kernel
            assert kernel.threads % 32 == 0, kernel
            assert max(kernel.grid[1:]) < 1 << 16, kernel


def test_a_batch_that_does_not_fit_is_refused_with_the_largest_that_does():
    free = 40 << 20
    with pytest.raises(
        UsageError, match=r"batch size 4096: .* MiB are free on the GPU; the largest batch that fits is "
    ) as told:
        plan_of("basic", 4096, runtime=StandIn(free=free)).prepare()
    match = re.search(r"fits is (\d+)", str(told.value))
    assert match
    largest = int(match[1])
    plan_of("basic", largest, runtime=StandIn(free=free)).prepare()
    with pytest.raises(UsageError):  # a tenth more: tiles differ from batch to batch, and memory with them
        plan_of("basic", largest + largest // 10 + 1, runtime=StandIn(free=free)).prepare()


def test_where_nothing_fits_that_is_said():
    with pytest.raises(UsageError, match="not even a batch of one image fits"):
        plan_of("basic", 4, runtime=StandIn(free=1000)).prepare()


def test_every_kernel_waits_for_those_before_it():
    entries = 0
    for name, text in sources().items():
        for match in re.finditer(r"^KERNEL\(", text, re.MULTILINE):
            entries += 1
            assert "wait_for_kernels_before" in text, f"{name} at {match.start()}: a launch may overlap the one before"
    assert entries > 20


def test_a_step_that_is_no_graph_says_why():
    assert (
        plan_of(clip_norm=1.0).why_not_captured
        == "clipping the gradient's norm: applied by the reference after every step"
    )
    assert plan_of(optimizer=Adam(0.01)).why_not_captured is None
    told = plan_of().explain()
    assert "one CUDA graph" in told.title
    assert {row.phase for row in told.rows} == {"forward", "backward", "update"}
    assert not told.fallbacks


def test_what_kernels_are_given_is_checked():
    plan = plan_of()
    images, labels = np.zeros((40, 28, 28, 1), np.uint8), np.zeros(40, np.int32)
    with pytest.raises(ShapeError, match="uint8 images"):
        plan.steps(images.astype(np.float32), labels, np.arange(32), [0.1])
    with pytest.raises(ShapeError, match="expected one for each of 40 images"):
        plan.steps(images, labels[:39], np.arange(32), [0.1])
    with pytest.raises(UsageError, match="made for at most 32"):
        plan.steps(images, labels, None, [0.1])
    with pytest.raises(UsageError, match="1 rates for 40 images in batches of 32"):
        plan.steps(images, labels, np.arange(40), [0.1])
    with pytest.raises(UsageError, match="precision 'float64'"):
        plan_of(precision="float64")


def _kernel() -> Kernel:
    return Kernel("x.cu", "x", (), (1, 1, 1), 32, 0, ("a", "b"))


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11), st.booleans()), min_size=1, max_size=20),
)
def test_buffers_that_meet_share_no_bytes(sizes, uses):
    buffers = [Buffer(f"{number}", size, "uint8") for number, size in enumerate(sizes)]
    record = Recorder()
    for a, b, aside in uses:
        record.branch = BRANCH if aside else TRUNK
        record.launch(_kernel(), {"a": buffers[a % len(sizes)], "b": buffers[b % len(sizes)]})
    total = lay_out(record)
    spans: dict[Buffer, tuple[int, int]] = {}
    for number, item in enumerate(record.items):
        assert isinstance(item, Recorded)
        end = len(record.items) if item.branch == BRANCH else number
        for place in item.operands.values():
            assert place is not None
            first, last = spans.get(place.buffer, (number, end))
            spans[place.buffer] = min(first, number), max(last, end)
    for buffer, (first, last) in spans.items():
        assert buffer.offset % 256 == 0
        assert buffer.offset + buffer.bytes <= total
        for other, (begin, end) in spans.items():
            apart = buffer.offset + buffer.bytes <= other.offset or other.offset + other.bytes <= buffer.offset
            assert other is buffer or apart or last < begin or end < first


def test_limits_know_their_generation():
    assert H100.capability == 90
    assert [limits.capability for limits in GENERATIONS] == [75, 80, 86, 89, 90, 100, 120]
