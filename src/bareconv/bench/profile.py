"""Where the time of a training step goes: its phases, and each operation forward and backward.

Profiled steps are taken apart from the timed training: the marks between operations cost a little themselves. What an
operation is depends on the engine: a layer of the reference, several layers that a plan runs as one ("conv1 + relu1").
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from bareconv.bench.marks import Part, marked_step
from bareconv.device import Array
from bareconv.errors import UsageError
from bareconv.nn.layer import Layer
from bareconv.optim import clip_grad_norm
from bareconv.plan.explain import Explanation, Row
from bareconv.training import Batches, CudaPlanEngine, PlanEngine, ReferenceEngine, Trainer, TunedEngine

WARM_UP = 2
REPEATS = 3  # of all steps, where they are taken at once
IMAGES = "images"  # what a plan calls the gathering and normalising of a batch


def profile(trainer: Trainer, steps: int = 20) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(phases, operations) of a result's run: medians over ``steps`` steps, in seconds.

    The steps repeat the first batch at a learning rate of 0: the parameters stay as they are; the optimizer's state and
    the running statistics do not, so that a trainer is profiled when it is done. The tuned engine goes forward and
    backward slice by slice, on several threads: what belongs to which is not known, and there are no operations.
    """
    engine = trainer.engine
    if isinstance(engine, PlanEngine):
        return _profile_plan(trainer, engine, steps)
    if isinstance(engine, CudaPlanEngine):
        return _profile_cuda_plan(trainer, engine, steps)
    if isinstance(engine, TunedEngine):
        return _profile_tuned(trainer, engine, steps)
    return _profile_reference(trainer, trainer.reference(), steps)


def remark(trainer: Trainer) -> str | None:
    """What a reader of a run's profile should know of it."""
    if isinstance(trainer.engine, TunedEngine):
        return "The tuned engine goes forward and backward slice by slice on every thread: there are no times of each."
    if isinstance(trainer.engine, CudaPlanEngine):
        reason = trainer.engine.plan.why_not_captured
        if reason is not None:
            return f"The plan on {trainer.device.name} is no CUDA graph, and there are no times of its parts: {reason}."
        return (
            f"The plan on {trainer.device.name}: each launch was timed alone; of a step, in which they overlap, each "
            "is given its share."
        )
    if isinstance(trainer.engine, PlanEngine):
        names = dict.fromkeys(row.node for row in trainer.engine.explain().fallbacks)
        if names:
            return f"The plan has no kernel for {', '.join(names)}: what these took is in the time of other things."
    return None


