"""A task that is learnt in a few milliseconds, and a model with all that a training has to keep track of."""

from __future__ import annotations

import numpy as np
import pytest

from bareconv import nn
from bareconv.data import Dataset, Split
from bareconv.training import ENGINES, why_no_plan


def drawn(rng, count, classes=4):
    """Images of a bright square, one place for each class, under noise."""
    labels = rng.integers(0, classes, count).astype(np.int32)
    images = rng.integers(0, 120, (count, 8, 8, 1)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 4 * (label // 2), 4 * (label % 2)
        image[row : row + 4, column : column + 4] += 90
    return Split(images, labels)


@pytest.fixture(scope="session")
def squares():
    """103 images to train on: batches of 16 make seven steps, the last of 7 images."""
    rng = np.random.default_rng(7)
    return Dataset("squares", drawn(rng, 103), None, drawn(rng, 37), 4)


@pytest.fixture(params=ENGINES)
def engine(request):
    """Every engine of the CPU; the reference is the one that also runs elsewhere."""
    if request.param == "plan" and why_no_plan() is not None:
        pytest.skip(f"no plan: {why_no_plan()}")
    return request.param


@pytest.fixture
def make_model():
    """A new model with weights, running statistics and dropout."""

    def make(seed=3):
        layers = [
            *(nn.Conv2d(4, 3, bias=False), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dense(12), nn.ReLU(), nn.Dropout(0.25), nn.Dense(4)),
        ]
        return nn.Model(layers, (8, 8, 1), seed=seed, name="tiny")

    return make
