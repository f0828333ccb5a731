"""How near each kernel of a step on a GPU comes to what that GPU can do: a roofline.

A launch takes at least as long as its operations take the unit that it computes with, and as its bytes take the memory
that they lie in. Both ceilings are measured on the device at hand, by the instructions that the kernels use
(``kernels/cuda/peak.py``); the share of the roofline is the longer of these two times over the time measured. Work is
what the formula needs, and what must at least be read and written: what a kernel does beyond that counts against it.

Each launch is timed by itself, again and again on the same data. So what it touches lies in the second-level cache
where it fits; then the cache's bandwidth is its ceiling (``FITS``).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bareconv import optim, random
from bareconv.bench.workload import MOMENTUM, Workload
from bareconv.device import Array, Device
from bareconv.errors import UsageError
from bareconv.kernels.cuda import peak
from bareconv.kernels.cuda.kernel import KEPT_BYTES, Kernel
from bareconv.plan.cuda.plan import WINDOW, CudaPlan
from bareconv.plan.cuda.record import BRANCH, Recorded
from bareconv.plan.cuda.runtime import Runtime
from bareconv.report.format import flops, percent, seconds, significant

CASES = ("basic:64,256,1024:bfloat16", "basic:256:tf32,float32", "resnet9:512:bfloat16")
MEMORY, CACHE, LAUNCH = "memory", "cache", "launch"
FITS = 0.5  # of the second-level cache: what a launch moves stays there from one to the next
REPEATS = 50  # of a launch in a row
ROWS = 5  # of whole steps


@dataclass(frozen=True)
class Effort:
    """How much a ceiling is measured with; bytes of a copy that no cache holds, seconds for clocks to rise."""

    iterations: int = 4096
    memory_bytes: int = 512 << 20
    passes: int = 16
    launches: int = 512
    warm_up: float = 0.3


@dataclass(frozen=True)
class Ceiling:
    """``per_second``: operations ("FLOP"), bytes or launches, whatever ``unit`` says; ``how`` it was measured."""

    name: str
    per_second: float
    unit: str
    how: str


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
    how = f"{kernel.grid[0]} blocks of {kernel.threads} threads, operands in registers"
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
    how = f"{kernel.grid[0]} blocks of {kernel.threads} threads, one operand in registers, one in shared memory"
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


def measure_step(
    workload: Workload,
    device: Device,
    ceilings: Mapping[str, Ceiling],
    runtime: Runtime | None = None,
    *,
    repeats: int = REPEATS,
    steps: int | None = None,
) -> dict[str, Any]:
    """A ``rooflines.steps`` entry of a result: the plan's step on a workload, launch by launch.

    ``steps``: of one row of whole steps, by default those of an epoch. UsageError where a step is no graph.
    """
    with device.activate():
        model, dataset = workload.network().to(device), workload.dataset()
        size, optimizer = workload.batch_size, optim.SGD(workload.lr, MOMENTUM)
        plan = CudaPlan(model, optimizer, size, precision=workload.precision, runtime=runtime)
        if plan.why_not_captured is not None:
            raise UsageError(f"{workload.title}: a step is no graph: {plan.why_not_captured}")
        xp = plan.runtime.xp
        pixels, labels = xp.asarray(dataset.train.images), xp.asarray(dataset.train.labels)
        count = min(steps or WINDOW, WINDOW, len(pixels) // size)
        drawn = random.permutation(workload.seed, (random.SHUFFLE, 0, 0), len(pixels))[: count * size]
        order = xp.asarray(drawn.astype("int32"))
        taken = []
        for row in range(1 + ROWS):
            begun = device.mark()
            plan.steps(pixels, labels, order, [workload.lr] * count, row * count)
            device.synchronize()  # so that the mark comes after all of it, on whichever streams that is
            taken += device.seconds_between([begun, device.mark()])
        profile = plan.profile(pixels, labels, order, repeats)
        launches = [
            _launch(item, row.how, one, ceilings, plan.runtime)
            for item, (row, one) in zip(plan.launches(), profile, strict=True)
        ]
    return {
        "model": workload.model,
        "batch_size": size,
        "precision": workload.precision,
        "step_seconds": statistics.median(taken[1:]) / count,
        "launches": launches,
    }


def _launch(
    item: Recorded, how: str, taken: float, ceilings: Mapping[str, Ceiling], runtime: Runtime
) -> dict[str, Any]:
    ceiling, least = least_seconds(item.kernel, ceilings, runtime)
    return {
        "node": item.node,
        "phase": item.phase,
        "kernel": item.kernel.name,
        "how": how,
        "beside": item.branch == BRANCH,
        "flops": item.kernel.flops,
        "bytes": item.kernel.bytes,
        "seconds": taken,
        "ceiling": ceiling,
        "least_seconds": least,
        "share": least / taken,
    }


def record(device: Device, ceilings: Mapping[str, Ceiling], steps: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One device's entry of the ``rooflines`` of a result."""
    return {
        "device": device.name,
        "device_description": device.description,
        "ceilings": [vars(ceiling) for ceiling in ceilings.values()],
        "steps": list(steps),
    }


@dataclass(frozen=True)
class Group:
    """Launches of one kernel under one ceiling: how many, for what, their seconds in all, the least by the ceiling."""

    phase: str
    kernel: str
    node: str
    launches: int
    seconds: float
    least_seconds: float
    ceiling: str

    @property
    def share(self) -> float:
        return self.least_seconds / self.seconds


def groups(step: Mapping[str, Any]) -> list[Group]:
    """A step's launches by phase, kernel and ceiling, those that take longest first."""
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for one in step["launches"]:
        found.setdefault((one["phase"], one["kernel"], one["ceiling"]), []).append(one)
    made = [
        Group(
            *(phase, kernel, some[0]["node"] if len(some) == 1 else f"{len(some)} launches", len(some)),
            *(math.fsum(one["seconds"] for one in some), math.fsum(one["least_seconds"] for one in some), ceiling),
        )
        for (phase, kernel, ceiling), some in found.items()
    ]
    return sorted(made, key=lambda group: -group.seconds)


def step_title(step: Mapping[str, Any]) -> str:
    """What a person calls it."""
    return f"{step['model']}, batch {step['batch_size']:,}, {step['precision']}"


def in_words(ceiling: Mapping[str, Any]) -> str:
    """A ceiling's name and value: "memory 4.12 TB/s"."""
    value = ceiling["per_second"]
    if ceiling["unit"] == "FLOP":
        return f"{ceiling['name']} {flops(value)}"
    if ceiling["unit"] == "byte":
        return f"{ceiling['name']} {significant(value / 1e12)} TB/s"
    return f"{ceiling['name']} {seconds(1 / value)}"


def table(rooflines: Mapping[str, Any]) -> str:
    """The ceilings on a line, where there are any, and a few lines a step, for a terminal."""
    lines = [", ".join(map(in_words, rooflines["ceilings"]))] if rooflines["ceilings"] else []
    for step in rooflines["steps"]:
        every = step["launches"]
        alone = math.fsum(one["seconds"] for one in every)
        share = math.fsum(one["least_seconds"] for one in every) / alone
        lines.append(
            f"{step_title(step)}: {seconds(step['step_seconds'])} a step, {len(every)} launches of {seconds(alone)} "
            f"one by one, {percent(share, 0)} of the roofline"
        )
        for group in groups(step):
            what = f"{group.phase} {group.kernel} ({group.node})"
            lines.append(f"  {seconds(group.seconds):>8}  {percent(group.share, 0):>5} of {group.ceiling:<14} {what}")
    return "\n".join(lines)
