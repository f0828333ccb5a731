"""A step of the reference with marks of the device's clock between its parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bareconv.device import Array, Device
from bareconv.nn.layer import Layer
from bareconv.training import Batch, ReferenceEngine

Part = tuple[str, str]  # "batch", "forward", "dW", "backward" or "update"; the layer's name, empty for what has none


@dataclass
class MarkedStep:
    """One step: its marks, the part that each of them ends, the layers whose backward made a dX, its images."""

    marks: list[Any]
    parts: list[Part] = field(default_factory=list)
    has_dx: set[str] = field(default_factory=set)
    images: int = 0

    def seconds(self, device: Device) -> dict[Part, float]:
        """Of each part, in the order in which they came. Waits for the device."""
        found: dict[Part, float] = {}
        for part, seconds in zip(self.parts, device.seconds_between(self.marks), strict=True):
            found[part] = found.get(part, 0.0) + seconds
        return found


def marked_step(engine: ReferenceEngine, batch: Batch, lr: float, *, halves: bool = False) -> MarkedStep:
    """Take a step, within ``device.activate()``.

    ``halves``: of a backward the gradients of parameters are a part of their own, "dW", and "backward" is the rest;
    where a layer has no "dW", its backward is one.
    """
    device = engine.device
    made = MarkedStep([device.mark()])

    def tell(phase: str, name: str = "") -> None:
        made.marks.append(device.mark())
        made.parts.append((phase, name))

    def watch(phase: str, layer: Layer, result: Array | None) -> None:
        if phase != "dW" or halves:
            tell(phase, layer.name)
        if phase == "backward" and result is not None:
            made.has_dx.add(layer.name)

    x, labels = engine.inputs(batch)
    made.images = len(labels)
    tell("batch")
    engine.forward(x, labels, batch.step, watch=watch)
    tell("forward")
    engine.backward(watch=watch)
    tell("backward")
    engine.update(lr)
    tell("update")
    return made
