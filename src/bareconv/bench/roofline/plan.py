"""The plan's step on a CPU, call by call, by the clocks within it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bareconv.bench.roofline.layers import SIZES, layer_bytes, layer_flops
from bareconv.bench.roofline.pace import Pace, alternate
from bareconv.bench.roofline.records import (
    BATCH,
    BETWEEN,
    BOTH,
    DW,
    DW_UPDATE,
    DX,
    FORWARD,
    OTHER,
    UPDATE,
    Part,
    Roof,
)
from bareconv.kernels.cpu.dense import DenseWeightUpdate
from bareconv.kernels.cpu.ends import Normalise
from bareconv.kernels.cpu.gradient import Spread
from bareconv.kernels.cpu.kernel import Kernel
from bareconv.kernels.cpu.parameters import Update
from bareconv.kernels.cpu.sparse import SparseBackward
from bareconv.nn.layer import Layer
from bareconv.plan.cpu.record import RecordedStage
from bareconv.plan.explain import Row
from bareconv.report.format import percent
from bareconv.training import PlanEngine, Trainer

_OF_PARAMETERS = ("WeightGradient", "NarrowWeightGradient", "ColumnSums", "NormBackwardSums", "NormBackwardFinish")

SAME_WORK = 0.01  # up to here executed operations count as those of the formula


def operation_of(kernel: Kernel, phase: str) -> str:
    """What of a step a call computes."""
    if phase == "prepare":
        return OTHER
    if phase == "forward":
        return BATCH if isinstance(kernel, Normalise) else FORWARD
    if isinstance(kernel, DenseWeightUpdate):
        return DW_UPDATE if kernel.rule.name != "gradient" else DW
    if isinstance(kernel, Update):
        return UPDATE
    if isinstance(kernel, SparseBackward):
        return BOTH if kernel.need_dx else DW
    if isinstance(kernel, Spread):  # the gradient of what a relu and a pool have read; with it, that of the bias
        return BOTH if kernel.bias else DX
    return DW if type(kernel).__name__ in _OF_PARAMETERS else DX


def together(kernel: Kernel, stage: RecordedStage, batch: int, threads: int) -> float:
    """Bytes in use at a time, over all threads: those of the calls that they are in, each on its chunk."""
    if stage.extent is not None:
        return kernel.bytes(stage.extent, batch)
    each = min(stage.chunk, stage.round, -(-batch // threads))
    return threads * kernel.bytes(each, batch)


def measure_plan(trainer: Trainer, engine: PlanEngine, roof: Roof, pace: Pace) -> dict[str, Any]:
    """The parts of ``rooflines.steps`` that come of timing: the median of each call over steps with clocks.

    Steps without clocks take turns with others; both train, at the workload's rate. The time of a call is the mean over
    the threads. What the calls leave of a step is that threads wait for each other, and that Python starts it.
    """
    plan = engine.plan
    samples: list[list[float]] = []

    def take(step: int) -> float:
        begun = time.perf_counter()
        trainer.train_step(step)
        return time.perf_counter() - begun

    def plain(step: int) -> float:
        plan.time_calls(False)
        return take(step)

    def marked(step: int) -> float:
        plan.time_calls(True)
        plan.clear_times()
        taken = take(step)
        samples.append(plan.seconds())
        return taken

    with trainer.device.activate():
        times = alternate(plain, marked, trainer.total_steps, pace, on_warm=samples.clear)
    *seconds, waiting = np.median(samples, axis=0).tolist()
    parts = plan_parts(trainer, plan.stages(), plan.explain().rows, seconds, roof, engine.threads or 1)
    started = max(0.0, times["marked_seconds"] - sum(seconds) - waiting)
    wait = Part(BETWEEN, OTHER, OTHER, "waiting", "threads for each other, their mean", waiting)
    start = Part(BETWEEN, OTHER, OTHER, "rest", "from Python to the threads; what the medians leave", started)
    launches = [*parts, wait.to_json(roof.bound(engine.precision, 0, 0)), start.to_json(roof.start())]
    return {**times, "launches": launches}


def plan_parts(
    trainer: Trainer,
    stages: Iterable[RecordedStage],
    rows: Iterable[Row],
    seconds: Iterable[float],
    roof: Roof,
    threads: int,
) -> Iterator[dict[str, Any]]:
    """The ``launches`` of a result: every call of a step, and Python's turns, with the work that its formula needs.

    ``rows`` are the plan's, ``seconds`` theirs.
    """
    batch, precision = trainer.history.batch_size, trainer.engine.precision
    leaves = {leaf.name: leaf for leaf in trainer.model.leaves()}
    calls = [
        _Call(row, operation, stage, kernel)
        for row, (stage, kernel, operation) in zip(rows, _with_operations(stages), strict=True)
    ]
    work = _formula_flops(calls, leaves, batch)
    for call, flops, taken in zip(calls, work, seconds, strict=True):
        row, kernel = call.row, call.kernel
        if kernel is None:
            size = SIZES.get(precision, 4)
            moved = sum(layer_bytes(layer, call.operation, batch, size) for layer in _layers(row.node, leaves))
            used: float = moved
            how = row.how
        else:
            moved = kernel.bytes(batch if call.stage.extent is None else call.stage.extent, batch)
            used = together(kernel, call.stage, batch, threads)
            how = row.how + _executed(row.flops * batch, flops)
        part = Part(row.node, row.phase, call.operation, row.kernel, how, taken, flops, moved)
        yield part.to_json(roof.bound(precision, flops, moved, used))


@dataclass(frozen=True)
class _Call:
    """A row of the plan with what is behind it; ``kernel`` None: Python's turn."""

    row: Row
    operation: str
    stage: RecordedStage
    kernel: Kernel | None


def _with_operations(stages: Iterable[RecordedStage]) -> Iterator[tuple[RecordedStage, Kernel | None, str]]:
    """In the order of a plan's rows."""
    for stage in stages:
        if stage.host is not None:
            backward = BOTH if getattr(stage.host, "dx", None) is not None else DW
            yield stage, None, FORWARD if stage.label[1] == "forward" else backward
        for call in stage.calls:
            yield stage, call.kernel, operation_of(call.kernel, call.phase)


def _layers(node: str, leaves: Mapping[str, Layer]) -> list[Layer]:
    return [leaves[name] for name in node.split(" + ") if name in leaves]


def _formula_flops(calls: list[_Call], leaves: Mapping[str, Layer], batch: int) -> list[float]:
    """Of each call, for the batch: what its layers' formulas need, shared among calls as they execute it."""
    found = [0.0] * len(calls)
    for kind, operations in ((FORWARD, {FORWARD}), (DX, {DX, BOTH}), (DW, {DW, BOTH, DW_UPDATE})):
        nodes: dict[str, list[int]] = {}
        for i, call in enumerate(calls):
            if call.operation in operations and (call.row.flops or call.kernel is None):
                nodes.setdefault(call.row.node, []).append(i)
        for node, places in nodes.items():
            needed = sum(layer_flops(layer, kind, batch) for layer in _layers(node, leaves))
            executed = sum(calls[i].row.flops or 1 for i in places)
            for i in places:
                found[i] += needed * (calls[i].row.flops or 1) / executed
    return found


def _executed(executed: float, needed: float) -> str:
    """What a reader should know where a kernel does other work than the formula's."""
    if not needed or abs(executed / needed - 1) < SAME_WORK:
        return ""
    return f"; executes {percent(executed / needed, 0)} of these operations"
