"""What every reader returns: a Split of images and labels, and a Dataset of up to three of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv import random
from bareconv.errors import DataError, UsageError


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels, in one order, on the host.

    images: uint8 (N, H, W, C), C-contiguous; labels: int32 (N,), at least 0; N >= 1. Raises DataError otherwise.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or not self.images.flags.c_contiguous:
            raise DataError(f"images: expected uint8 (N, H, W, C), contiguous, got {describe(self.images)}")
        if self.images.size == 0:
            raise DataError(f"images: expected at least one image of at least one pixel, got {describe(self.images)}")
        if self.labels.dtype != np.int32 or self.labels.shape != self.images.shape[:1]:
            raise DataError(f"labels: expected int32 ({len(self.images)},), got {describe(self.labels)}")
        if self.labels.min() < 0:
            raise DataError(f"labels: expected none below 0, got {self.labels.min()}")

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, index: slice | NDArray[np.int64]) -> Split:
        """The images and labels at ``index``: a slice gives a view, an array of positions a copy."""
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A name, the splits there are, and how many classes the labels tell apart.

    Labels lie in 0 .. classes-1 and all splits' images have one shape. Raises DataError where that is not so: labels
    are checked here, on the host, because a GPU that indexes with one out of range does so silently.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split | None
    classes: int

    def __post_init__(self) -> None:
        for part, split in self._parts():
            got = split.images.shape[1:]
            if got != self.image_shape:
                raise DataError(
                    f"{self.name}: expected {part} images of {dimensions(self.image_shape)} as in train, "
                    f"got {dimensions(got)}"
                )
            if split.labels.max() >= self.classes:
                index = int(np.argmax(split.labels >= self.classes))
                raise DataError(
                    f"{self.name}: expected {part} labels from 0 to {self.classes - 1}, "
                    f"got {split.labels[index]} (image {index}, counted from 0)"
                )

    def _parts(self) -> list[tuple[str, Split]]:
        named = (("train", self.train), ("validation", self.validation), ("test", self.test))
        return [(part, split) for part, split in named if split is not None]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        _, height, width, channels = self.train.images.shape
        return height, width, channels

    @property
    def evaluation(self) -> tuple[str, Split] | None:
        """What a trained model is judged on: ("test", test), else ("validation", validation), else None."""
        held_out = dict(self._parts()[1:])
        for part in ("test", "validation"):
            if part in held_out:
                return part, held_out[part]
        return None

    def hold_out(self, amount: int | float, seed: int) -> Dataset:
        """A random part of train moved to validation; the rest of train and the part each keep their order.

        amount: a number of images (int), or a share between 0 and 1 (float), rounded to whole images. The same seed
        holds out the same images. Raises UsageError where either side would be empty, or there is a validation part.
        """
        n = len(self.train)
        if self.validation is not None:
            raise UsageError(f"{self.name}: there is a validation part already, of {len(self.validation)} images")
        if isinstance(amount, float) and not 0 < amount < 1:
            raise UsageError(f"hold out {amount}: expected a share between 0 and 1, or a whole number of images")
        if n < 2:
            raise UsageError(f"{self.name} has {n} training image: expected at least 2, to hold out some and keep some")
        count = round(amount * n) if isinstance(amount, float) else amount
        if not 0 < count < n:
            raise UsageError(
                f"hold out {amount}: expected from 1 to {n - 1} of {self.name}'s {n} training images, got {count}"
            )
        order = random.permutation(seed, (random.SPLIT, 0, 0), n)
        held, kept = np.sort(order[:count]), np.sort(order[count:])
        return replace(self, train=self.train.part(kept), validation=self.train.part(held))

    def judged_while_trained(self) -> tuple[Dataset, Split | None]:
        """Without its test part, where there is a validation part to judge by meanwhile; and that, left for the end."""
        return (self, None) if self.validation is None else (replace(self, test=None), self.test)

    def take(self, train: int | None, held_out: int | None = None) -> Dataset:
        """The first so many images of train, and of validation and test each; None, or more than there are: all.

        Raises UsageError for a number below 1.
        """
        for what, count in (("train", train), ("held-out", held_out)):
            if count is not None and count < 1:
                raise UsageError(f"take {count} {what} images: expected at least 1")
        few = slice(held_out)
        return replace(
            self,
            train=self.train.part(slice(train)),
            validation=None if self.validation is None else self.validation.part(few),
            test=None if self.test is None else self.test.part(few),
        )


def count_classes(train: Split, test: Split | None) -> int:
    """How many classes a data set without a declared number has: its largest label + 1, over both splits.

    At least 10 for images of 28 x 28 x 1, the shape of digits, so that a small sample without a nine trains the same
    model as the whole; at least 2 otherwise, for there is nothing to tell apart in one class.
    """
    largest = max(int(split.labels.max()) for split in (train, test) if split is not None)
    return max(largest + 1, 10 if train.images.shape[1:] == (28, 28, 1) else 2)


def dimensions(shape: tuple[int, ...]) -> str:
    """A shape as a person writes it: (28, 28, 1) is "28 x 28 x 1"."""
    return " x ".join(str(n) for n in shape)


def describe(array: NDArray[Any]) -> str:
    """An array's dtype and shape, for a message: "float32 (10, 28, 28)"."""
    return f"{array.dtype} {array.shape}"
