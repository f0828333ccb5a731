"""The parity proof: two sides trained in lockstep from the same weights on the same batches.

After every step the losses and all weights are compared. Rounding differs between devices (the order of sums) and
training amplifies it step by step; the tolerance bounds what rounding can explain over that many steps.

In float64 the proof is of the training as it is set, and the weights are held to the tolerance like the losses: an
error in either side exceeds it by orders of magnitude. In float32 rounding now and then puts one of a batch's millions
of relu inputs on the other side of zero; in a small network that alone turns the gradient by a thousandth, and a
training at full speed makes a hundredth of it within a hundred steps, between two devices as between two precisions. So
the float32 proof takes its steps at a constant 1/200 of the base rate, where such a flip stays as small as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bareconv.training import Trainer

GENTLE = 1 / 200  # of the base learning rate, in a proof that involves a precision below float64

TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "tf32": 5e-2, "bfloat16": 1e-1}  # finest first
LARGEST = 1e9  # relative difference: what is larger, infinite or NaN counts as this (JSON has no infinity)


def parity(
    reference: Trainer,
    candidate: Trainer,
    steps: int,
    on_step: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """The ``parity`` object of a result file; trains both fresh trainers by ``steps`` steps.

    The tolerance is that of the coarser of the two precisions. Stops early, with the steps done, on ``should_stop()``,
    and where a loss is not finite: from there on all would differ by ``LARGEST``.
    """
    sides = reference, candidate
    precisions = [side.engine.precision for side in sides]
    precision = next(p for p in reversed(TOLERANCE) if p in precisions)
    loss_differences: list[float] = []
    weight_differences: list[float] = []
    worst = ""
    for step in range(min(steps, reference.total_steps)):
        losses = []
        for side in sides:
            with side.device.activate():
                losses.append(float(side.train_step(step)[0]))
        loss_differences.append(_relative(abs(losses[0] - losses[1]), abs(losses[0])))
        difference, worst = _largest_difference(*sides)
        weight_differences.append(difference)
        if on_step:
            on_step(step + 1)
        if should_stop() or not np.isfinite(losses).all():
            break
    tolerance = TOLERANCE[precision]
    names = side_names(reference, candidate)
    return {
        "reference": names[0],
        "candidate": names[1],
        "model": reference.model.name,
        "precision": precision,
        "learning_rate": candidate.learning_rate(0),
        "steps": len(loss_differences),
        "loss_difference": loss_differences,
        "weight_difference": weight_differences,
        "max_loss_difference": max(loss_differences),
        "final_weight_difference": weight_differences[-1],
        "worst_tensor": worst,
        "tolerance": tolerance,
        "passed": max(loss_differences) < tolerance and (precision != "float64" or weight_differences[-1] < tolerance),
    }


def side_names(reference: Trainer, candidate: Trainer) -> tuple[str, str]:
    """What tells the two apart: device and precision, and the engines unless both are the reference."""
    sides = reference, candidate
    plain = all(side.engine.name == "reference" for side in sides)
    first, second = (
        " ".join(
            [
                side.device.name,
                side.engine.precision,
                *([] if plain else [side.engine.name]),
            ]
        )
        for side in sides
    )
    return first, second


@np.errstate(over="ignore", invalid="ignore")
def _largest_difference(reference: Trainer, candidate: Trainer) -> tuple[float, str]:
    """The largest ||a - b|| / ||a|| over the tensors, and the name of that tensor."""
    largest, worst = 0.0, ""
    theirs = candidate.model.parameters()
    for name, array in reference.model.parameters().items():
        a = reference.device.to_host(array).astype(np.float64)
        b = candidate.device.to_host(theirs[name]).astype(np.float64)
        difference = _relative(float(np.linalg.norm(a - b)), float(np.linalg.norm(a)))
        if difference > largest:
            largest, worst = difference, name
    return largest, worst


def _relative(difference: float, size: float) -> float:
    relative = difference / max(size, float(np.finfo(np.float64).tiny))
    return relative if relative < LARGEST else LARGEST  # in this order, for NaN
