"""The work of each layer by its formula, and a step of the reference, part by part, on any device."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bareconv.bench.marks import MarkedStep, marked_step
from bareconv.bench.marks import Part as Key
from bareconv.bench.roofline.pace import Pace, alternate
from bareconv.bench.roofline.records import (
    BATCH,
    BETWEEN,
    BOTH,
    DW,
    DX,
    FORWARD,
    OTHER,
    UPDATE,
    Part,
    Roof,
)
from bareconv.nn import layers
from bareconv.nn.blocks import Add
from bareconv.nn.layer import Layer, features
from bareconv.training import Trainer, TunedEngine

SIZES = {"float64": 8}  # bytes of a number; all other precisions keep arrays of float32

_SPLIT = (layers.Conv2d, layers.Dense)  # whose backward is two operations, timed apart


def layer_flops(layer: Layer, operation: str, images: int) -> int:
    """Operations that the formula needs for a batch."""
    work = layer.flops()
    each = {FORWARD: work.forward, DX: work.dx, DW: work.dw, BOTH: work.dx + work.dw}.get(operation, 0)
    return each * images


def layer_bytes(layer: Layer, operation: str, images: int, size: int) -> int:
    """Bytes that must at least be read and written for a batch of numbers of ``size`` bytes: every array once.

    A flatten is a view and moves nothing. A max pool keeps a byte for each window.
    """
    if isinstance(layer, layers.Flatten):
        return 0
    x, y = images * features(layer.in_shape or (0,)), images * features(layer.out_shape or (0,))
    weights = layer.parameter_count()
    windows = y if isinstance(layer, layers.MaxPool2d | layers.GlobalMaxPool) and not _mean(layer) else 0
    if isinstance(layer, Add | layers.Dropout):  # of two arrays one
        return 3 * y * size
    if operation == FORWARD:
        return (x + y + weights) * size + windows
    if operation == DW:
        return (x + y + weights) * size
    if operation == BOTH:  # of a batch norm: X, dY and dX, gamma, its gradient and that of beta
        return (2 * x + y + weights + weights // 2) * size
    needs_values = isinstance(layer, layers.ReLU | layers.LeakyReLU | layers.GELU)
    return (x + y + (y if needs_values else 0) + weights) * size + windows


def _mean(layer: Layer) -> bool:
    return isinstance(layer, layers.AvgPool2d | layers.GlobalAvgPool)


def reference_parts(trainer: Trainer, seconds: dict[Key, float], marked: MarkedStep) -> list[Part]:
    """A step of the reference as its parts, in order, with the work of each."""
    engine, images = trainer.reference(), marked.images
    size = SIZES.get(engine.precision, 4)
    leaves = {leaf.name: leaf for leaf in [*trainer.model.leaves(), engine.loss]}
    parts = []
    for (phase, name), taken in seconds.items():
        if not name:
            parts.append(_whole_model(trainer, phase, taken, images, size))
            continue
        layer = leaves[name]
        operation = _operation(layer, phase)
        if operation == DX and isinstance(layer, _SPLIT) and name not in marked.has_dx:
            continue  # the first layer, of which no dX is wanted: nothing was done
        parts.append(
            Part(
                node=name,
                phase="forward" if phase == "forward" else "backward",
                operation=operation,
                kernel=type(layer).__name__,
                how="by layer",
                seconds=taken,
                flops=layer_flops(layer, operation, images),
                bytes=_loss_bytes(trainer, images, size)
                if layer is engine.loss
                else layer_bytes(layer, operation, images, size),
            )
        )
    return parts


def _operation(layer: Layer, phase: str) -> str:
    if phase == "forward":
        return FORWARD
    if phase == "dW":
        return DW
    return BOTH if layer.params and not isinstance(layer, _SPLIT) else DX


def _loss_bytes(trainer: Trainer, images: int, size: int) -> int:
    """Of the logits and as many probabilities, or of these and dlogits."""
    return 2 * images * features(trainer.model.output_shape) * size


def _whole_model(trainer: Trainer, phase: str, taken: float, images: int, size: int) -> Part:
    """What belongs to no layer: the batch, the update, and what comes after the last layer, forward and backward."""
    if phase == "batch":
        pixels = images * features(trainer.model.input_shape)
        return Part("images", FORWARD, BATCH, "prepare", "gathered, and made floats", taken, 0, pixels * (1 + size))
    if phase == "update":
        numbers = trainer.model.body.parameter_count() * (3 + 2 * len(trainer.optimizer.slots))
        return Part(
            "parameters", UPDATE, UPDATE, type(trainer.optimizer).__name__, "by array", taken, 0, numbers * size
        )
    what = "counts correct predictions" if phase == "forward" else "after the last layer"
    return Part(BETWEEN, phase, OTHER, "Python", what, taken)


def measure_reference(trainer: Trainer, roof: Roof, pace: Pace) -> dict[str, Any]:
    """The parts of ``rooflines.steps`` that come of timing: of the reference, by marks between its parts.

    Steps without any mark take turns with marked ones; both train, at the workload's rate.
    """
    engine, device = trainer.reference(), trainer.device
    samples: dict[Key, list[float]] = {}
    last: list[MarkedStep] = []

    def plain(step: int) -> float:
        begun = device.mark()
        trainer.train_step(step)
        (taken,) = device.seconds_between([begun, device.mark()])
        return taken

    def marked(step: int) -> float:
        made = marked_step(engine, trainer.batch(step), trainer.learning_rate(step), halves=True)
        found = made.seconds(device)
        for key, value in found.items():
            samples.setdefault(key, []).append(value)
        last[:] = [made]
        return sum(found.values())

    with device.activate():
        times = alternate(plain, marked, trainer.total_steps, pace, on_warm=samples.clear)
        median = {key: statistics.median(values) for key, values in samples.items()}
        parts = reference_parts(trainer, median, last[0])
    return {**times, "launches": bounded(parts, roof, engine.precision)}


def measure_tuned(trainer: Trainer, engine: TunedEngine, roof: Roof, pace: Pace) -> dict[str, Any]:
    """As ``measure_reference``, of the tuned engine: forward and backward as one, for it goes slice by slice."""
    device = trainer.device
    samples: dict[str, list[float]] = {}

    def plain(step: int) -> float:
        begun = device.mark()
        trainer.train_step(step)
        return device.seconds_between([begun, device.mark()])[0]

    def marked(step: int) -> float:
        batch, marks = trainer.batch(step), [device.mark()]
        x, labels = engine.inputs(batch)
        marks.append(device.mark())
        engine.gradients(x, labels, step)
        marks.append(device.mark())
        engine.update(trainer.learning_rate(step))
        marks.append(device.mark())
        taken = device.seconds_between(marks)
        for name, value in zip(("batch", "both", "update"), taken, strict=True):
            samples.setdefault(name, []).append(value)
        return sum(taken)

    with device.activate():
        times = alternate(plain, marked, trainer.total_steps, pace, on_warm=samples.clear)
    median = {name: statistics.median(values) for name, values in samples.items()}
    images, size = trainer.history.batch_size, SIZES.get(engine.precision, 4)
    work = trainer.model.flops() * images
    moved = sum(
        layer_bytes(leaf, FORWARD, images, size) + layer_bytes(leaf, BOTH if leaf.params else DX, images, size)
        for leaf in trainer.model.leaves()
    )
    parts = [
        _whole_model(trainer, "batch", median["batch"], images, size),
        Part("all layers", "step", OTHER, "tuned NumPy", "forward and backward", median["both"], work, moved),
        _whole_model(trainer, "update", median["update"], images, size),
    ]
    return {**times, "launches": bounded(parts, roof, engine.precision)}


def bounded(parts: Sequence[Part], roof: Roof, precision: str) -> list[dict[str, Any]]:
    """The ``launches`` of a result: each part with what bounds it."""
    return [part.to_json(roof.bound(precision, part.flops, part.bytes)) for part in parts]
