"""Where the time of a training step goes: its phases, and each operation forward and backward.

Profiled steps are taken apart from the timed training: the marks between operations cost a little themselves.
"""

from __future__ import annotations

import statistics
from typing import Any

from bareconv.device import Array
from bareconv.nn.layer import Layer
from bareconv.training import Trainer

WARM_UP = 2


def profile(trainer: Trainer, steps: int = 20) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(phases, operations) of a result's run: medians over ``steps`` steps, in seconds.

    The steps repeat the first batch at a learning rate of 0: the parameters stay as they are; the optimizer's state and
    the running statistics do not, so that a trainer is profiled when it is done.
    """
    device, engine = trainer.device, trainer.engine
    samples: dict[tuple[str, str], list[float]] = {}
    has_dx: set[str] = set()
    with device.activate():
        for repeat in range(WARM_UP + steps):
            marks, names = [device.mark()], [("", "")]

            def note(phase: str, name: str, marks: list[Any] = marks, names: list[tuple[str, str]] = names) -> None:
                marks.append(device.mark())
                names.append((phase, name))

            def watch(phase: str, layer: Layer, result: Array | None, note: Any = note) -> None:
                note(phase, layer.name)
                if phase == "backward" and result is not None:
                    has_dx.add(layer.name)

            x, labels = trainer.batch(0)
            note("batch", "")
            engine.forward(x, labels, trainer.step, watch=watch)
            note("forward", "")
            engine.backward(watch=watch)
            note("backward", "")
            engine.update(0.0)
            note("update", "")
            if repeat < WARM_UP:
                device.synchronize()
                continue
            seconds = device.seconds_between(marks)
            totals: dict[tuple[str, str], float] = {}
            for key, value in zip(names[1:], seconds, strict=True):
                totals[key] = totals.get(key, 0.0) + value
                if key[1]:
                    totals[key[0], ""] = totals.get((key[0], ""), 0.0) + value
            for key, value in totals.items():
                samples.setdefault(key, []).append(value)
    median = {key: statistics.median(values) for key, values in samples.items()}
    phases = {name: median[name, ""] for name in ("batch", "forward", "backward", "update")}
    batch = len(labels)
    executed = [*trainer.model.leaves(), engine.loss]
    operations = [_operation(leaf, median, batch, leaf.name in has_dx) for leaf in executed]
    return {**phases, "profiled_steps": steps}, operations


def _operation(leaf: Layer, median: dict[tuple[str, str], float], batch: int, has_dx: bool) -> dict[str, Any]:
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

    Activations are what a training forward keeps for backward, im2col matrices among them.
    """
    with trainer.device.activate():
        x, labels = trainer.batch(0)
        trainer.engine.forward(x, labels, trainer.step)
        kept_anyway = x if trainer.history.steps_per_epoch == 1 else None  # it counts as data
        activations = trainer.model.activation_bytes(kept_anyway)
        trainer.engine.backward()
    named = {
        "parameters": _bytes(trainer.model.state()),
        "gradients": _bytes(trainer.model.gradients()),
        "optimizer": _bytes(trainer.optimizer.state()),
        "activations": activations,
        "data": trainer.data_bytes(),
    }
    return {**named, "overhead": max(0, peak - sum(named.values()))}


def _bytes(arrays: dict[str, Array]) -> int:
    return sum(int(array.nbytes) for array in arrays.values())