def _profile_plan(trainer: Trainer, engine: PlanEngine, steps: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """From the clocks within the plan: the mean over its threads of the seconds that each call took.

    They are scaled from the mean step to the median one. What they leave of it is "other": threads that wait for each
    other, what has no kernel, and Python, which starts the step.
    """
    plan, batch = engine.plan, trainer.batch(0)
    whole = []
    for repeat in range(WARM_UP + steps):
        if repeat == WARM_UP:
            plan.clear_times()
        begun = time.perf_counter()
        engine.train(batch, 0.0)
        whole.append(time.perf_counter() - begun)
    step = statistics.median(whole[WARM_UP:])
    scale = step / sum(whole[WARM_UP:])
    explained: Explanation = plan.explain()
    phases, operations = _by_operation(trainer, explained.rows, scale, len(batch))
    phases["update"] += _update_by_reference(trainer, engine, steps)
    return {**phases, "other": _rest(step, phases), "profiled_steps": steps}, operations


def _rest(step: float, phases: dict[str, Any]) -> float:
    """What a step's phases leave of its seconds; nothing, where that is only rounding."""
    left = step - sum(phases.values())
    return left if left > 1e-6 * step else 0.0


def _profile_cuda_plan(
    trainer: Trainer, engine: CudaPlanEngine, steps: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """From launches timed one by one, scaled to a step where they take longer than that: in it they overlap.

    What they leave of it is "other"; that is all of it where a step is no graph.
    """
    device, plan, batch = trainer.device, engine.plan, trainer.batch(0)
    with device.activate():
        chosen = None if batch.chosen is None else device.xp.tile(batch.chosen, steps)
        batches = Batches(batch.images, batch.labels, chosen, len(batch), steps, 0)
        samples = []
        for _ in range(WARM_UP + REPEATS):
            device.synchronize()
            begun = time.perf_counter()
            engine.train_steps(batches, [0.0] * steps)
            device.synchronize()
            samples.append((time.perf_counter() - begun) / steps)
        step = statistics.median(samples[WARM_UP:])
        if plan.why_not_captured is not None:
            return {"update": 0.0, "other": step, "profiled_steps": steps}, []
        plan.profile(batch.images, batch.labels, batch.chosen)
    rows = plan.explain().rows
    scale = min(1.0, step / sum(row.seconds or 0.0 for row in rows))
    phases, operations = _by_operation(trainer, rows, scale, len(batch))
    return {**phases, "other": _rest(step, phases), "profiled_steps": steps}, operations


def _by_operation(
    trainer: Trainer, rows: Sequence[Row], scale: float, batch: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Seconds of the phases, and of the operations, of a plan's rows."""
    phases = dict.fromkeys(("batch", "forward", "backward", "update"), 0.0)
    nodes: dict[str, dict[str, Any]] = {}
    fused = {row.node.split(" + ")[0]: row.node for row in rows if row.phase == "forward"}
    leaves = {leaf.name: leaf for leaf in [*trainer.model.leaves(), trainer.reference().loss]}
    # What prepares weights counts as forward; which weights come first there is no order to show operations in.
    for row in sorted(rows, key=lambda row: row.phase == "prepare"):
        if row.seconds is None:  # Python's
            continue
        seconds = row.seconds * scale
        phase = "forward" if row.phase == "prepare" else row.phase
        phases["batch" if row.node == IMAGES else phase] += seconds
        if row.node == IMAGES or phase == "update":
            continue
        name = fused.get(row.node, row.node)
        operation = nodes.setdefault(name, _fused(name, leaves))
        operation[f"{phase}_seconds"] += seconds
        operation[f"{phase}_flops"] += row.flops * batch
    return phases, list(nodes.values())


def _fused(name: str, leaves: dict[str, Layer]) -> dict[str, Any]:
    """The beginning of an operation of several layers."""
    parts = [leaves[part] for part in name.split(" + ") if part in leaves]
    return {
        "name": name,
        "type": " + ".join(type(part).__name__ for part in parts),
        "output_shape": list(parts[-1].out_shape) if parts else [],
        **{f"{way}_seconds": 0.0 for way in ("forward", "backward")},
        **{f"{way}_flops": 0 for way in ("forward", "backward")},
    }


def _update_by_reference(trainer: Trainer, engine: PlanEngine, steps: int) -> float:
    """Seconds of an update that the plan leaves to the optimizer; 0 where it updates by itself."""
    try:
        gradients = engine.plan.gradients()
    except UsageError:
        return 0.0
    samples = []
    for _ in range(steps):
        begun = time.perf_counter()
        if trainer.settings.clip_norm is not None:
            clip_grad_norm(gradients, trainer.settings.clip_norm)
        trainer.optimizer.update(trainer.model.parameters(), gradients, 0.0)
        samples.append(time.perf_counter() - begun)
    return statistics.median(samples)


def _profile_tuned(trainer: Trainer, engine: TunedEngine, steps: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The batch, forward and backward as one, and the update."""
    samples = []
    for _ in range(WARM_UP + steps):
        begun = time.perf_counter()
        x, labels = engine.inputs(trainer.batch(0))
        prepared = time.perf_counter()
        engine.gradients(x, labels, trainer.step)
        done = time.perf_counter()
        engine.update(0.0)
        samples.append((prepared - begun, done - prepared, time.perf_counter() - done))
    batch, both, update = np.median(samples[WARM_UP:], axis=0).tolist()
    return {"batch": batch, "forward_backward": both, "update": update, "profiled_steps": steps}, []


def _profile_reference(
    trainer: Trainer, engine: ReferenceEngine, steps: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """From marks between the layers."""
    device = trainer.device
    samples: dict[Part, list[float]] = {}
    with device.activate():
        for repeat in range(WARM_UP + steps):
            marked = marked_step(engine, trainer.batch(0), 0.0)
            if repeat < WARM_UP:
                device.synchronize()
                continue
            totals: dict[Part, float] = {}
            for (phase, name), value in marked.seconds(device).items():
                totals[phase, name] = totals.get((phase, name), 0.0) + value
                if name:
                    totals[phase, ""] = totals.get((phase, ""), 0.0) + value
            for part, value in totals.items():
                samples.setdefault(part, []).append(value)
    median = {key: statistics.median(values) for key, values in samples.items()}
    phases = {name: median[name, ""] for name in ("batch", "forward", "backward", "update")}
    executed = [*trainer.model.leaves(), engine.loss]
    operations = [_operation(leaf, median, marked.images, leaf.name in marked.has_dx) for leaf in executed]
    return {**phases, "profiled_steps": steps}, operations


def _operation(leaf: Layer, median: dict[Part, float], batch: int, has_dx: bool) -> dict[str, Any]:
    flops = leaf.flops()
    return {
        "name": leaf.name,
        "type": type(leaf).__name__,
        "output_shape": list(leaf.out_shape),
        "forward_seconds": median.get(("forward", leaf.name), 0.0),
        "backward_seconds": median.get(("backward", leaf.name), 0.0),
        "forward_flops": flops.forward * batch,
        "backward_flops": (flops.dw + (flops.dx if has_dx else 0)) * batch,
    }


def memory(trainer: Trainer, peak: int) -> dict[str, int]:
    """Bytes by component; ``overhead`` is what ``peak`` has beyond the named ones.

    Activations are what an engine keeps of a step from its forward to its backward, and what it works in: of the
    reference im2col matrices among them, of a plan the gradients of activations.
    """
    kept = trainer.engine.kept_bytes()
    if "activations" not in kept:
        kept = {"activations": _activations(trainer), **trainer.engine.kept_bytes()}  # with the gradients from then on
    named = {
        "parameters": _bytes(trainer.model.state()),
        "gradients": kept["gradients"],
        "optimizer": _bytes(trainer.optimizer.state()),
        "activations": kept["activations"],
        "data": trainer.data_bytes(),
    }
    return {**named, "overhead": max(0, peak - sum(named.values()))}


def _activations(trainer: Trainer) -> int:
    """Of the reference, which keeps nothing between steps: what it has after a forward."""
    engine = trainer.reference()
    with trainer.device.activate():
        x, labels = engine.inputs(trainer.batch(0))
        engine.forward(x, labels, trainer.step)
        kept_anyway = x if trainer.history.steps_per_epoch == 1 else None  # it counts as data
        activations = trainer.model.activation_bytes(kept_anyway)
        engine.backward()
    return activations


def _bytes(arrays: dict[str, Array]) -> int:
    return sum(int(array.nbytes) for array in arrays.values())
