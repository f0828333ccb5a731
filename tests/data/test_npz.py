"""Archives of NumPy arrays."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import damage, labelled_images, read_or_refused, refused, unreadable
from hypothesis import given
from hypothesis import strategies as st

from bareconv.data import load

X = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
Y = np.array([7, 3], np.uint8)


def write(folder: Path, compressed: bool = False, **arrays: Any) -> Path:
    path = folder / "data.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def test_reads_what_keras_offers(tmp_path: Path) -> None:
    path = write(tmp_path, True, x_train=X, y_train=Y, x_test=X[:1] + 1, y_test=Y[:1] + 2)
    data = load(path)
    assert (data.name, data.validation, data.image_shape) == (str(path), None, (3, 4, 1))
    np.testing.assert_array_equal(data.train.images[..., 0], X)
    assert data.train.labels.dtype == np.int32
    assert data.train.labels.tolist() == [7, 3]
    assert data.test is not None
    np.testing.assert_array_equal(data.test.images[..., 0], X[:1] + 1)
    assert data.test.labels.tolist() == [9]
    assert data.classes == 10  # the largest label, 9, is in test


def test_test_may_be_missing(tmp_path: Path) -> None:
    assert load(write(tmp_path, x_train=X, y_train=Y)).test is None
    assert load(write(tmp_path, images=X, labels=Y)).test is None


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.int64, np.uint64, ">i4"])
def test_labels_of_any_integer_type(dtype: Any, tmp_path: Path) -> None:
    for shape in ((2,), (2, 1)):
        labels = load(write(tmp_path, images=X, labels=Y.astype(dtype).reshape(shape))).train.labels
        assert labels.dtype == np.int32
        assert labels.tolist() == [7, 3]


def test_colour_and_any_memory_order(tmp_path: Path) -> None:
    colour = np.random.default_rng(1).integers(0, 256, (4, 6, 5, 3), np.uint8)
    data = load(write(tmp_path, images=np.asfortranarray(colour), labels=np.zeros(4, int)))
    assert data.train.images.flags.c_contiguous
    np.testing.assert_array_equal(data.train.images, colour)
    assert (data.image_shape, data.classes) == ((6, 5, 3), 2)


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        ({"a": X, "b": Y}, ["x_train and y_train", "images and labels", "got a, b"]),
        ({}, ["x_train and y_train", "got none"]),
        ({"x_train": X}, ["x_train and y_train", "got x_train"]),
        ({"x_train": X, "y_train": Y, "x_test": X}, ["both x_test and y_test", "x_test alone"]),
        ({"x_train": X, "y_train": Y, "y_test": Y}, ["both x_test and y_test", "y_test alone"]),
        ({"images": X / 255, "labels": Y}, ["images", "expected uint8 (N, H, W)", "float64 (2, 3, 4)"]),
        ({"images": X.astype(np.int64), "labels": Y}, ["images", "expected uint8", "int64 (2, 3, 4)"]),
        ({"images": X.reshape(2, 12), "labels": Y}, ["images", "(N, H, W)", "uint8 (2, 12)"]),
        ({"images": X[0, 0, 0], "labels": Y}, ["images", "(N, H, W)", "uint8 ()"]),
        ({"images": X[:0], "labels": Y[:0]}, ["images", "none of them 0", "uint8 (0, 3, 4)"]),
        ({"images": np.zeros((2, 3, 8, 8), np.uint8), "labels": Y}, ["images", "channels last", "(2, 3, 8, 8)"]),
        ({"images": X, "labels": Y.astype(float)}, ["labels", "expected integers (N,)", "float64 (2,)"]),
        ({"images": X, "labels": Y > 5}, ["labels", "expected integers (N,)", "bool (2,)"]),
        ({"images": X, "labels": np.eye(2, dtype=int)}, ["labels", "expected integers (N,)", "int64 (2, 2)"]),
        ({"images": X, "labels": np.array(["7", "3"])}, ["labels", "expected integers (N,)", "<U1 (2,)"]),
        ({"images": X, "labels": np.array([7, -3])}, ["labels", "from 0", "-3 at index 1"]),
        ({"images": X, "labels": np.array([2**40, 3])}, ["labels", "65535", f"{2**40} at index 0"]),
        ({"images": X, "labels": np.array([2**64 - 1, 3], np.uint64)}, ["labels", "65535", f"{2**64 - 1} at index 0"]),
        ({"images": X, "labels": Y[:1]}, ["2 images in images", "1 labels in labels"]),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y[:1]}, ["2 images in x_test", "1 labels in y_test"]),
        ({"x_train": X, "y_train": Y, "x_test": X[:, :2], "y_test": Y}, ["test images of 3 x 4 x 1", "2 x 4 x 1"]),
        ({"images": np.array([X, None], object), "labels": Y}, ["images", "pickled Python objects", "never"]),
        ({"images": X, "labels": np.array([7, None], object)}, ["labels", "pickled Python objects", "never"]),
    ],
)
def test_refuses_arrays(arrays: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    path = write(tmp_path, **arrays)
    refused(lambda: load(path), str(path), *parts)


def test_refuses_what_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    refused(lambda: load(path), str(path), "no such file")
    array = io.BytesIO()
    np.save(array, X)
    for content, parts in (
        (b"", ["byte 0", ".npz archive", "nothing"]),
        (array.getvalue(), ["byte 0", ".npz archive", "0x934e554d"]),
        (b"PK\x03\x04 and no more", [".npz archive", "damaged"]),
    ):
        path.write_bytes(content)
        refused(lambda: load(path), str(path), *parts)
    with unreadable(path):
        refused(lambda: load(path), str(path), "permission")


def test_refuses_members_that_are_no_arrays(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", "hello")
        archive.writestr("labels.npy", "hello")
    refused(lambda: load(path), str(path), "images", "expected an array", "5 bytes")


@given(labelled_images(), st.booleans(), st.booleans())
def test_round_trip(tmp_path: Path, sample: tuple[np.ndarray, np.ndarray], flat: bool, compressed: bool) -> None:
    images, labels = sample
    path = write(tmp_path, compressed, x_train=images[..., 0] if flat else images, y_train=labels)
    train = load(path).train
    np.testing.assert_array_equal(train.images, images)
    np.testing.assert_array_equal(train.labels, labels)


@given(damage(), st.booleans())
def test_damage_is_refused_or_harmless(tmp_path: Path, harm: Callable[[bytes], bytes], compressed: bool) -> None:
    path = write(tmp_path, compressed, images=X, labels=Y)
    path.write_bytes(harm(path.read_bytes()))
    read_or_refused(lambda: load(path))


@given(st.data())
def test_a_damaged_array_header_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    """Inside a sound zip archive, whose check sums would have told otherwise."""
    buffer = io.BytesIO()
    np.save(buffer, X)
    header = data.draw(damage())(buffer.getvalue())
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", header)
        archive.writestr("labels.npy", buffer.getvalue())
    read_or_refused(lambda: load(path))
