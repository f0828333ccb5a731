"""The record of a training: every figure from a handful of steps that can be added up by hand."""

from __future__ import annotations

import json

import pytest

from bareconv.training import EpochRecord, History

# Ten images in batches of four: three steps an epoch, the last of two images.
LOSS = [3.0, 2.0, 1.0, 0.75, 0.5]
CORRECT = [1, 2, 2, 3, 4]
SIZES = [4, 4, 2, 4, 4]


def history(steps=5, **more):
    return History(4, 10, loss=LOSS[:steps], correct=CORRECT[:steps], **more)


@pytest.mark.parametrize(
    ("images", "batch", "steps"), [(10, 4, 3), (12, 4, 3), (13, 4, 4), (4, 4, 1), (1, 1, 1), (60_000, 64, 938)]
)
def test_steps_per_epoch(images, batch, steps):
    assert History(batch, images).steps_per_epoch == steps


def test_images_seen_count_short_batches():
    assert [history(steps).images_seen for steps in range(6)] == [sum(SIZES[:steps]) for steps in range(6)]
    three_epochs = History(4, 10, loss=[1.0] * 9)
    assert three_epochs.images_seen == 30
    assert History(10, 10, loss=[1.0] * 7).images_seen == 70  # one batch an epoch


def test_images_per_second():
    assert history(train_seconds=0.5).images_per_second == sum(SIZES) / 0.5
    assert History(4, 10).images_per_second == 0


@pytest.mark.parametrize("first", range(5))
def test_means_are_over_images(first):
    loss, accuracy = history().since(first)
    each = [value for value, size in zip(LOSS, SIZES, strict=True) for _ in range(size)][sum(SIZES[:first]) :]
    assert loss == pytest.approx(sum(each) / len(each), rel=1e-12)
    assert accuracy == sum(CORRECT[first:]) / len(each)


def test_nothing_yet():
    empty = History(4, 10)
    assert (empty.iterations, empty.images_seen, empty.since(0)) == (0, 0, (0.0, 0.0))
    assert history().since(5) == (0.0, 0.0)
    assert empty.test_accuracy is None
    assert empty.test_loss is None
    assert not empty.stopped


def test_last_epoch_tells_the_accuracy():
    epochs = [EpochRecord(n, 3 * n, 1.0, 0.5, 0.1, 0.05, test_loss=1 / n, test_accuracy=0.3 * n) for n in (1, 2, 3)]
    record = History(4, 10, epochs=epochs)
    assert record.test_accuracy == pytest.approx(0.9)
    assert record.test_loss == 1 / 3


def test_plain_json():
    record = history(epochs=[EpochRecord(1, 3, 2.2, 0.5, 0.25, 0.1)])
    again = json.loads(json.dumps(record.to_json()))
    assert again["loss"] == LOSS
    assert again["epochs"] == [
        {
            "epoch": 1,
            "iterations": 3,
            "train_loss": 2.2,
            "train_accuracy": 0.5,
            "train_seconds": 0.25,
            "learning_rate": 0.1,
            "test_loss": None,
            "test_accuracy": None,
        }
    ]
