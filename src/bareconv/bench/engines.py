"""Every engine of a device against the reference there: small trainings in lockstep, in each of its precisions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from bareconv import optim, random
from bareconv.bench.parity import GENTLE, parity
from bareconv.bench.workload import CLASSES, natural_shape
from bareconv.data import Dataset, Split
from bareconv.device import CpuDevice, Device
from bareconv.nn import models
from bareconv.nn.layer import Shape
from bareconv.training import ENGINES, PRECISIONS, Settings, Trainer, why_no_plan
from bareconv.training.precision import stored

LR = 0.05
BATCH, IMAGES, EPOCHS = 12, 28, 2  # three steps an epoch, the last of them short
LARGEST = 16  # pixels of a side, of the residual networks' images: wider ones take their time
FURTHER = {"lenet5": (28, 28, 1), "small": (14, 14, 1), "basic": (14, 14, 1), "resnet9": (8, 8, 3)}


def candidates(device: Device | None = None) -> list[tuple[str, str]]:
    """(engine, precision) of all besides the reference that there are on a device, by default the CPU."""
    if device is None or isinstance(device, CpuDevice):
        names = [name for name in ENGINES if name != "reference" and (name != "plan" or why_no_plan() is None)]
        return [(name, precision) for name in names for precision in ("float64", "float32")]
    if why_no_plan(device) is not None:
        return []
    return [("plan", precision) for precision in PRECISIONS if precision != "float64"]


def cases(model: str) -> list[tuple[str, Shape]]:
    """``model`` on images of its own size, and further models of the zoo on small ones."""
    height, width, channels = natural_shape(model)
    own = (height, width, channels) if height <= 28 else (LARGEST, LARGEST, channels)
    return list(dict.fromkeys([(model, own), *FURTHER.items()]))


def count(model: str, device: Device | None = None) -> int:
    """How many checks ``check_engines`` makes."""
    return len(cases(model)) * len(candidates(device))


def check_engines(
    model: str,
    seed: int = 0,
    threads: int | None = None,
    on_compile: Callable[[int, int], None] | None = None,
    device: Device | None = None,
) -> Iterator[dict[str, Any]]:
    """The ``parity`` objects of a result: each engine of ``device`` against the reference there.

    SGD with momentum, weight decay and smoothed labels, over two epochs; below float64 at a rate so small that rounding
    is not amplified (``bench.parity`` says more). The reference computes in float32 beside tf32 and bfloat16.
    """
    for name, shape in cases(model):
        data = _random(shape, seed)
        for engine, precision in candidates(device):
            settings = Settings(
                epochs=EPOCHS,
                batch_size=BATCH,
                schedule=optim.Constant(),
                seed=seed,
                label_smoothing=0.1,
                threads=threads,
            )
            lr = LR if precision == "float64" else LR * GENTLE
            sides = [
                Trainer(
                    models.by_name(name, shape, CLASSES, seed),
                    data,
                    optim.SGD(lr, momentum=0.9, weight_decay=1e-3),
                    dataclasses.replace(settings, engine=side, precision=computed),
                    device or "cpu",
                )
                for side, computed in (("reference", stored(precision)), (engine, precision))
            ]
            sides[1].engine.prepare(on_compile)
            yield {**parity(sides[0], sides[1], sides[0].total_steps), "image_shape": list(shape)}


def _random(shape: Shape, seed: int) -> Dataset:
    """Images and labels drawn uniformly."""
    size = IMAGES
    for side in shape:
        size *= side
    pixels = random.words(seed, (random.SYNTHETIC, 0, 0), -(-size // 4)).view("uint8")[:size]
    labels = random.words(seed, (random.SYNTHETIC, 0, 1), IMAGES) % CLASSES
    split = Split(pixels.reshape(IMAGES, *shape), labels.astype("int32"))
    return Dataset("uniform random images and labels", split, None, None, CLASSES)
