"""Every engine of this machine against the reference, on the CPU: small trainings in lockstep, in both precisions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from bareconv import optim, random
from bareconv.bench.parity import GENTLE, parity
from bareconv.bench.workload import CLASSES, natural_shape
from bareconv.data import Dataset, Split
from bareconv.nn import models
from bareconv.nn.layer import Shape
from bareconv.training import ENGINES, Settings, Trainer, why_no_plan

LR = 0.05
BATCH, IMAGES, EPOCHS = 12, 28, 2  # three steps an epoch, the last of them short
LARGEST = 16  # pixels of a side, of the residual networks' images: wider ones take their time
FURTHER = {"lenet5": (28, 28, 1), "small": (14, 14, 1), "basic": (14, 14, 1), "resnet9": (8, 8, 3)}


def candidates() -> list[str]:
    """The engines besides the reference that run on this CPU."""
    return [name for name in ENGINES if name != "reference" and (name != "plan" or why_no_plan() is None)]


def cases(model: str) -> list[tuple[str, Shape]]:
    """``model`` on images of its own size, and further models of the zoo on small ones."""
    height, width, channels = natural_shape(model)
    own = (height, width, channels) if height <= 28 else (LARGEST, LARGEST, channels)
    return list(dict.fromkeys([(model, own), *FURTHER.items()]))


def count(model: str) -> int:
    """How many checks ``check_engines`` makes."""
    return 2 * len(cases(model)) * len(candidates())


def check_engines(
    model: str,
    seed: int = 0,
    threads: int | None = None,
    on_compile: Callable[[int, int], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """The ``parity`` objects of a result: each engine against the reference, in float64 and in float32.

    SGD with momentum, weight decay and smoothed labels, over two epochs; in float32 at a rate so small that rounding
    is not amplified (``bench.parity`` says more).
    """
    for name, shape in cases(model):
        data = _random(shape, seed)
        for engine in candidates():
            for precision, lr in (("float64", LR), ("float32", LR * GENTLE)):
                settings = Settings(
                    epochs=EPOCHS,
                    batch_size=BATCH,
                    schedule=optim.Constant(),
                    engine=engine,
                    precision=precision,
                    seed=seed,
                    label_smoothing=0.1,
                    threads=threads,
                )
                sides = [
                    Trainer(
                        models.by_name(name, shape, CLASSES, seed),
                        data,
                        optim.SGD(lr, momentum=0.9, weight_decay=1e-3),
                        dataclasses.replace(settings, engine=side),
                        "cpu",
                    )
                    for side in ("reference", engine)
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
