"""The ceilings of a GPU, by the instructions that the kernels use, and steps of the plan there, launch by launch.

Each launch is timed by itself, again and again on the same data. So what it touches lies in the second-level cache
where it fits; then the cache's bandwidth is its ceiling (``FITS``).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bareconv import optim, random
from bareconv.bench.deadline import Deadline
from bareconv.bench.roofline.gemm import GEMM
from bareconv.bench.roofline.records import (
    BATCH,
    BOTH,
    BOTH_UPDATE,
    DW,
    DW_UPDATE,
    DX,
    FITS,
    FORWARD,
    LAUNCH,
    MEMORY,
    OTHER,
    UPDATE,
    Ceiling,
    Part,
    Roof,
)
from bareconv.bench.workload import MOMENTUM, Workload
from bareconv.device import Array, Device
from bareconv.errors import UsageError
from bareconv.kernels.cuda import peak
from bareconv.kernels.cuda.kernel import KEPT_BYTES, Kernel
from bareconv.kernels.cuda.limits import Limits
from bareconv.plan.cuda.plan import WINDOW, CudaPlan
from bareconv.plan.cuda.record import BRANCH, Recorded
from bareconv.plan.cuda.runtime import TIMED_ROWS, Runtime
from bareconv.report.format import counted

CACHE = "cache"
REPEATS = 50  # of a launch in a row
ROWS = 5  # of whole steps
LEAST_ROW = 0.05  # seconds of steps in a row
FEW = 8  # steps, to see how long one takes


@dataclass(frozen=True)
class Effort:
    """How much a ceiling is measured with; bytes of a copy that no cache holds, seconds for clocks to rise."""

    iterations: int = 4096
    memory_bytes: int = 512 << 20
    passes: int = 16
    launches: int = 512
    warm_up: float = 0.3


def measure_ceilings(runtime: Runtime, effort: Effort | None = None) -> dict[str, Ceiling]:
    """What the device does at best, by name: those of ``peak.UNITS`` that it has, memory, cache, launches."""
    effort = effort or Effort()
    found = [
        *(_unit(runtime, unit, effort) for unit in peak.units(runtime.limits)),
        *([_group_unit(runtime, effort)] if peak.has_group_unit(runtime.limits) else []),
        _bandwidth(runtime, MEMORY, min(effort.memory_bytes, runtime.free_bytes() // 4), 1),
        _bandwidth(runtime, CACHE, runtime.limits.cache_bytes // 8, effort.passes),
    ]
    (launch,) = _bound(runtime, [(peak.nothing(), {})])
    node = runtime.time(launch, effort.launches)
    found.append(Ceiling(LAUNCH, 1.0 / node, "launch", "an empty kernel as a node of a graph"))
    return {ceiling.name: ceiling for ceiling in found}


def _unit(runtime: Runtime, unit: Any, effort: Effort) -> Ceiling:
    xp, kernel = runtime.xp, peak.multiply(unit, runtime.limits, effort.iterations)
    rows, columns, terms = peak.multiply_shape(unit)
    # Numbers that switch the wires as a network's do: zeros would take less power, and leave higher clocks.
    drawn = random.words(0, (random.SYNTHETIC, 1, 0), terms * (rows + columns)).astype("int64") % 255 - 127
    values = xp.asarray(drawn / 128.0, dtype=xp.float32)  # of 7 bits: exact in every precision
    if KEPT_BYTES[unit] == 2:
        values = (values.view(xp.uint32) >> 16).astype(xp.uint16)
    places = {
        "left": values[: rows * terms],
        "right": values[rows * terms :].copy(),
        "sums": xp.zeros(kernel.grid[0] * rows * (columns + 8), xp.float32),
    }
    how = f"{counted(kernel.grid[0], 'block')} of {kernel.threads} threads, operands in registers"
    return Ceiling(peak.UNITS[unit], kernel.flops / _warm(runtime, kernel, places, effort), "FLOP", how)


def _group_unit(runtime: Runtime, effort: Effort) -> Ceiling:
    xp, kernel = runtime.xp, peak.multiply_groups(runtime.limits, effort.iterations)
    drawn = random.words(0, (random.SYNTHETIC, 1, 1), 2 * (2048 + 4096)).astype("int64") % 255 - 127
    values = (xp.asarray(drawn / 128.0, dtype=xp.float32).view(xp.uint32) >> 16).astype(xp.uint16)
    places = {
        "left": values[: 2 * 2048].copy(),
        "right": values[2 * 2048 :].copy(),
        "sums": xp.zeros(kernel.grid[0] * kernel.threads, xp.float32),
    }
    blocks = counted(kernel.grid[0], "block")
    how = f"{blocks} of {kernel.threads} threads, one operand in registers, one in shared memory"
    return Ceiling(peak.GROUP_UNIT, kernel.flops / _warm(runtime, kernel, places, effort), "FLOP", how)


def _warm(runtime: Runtime, kernel: Kernel, places: Mapping[str, Array], effort: Effort) -> float:
    """Seconds of a launch once the clocks have risen."""
    (launch,) = _bound(runtime, [(kernel, places)])
    end = time.perf_counter() + effort.warm_up
    taken = runtime.time(launch, 2)
    while time.perf_counter() < end:
        taken = runtime.time(launch, 2)
    return taken


def _bandwidth(runtime: Runtime, name: str, size: int, passes: int) -> Ceiling:
    """The better of copying and of reading ``size`` bytes."""
    xp, size = runtime.xp, max(1, size // peak.PIECE_BYTES) * peak.PIECE_BYTES
    places = {"source": xp.zeros(size, xp.uint8), "target": xp.zeros(size, xp.uint8)}
    kernels = [peak.copy(size, passes), peak.copy(size, passes, write=False)]
    launches = _bound(runtime, [(kernel, places) for kernel in kernels])
    copied, read = (kernel.bytes / runtime.time(launch, 8) for kernel, launch in zip(kernels, launches, strict=True))
    what = f"{size / 2**20:,.1f} MiB" + (f", {passes} times in a launch" if passes > 1 else "")
    how = f"a copy of {what}, read and written" if copied >= read else f"reading {what}"
    return Ceiling(name, max(copied, read), "byte", how)


def _bound(runtime: Runtime, kernels: Sequence[tuple[Kernel, Mapping[str, Array]]]) -> list[Any]:
    runtime.load([kernel for kernel, _ in kernels], None)
    return [
        runtime.bind(kernel, [runtime.address(places[name]) for name in kernel.operands], True)
        for kernel, places in kernels
    ]


def least_seconds(kernel: Kernel, ceilings: Mapping[str, Ceiling], runtime: Runtime) -> tuple[str, float]:
    """The ceiling that bounds one launch, and how long it takes at least by that."""
    where = CACHE if kernel.bytes <= FITS * runtime.limits.cache_bytes else MEMORY
    unit = peak.unit_name(kernel, runtime.limits)
    times = {where: kernel.bytes / ceilings[where].per_second, unit: kernel.flops / ceilings[unit].per_second}
    name = max(times, key=times.__getitem__)
    return name, times[name]


def roof(ceilings: Mapping[str, Ceiling], limits: Limits) -> Roof:
    """What bounds the reference's steps, whose products are the library's."""
    units: dict[str, str] = dict(peak.UNITS.items())
    units["float64"] = GEMM["float64"]
    return Roof(ceilings, units, [(CACHE, float(limits.cache_bytes))])


_BACKWARD = {  # of a kernel's name, what of a step it computes on the way back
    "weight_gradient": DW,
    "dense_gradient_of_weight": DW,
    "dense_pixels_gradient": DW,
    "stem_backward_b": DW,
    "sum_gradients": DW,
    "finish_gradients": DW,
    "stem_backward_a": BOTH,
    "dense_update": DW_UPDATE,
}


def operation_of(item: Recorded) -> str:
    """What of a step a launch computes."""
    name = item.kernel.name
    if item.phase == "forward":
        return BATCH if name == "prepare" else FORWARD
    if item.phase == "update":
        return UPDATE
    if name == "dense_backward":
        return BOTH_UPDATE if item.operands.get("dx") is not None else DW_UPDATE
    return _BACKWARD.get(name, DX) if item.phase == "backward" else OTHER


def measure_step(
    workload: Workload,
    device: Device,
    ceilings: Mapping[str, Ceiling],
    runtime: Runtime | None = None,
    *,
    repeats: int = REPEATS,
    steps: int | None = None,
    deadline: Deadline | None = None,
) -> dict[str, Any]:
    """A ``rooflines.steps`` entry of a result: the plan's step on a workload, launch by launch.

    ``steps``: of one row of whole steps, by default those of an epoch; ``repeats`` of each launch. With a ``deadline``
    there are as few of both as are done by then. UsageError where a step is no graph.
    """
    with device.activate():
        device.reset_peak_memory()
        held = device.memory()
        model, dataset = workload.network().to(device), workload.dataset()
        size, optimizer = workload.batch_size, optim.SGD(workload.lr, MOMENTUM)
        plan = CudaPlan(model, optimizer, size, precision=workload.precision, runtime=runtime)
        if plan.why_not_captured is not None:
            raise UsageError(f"{workload.title}: a step is no graph: {plan.why_not_captured}")
        xp = plan.runtime.xp
        pixels, labels = xp.asarray(dataset.train.images), xp.asarray(dataset.train.labels)
        parameters = sum(int(array.nbytes) for array in model.parameters().values())
        named = {
            "parameters": sum(int(array.nbytes) for array in model.state().values()),
            "data": int(pixels.nbytes + labels.nbytes),
        }
        predicted = {**named, **plan.kept_bytes(), "optimizer": len(optimizer.slots) * parameters}
        count = min(steps or WINDOW, WINDOW, len(pixels) // size)
        drawn = random.permutation(workload.seed, (random.SHUFFLE, 0, 0), len(pixels))[: count * size]
        order = xp.asarray(drawn.astype("int32"))

        def row(count: int) -> float:
            """Seconds of a step, of so many one after another."""
            begun = device.mark()
            plan.steps(pixels, labels, order[: count * size], [workload.lr] * count, 0)
            device.synchronize()  # so that the mark comes after all of it, on whichever streams that is
            return device.seconds_between([begun, device.mark()])[0] / count

        if deadline is not None:
            few = min(FEW, count)
            row(few)  # binds memory, captures graphs
            count, repeats = _within(deadline, row(few), count, repeats)
        taken = [row(count) for _ in range(1 + ROWS)]
        growth = max(0, device.peak_memory() - held)
        state = sum(int(array.nbytes) for array in optimizer.state().values())
        kept = {**named, **plan.kept_bytes(), "optimizer": state}
        profile = plan.profile(pixels, labels, order, repeats)
        launches = [
            _launch(item, row.how, one, ceilings, plan.runtime)
            for item, (row, one) in zip(plan.launches(), profile, strict=True)
        ]
    found = {**kept, "overhead": max(0, growth - sum(kept.values()))}
    return {
        "model": workload.model,
        "batch_size": size,
        "precision": workload.precision,
        "step_seconds": statistics.median(taken[1:]),
        "memory": {"predicted": predicted, "measured": found},
        "launches": launches,
    }


def _within(deadline: Deadline, step: float, steps: int, repeats: int) -> tuple[int, int]:
    """(steps of a row, repeats of a launch): as many as are done by then, if a step takes so long."""
    half = deadline.left / 2
    most = int(half / ((1 + ROWS) * step)), int(half / ((1 + TIMED_ROWS) * step))
    # What a row takes beside its steps must not count, though the time be up.
    least = min(steps, math.ceil(LEAST_ROW / step))
    return max(least, min(steps, most[0])), max(2, min(repeats, most[1]))


def _launch(
    item: Recorded, how: str, taken: float, ceilings: Mapping[str, Ceiling], runtime: Runtime
) -> dict[str, Any]:
    kernel, beside = item.kernel, item.branch == BRANCH
    work = kernel.flops, kernel.bytes, beside
    part = Part(item.node, item.phase, operation_of(item), kernel.name, how, taken, *work)
    return part.to_json(least_seconds(kernel, ceilings, runtime))
