"""Splits: what they hold, how they are divided, and that bad labels never get through."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from data_files import embedded, refused
from hypothesis import given
from hypothesis import strategies as st

from bareconv import random
from bareconv.data import Dataset, Split
from bareconv.errors import DataError, UsageError


def split(n: int, start: int = 0, classes: int = 10) -> Split:
    """Images of 2 x 2 whose pixels all say which image it is."""
    numbers = np.arange(start, start + n)
    images = np.broadcast_to(numbers[:, None, None, None], (n, 2, 2, 1)).astype(np.uint8)
    return Split(images, (numbers % classes).astype(np.int32))


def numbers(part: Split | None) -> list[int]:
    assert part is not None
    assert part.images.flags.c_contiguous
    assert part.labels.tolist() == [n % 10 for n in part.images[:, 0, 0, 0].tolist()]  # still beside their images
    return part.images[:, 0, 0, 0].tolist()


def dataset(n: int = 20, test: int | None = None) -> Dataset:
    return Dataset("some", split(n), None, None if test is None else split(test, 100), 10)


GOOD_IMAGES, GOOD_LABELS = np.zeros((3, 2, 2, 1), np.uint8), np.zeros(3, np.int32)


@pytest.mark.parametrize(
    ("images", "labels", "parts"),
    [
        (GOOD_IMAGES.astype(np.float32), GOOD_LABELS, ["images", "uint8 (N, H, W, C)", "float32 (3, 2, 2, 1)"]),
        (GOOD_IMAGES[..., 0], GOOD_LABELS, ["images", "uint8 (N, H, W, C)", "uint8 (3, 2, 2)"]),
        (np.zeros((3, 2, 4, 1), np.uint8)[:, :, ::2], GOOD_LABELS, ["images", "contiguous"]),
        (GOOD_IMAGES[:0], GOOD_LABELS[:0], ["images", "at least one", "(0, 2, 2, 1)"]),
        (GOOD_IMAGES[:, :0], GOOD_LABELS, ["images", "at least one pixel", "(3, 0, 2, 1)"]),
        (GOOD_IMAGES, GOOD_LABELS.astype(np.int64), ["labels", "int32 (3,)", "int64 (3,)"]),
        (GOOD_IMAGES, GOOD_LABELS[:2], ["labels", "int32 (3,)", "int32 (2,)"]),
        (GOOD_IMAGES, GOOD_LABELS[:, None], ["labels", "int32 (3,)", "int32 (3, 1)"]),
        (GOOD_IMAGES, np.array([0, -1, 2], np.int32), ["labels", "below 0", "-1"]),
    ],
)
def test_a_split_checks_its_arrays(images: Any, labels: Any, parts: list[str]) -> None:
    refused(lambda: Split(images, labels), *parts)


def test_a_dataset_checks_every_splits_labels_and_shapes() -> None:
    for part, arguments in (
        ("train", (split(10), None, None)),
        ("validation", (split(5), split(10), None)),
        ("test", (split(5), None, split(10))),
    ):
        refused(
            lambda arguments=arguments: Dataset("some", *arguments, classes=8),  # type: ignore[misc]
            *("some", f"{part} labels from 0 to 7", "got 8 (image 8,"),
        )
    other = Split(np.zeros((1, 2, 3, 1), np.uint8), np.zeros(1, np.int32))
    refused(lambda: Dataset("some", split(5), other, None, 10), "validation images of 2 x 2 x 1", "2 x 3 x 1")


def test_shape_length_and_evaluation() -> None:
    data = dataset(20)
    assert len(data.train) == 20
    assert data.image_shape == (2, 2, 1)
    assert data.evaluation is None
    held = data.hold_out(5, seed=0)
    assert held.evaluation == ("validation", held.validation)
    tested = dataset(20, test=7).hold_out(5, seed=0)
    assert tested.evaluation == ("test", tested.test)
    assert tested.validation is not None


@given(st.integers(2, 40), st.data(), st.integers(-(2**63), 2**64))
def test_hold_out_divides_train(n: int, data: st.DataObject, seed: int) -> None:
    count = data.draw(st.integers(1, n - 1))
    whole = dataset(n, test=3)
    parts = whole.hold_out(count, seed)
    kept, held = numbers(parts.train), numbers(parts.validation)
    assert (len(kept), len(held)) == (n - count, count)
    assert sorted(kept + held) == list(range(n))
    assert kept == sorted(kept)
    assert held == sorted(held)
    # The documented draw, so that a split can be made again outside of this class.
    assert held == sorted(random.permutation(seed, (random.SPLIT, 0, 0), n)[:count].tolist())
    assert parts.test is whole.test
    assert len(whole.train) == n
    assert whole.validation is None
    assert numbers(whole.hold_out(count, seed).validation) == held


def test_hold_out_is_random_and_follows_the_seed() -> None:
    data = dataset(200)
    first, second = (numbers(data.hold_out(50, seed).validation) for seed in (1, 2))
    assert first != second
    for held in (first, second):
        assert held != list(range(50))
        assert 60 < np.mean(held) < 140  # 99.5 for an even draw, with a standard deviation of 7


@pytest.mark.parametrize(("share", "count"), [(0.1, 2), (0.5, 10), (0.12, 2), (0.13, 3), (0.95, 19), (0.03, 1)])
def test_hold_out_of_a_share(share: float, count: int) -> None:
    assert len(numbers(dataset(20).hold_out(share, 0).validation)) == count


@pytest.mark.parametrize("amount", [0, -1, 20, 21, 0.0, 1.0, -0.5, 1.5, 5.0, float("nan"), 0.001, 0.999])
def test_hold_out_refuses_what_does_not_fit(amount: float) -> None:
    with pytest.raises(UsageError, match=r"^hold out .*expected") as caught:
        dataset(20).hold_out(amount, 0)
    assert not isinstance(caught.value, DataError)
    assert str(amount) in str(caught.value)


def test_hold_out_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="there is a validation part already, of 5 images"):
        dataset(20).hold_out(5, 0).hold_out(5, 0)


def test_take() -> None:
    whole = dataset(20, test=9).hold_out(6, 3)
    few = whole.take(4, 2)
    assert numbers(few.train) == numbers(whole.train)[:4]
    assert numbers(few.validation) == numbers(whole.validation)[:2]
    assert numbers(few.test) == [100, 101]
    assert (few.name, few.classes) == (whole.name, whole.classes)
    assert len(whole.train) == 14
    all_held_out = whole.take(4)
    assert (len(all_held_out.train), len(numbers(all_held_out.validation)), len(numbers(all_held_out.test))) == (
        4,
        6,
        9,
    )
    assert len(whole.take(None, 1).train) == 14
    assert len(whole.take(1000, 1000).train) == 14
    assert dataset(20).take(3).test is None
    for train, held_out, message in ((0, None, "take 0 train"), (-1, 1, "take -1 train"), (1, 0, "take 0 held-out")):
        with pytest.raises(UsageError, match=message):
            whole.take(train, held_out)


def test_the_embedded_data_divided() -> None:
    data = embedded().hold_out(0.1, seed=7)
    assert data.validation is not None
    assert (len(data.train), len(data.validation), data.image_shape) == (54_000, 6_000, (28, 28, 1))
    # Every class is held out about alike: 600 each, standard deviation 22.
    assert np.bincount(data.validation.labels).min() > 450


@pytest.mark.parametrize("amount", [1, 0.1])
def test_of_a_single_image_none_can_be_held_out(amount: float) -> None:
    with pytest.raises(UsageError, match="some has 1 training image: expected at least 2"):
        dataset(1).hold_out(amount, 0)
