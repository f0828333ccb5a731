"""What every candidate trains: one model with its initial weights, images, and the order of the batches, as files."""

from __future__ import annotations

import functools
import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bareconv import data, random
from bareconv.bench.synthetic import ImageFile
from bareconv.data import Dataset, Split
from bareconv.errors import UsageError
from bareconv.nn import models
from bareconv.nn.blocks import Sequential
from bareconv.nn.layer import Layer, Shape
from bareconv.nn.model import Model
from bareconv.training.precision import PRECISIONS

CLASSES = 10
EPOCHS = 8  # orders of the batches that are written down; after them, all candidates begin again with the first
SYNTHETIC_IMAGES = 2048  # or two batches, where that is more
MOMENTUM = 0.9
LR = 0.01  # a usual one: relus die as they do in a training, and with them the work of a sparse backward


def natural_shape(model: str) -> Shape:
    """The images that a model of the zoo was made for: (28, 28, 1) or (32, 32, 3)."""
    if model not in models.ZOO:
        raise UsageError(f"model {model!r}: expected one of {', '.join(models.ZOO)}")
    shape: Shape = inspect.signature(models.ZOO[model]).parameters["input_shape"].default
    return shape


@dataclass(frozen=True)
class Workload:
    """One model trained by SGD with momentum 0.9 at a constant rate. UsageError where the model does not fit."""

    model: str
    image_shape: Shape
    batch_size: int = 64
    precision: str = "float32"
    lr: float = LR
    seed: int = 0
    threads: int = 1
    width: float = 1.0  # a factor on the model's filters and hidden units
    images: int | None = None  # drawn ones, in a mapped file; None: as ``dataset`` says

    def __post_init__(self) -> None:
        if self.images is not None and self.images < 1:
            raise UsageError(f"{self.images} images: expected at least 1")
        _check_model(self.model, self.image_shape, self.width)

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.model}, batch {self.batch_size}"

    def network(self) -> Model:
        """The model with its initial weights, on the CPU."""
        return models.by_name(self.model, self.image_shape, CLASSES, self.seed, self.width)

    def dataset(self) -> Dataset:
        """MNIST's training images where shape and batch size fit, else images and labels drawn uniformly.

        Not those of a workload with ``images``. Their number is a multiple of the batch size, so that all steps are
        alike, and at least two batches: a training on one batch of everything would gather none.
        """
        if self.image_shape == (28, 28, 1) and not self.exceeds_mnist:
            whole = _mnist()
            return whole.take(len(whole.train) // self.batch_size * self.batch_size)  # with all test images
        count = max(2, SYNTHETIC_IMAGES // self.batch_size) * self.batch_size
        pixels = count * int(np.prod(self.image_shape))
        drawn = random.words(self.seed, (random.SYNTHETIC, 0, 0), -(-pixels // 4)).view(np.uint8)[:pixels]
        labels = random.words(self.seed, (random.SYNTHETIC, 0, 1), count) % CLASSES
        split = Split(drawn.reshape(count, *self.image_shape), labels.astype(np.int32))
        return Dataset("uniform random images and labels", split, None, None, CLASSES)

    @property
    def exceeds_mnist(self) -> bool:
        """Whether MNIST has too few training images for two such batches."""
        return 2 * self.batch_size > len(_mnist().train)

    @property
    def train_images(self) -> int | None:
        """Of ``images``, as many as are whole batches, two at least; None where ``dataset`` says how many."""
        return None if self.images is None else max(2, self.images // self.batch_size) * self.batch_size

    def image_file(self, folder: Path, place: Path | None = None) -> ImageFile:
        """An empty file in ``folder`` for this workload's drawn images, and for those of more or fewer of them."""
        return ImageFile(folder, self.image_shape, CLASSES, self.seed, place=place)

    def write(self, folder: Path, file: ImageFile | None = None) -> Dataset:
        """Write all that ``workers.serving.Job`` reads into ``folder``; returns the data.

        Test images are among it where the data have some: MNIST's 10,000. ``file``: where ``images`` are, or will be.
        Of so many only one epoch's order is written: it alone may be 80 MB.
        """
        model, epochs, mapped = self.network(), EPOCHS, None
        if self.train_images is None:
            dataset = self.dataset()
            np.save(folder / "images.npy", dataset.train.images)
        else:
            file = file or self.image_file(folder)
            file.grow(self.train_images)
            split = Split(file.images(self.train_images), file.labels(self.train_images))
            dataset = Dataset("uniform random images and labels, in a mapped file", split, None, None, CLASSES)
            epochs, mapped = 1, {"path": str(file.path), "shape": split.images.shape}
        order = [random.permutation(self.seed, (random.SHUFFLE, e, 0), len(dataset.train)) for e in range(epochs)]
        settings = {
            "model": model.config(),
            "layers": [described(layer) for layer in model.body.layers],
            "mean": model.mean,
            "std": model.std,
            "data": dataset.name,
            "classes": dataset.classes,
            "batch_size": self.batch_size,
            "precision": self.precision,
            "lr": self.lr,
            "momentum": MOMENTUM,
            "seed": self.seed,
            "threads": self.threads,
            "mapped_images": mapped,
        }
        (folder / "job.json").write_text(json.dumps(settings), encoding="utf-8")
        np.save(folder / "labels.npy", dataset.train.labels)
        np.save(folder / "order.npy", np.stack(order))
        if dataset.test is not None:
            np.save(folder / "test_images.npy", dataset.test.images)
            np.save(folder / "test_labels.npy", dataset.test.labels)
        np.savez(folder / "weights.npz", **model.state())  # type: ignore[arg-type]
        return dataset


def cases(words: tuple[str, ...]) -> list[tuple[str, int, str]]:
    """(model, batch size, precision) of each case that is named, once. Raises UsageError."""
    found = []
    for word in words:
        match = re.fullmatch(r"(\w+):(\d+(?:,\d+)*):(\w+(?:,\w+)*)", word)
        if match is None:
            raise UsageError(f"case {word!r}: expected MODEL:BATCHES:PRECISIONS, such as basic:64,256:bfloat16,tf32")
        for precision in match[3].split(","):
            if precision not in PRECISIONS:
                raise UsageError(f"case {word!r}: precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
            found += [(match[1], int(size), precision) for size in match[2].split(",")]
    return list(dict.fromkeys(found))


def described(layer: Layer) -> dict[str, Any]:
    """A built layer's configuration with its name and input shape, and so for the layers within it."""
    tree = {**layer.config(), "name": layer.name, "in_shape": list(layer.in_shape)}
    if isinstance(layer, Sequential):
        tree["layers"] = [described(inner) for inner in layer.layers]
    for part in ("body", "shortcut"):
        inner = getattr(layer, part, None)
        if isinstance(inner, Layer):
            tree[part] = described(inner)
    return tree


@functools.cache
def _check_model(model: str, image_shape: Shape, width: float) -> None:
    """UsageError where there is no such network. Once: drawing the weights of a wide one takes a while."""
    models.by_name(model, image_shape, CLASSES, 0, width)


@functools.cache
def _mnist() -> Dataset:
    """The embedded MNIST: training and test images."""
    whole = data.mnist()
    return Dataset(whole.name, whole.train, None, whole.test, whole.classes)
