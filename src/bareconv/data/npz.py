"""Arrays in an .npz archive: ``x_train, y_train[, x_test, y_test]`` as in Keras's mnist.npz, or ``images, labels``."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv.data.dataset import Dataset, Split, count_classes, describe
from bareconv.data.files import read_raw
from bareconv.errors import DataError

_LARGEST_LABEL = 65_535  # one beyond it is a mistake, and would ask for a last layer that fills the memory


def read_npz(path: Path) -> Dataset:
    """The data set in ``path``; test where there are x_test and y_test. Classes: see ``count_classes``.

    Images: uint8 (N, H, W), which become (N, H, W, 1), or (N, H, W, C). Labels: any integers from 0, (N,) or (N, 1).
    Pickled objects are never loaded. Raises DataError with the array's name.
    """
    data = read_raw(path)
    if not data.startswith(b"PK"):
        raise DataError(f"{path}: byte 0: expected an .npz archive (a zip file), got 0x{data[:4].hex() or ' nothing'}")
    try:
        archive = np.load(io.BytesIO(data), allow_pickle=False)
    except (
        Exception
    ) as error:  # zipfile, zlib and NumPy fail in many ways on a damaged archive; each is the file's fault
        raise DataError(f"{path}: expected an .npz archive, got a damaged one: {_reason(error)}") from None
    with archive:
        for images, labels in (("x_train", "y_train"), ("images", "labels")):
            if images in archive.files and labels in archive.files:
                train = _read_split(path, archive, images, labels)
                break
        else:
            found = ", ".join(archive.files[:6]) or "none"
            raise DataError(f"{path}: expected the arrays x_train and y_train, or images and labels, got {found}")
        test = None
        there = [key for key in ("x_test", "y_test") if key in archive.files]
        if len(there) == 1:
            raise DataError(f"{path}: expected both x_test and y_test or neither, got {there[0]} alone")
        if there:
            test = _read_split(path, archive, "x_test", "y_test")
    return Dataset(str(path), train, None, test, count_classes(train, test))


def _read_split(path: Path, archive: Any, images_key: str, labels_key: str) -> Split:
    images = _images(_array(path, archive, images_key), f"{path}: {images_key}")
    labels = _labels(_array(path, archive, labels_key), f"{path}: {labels_key}")
    if len(images) != len(labels):
        raise DataError(
            f"{path}: expected as many labels as images, "
            f"got {len(images)} images in {images_key} and {len(labels)} labels in {labels_key}"
        )
    return Split(images, labels)


def _array(path: Path, archive: Any, key: str) -> NDArray[Any]:
    """One member, as NumPy reads it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers that Python 2 wrote, or a damaged one that looks so
            array = archive[key]
    except Exception as error:  # as above
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path}: {key}: expected an array of numbers, got pickled Python objects, which are never loaded"
            ) from None
        raise DataError(f"{path}: {key}: expected an array, got damaged data: {_reason(error)}") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: {key}: expected an array, got something else of {len(array)} bytes")
    return array


def _images(array: NDArray[Any], where: str) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.size == 0:
        raise DataError(f"{where}: expected uint8 (N, H, W) or (N, H, W, C), none of them 0, got {describe(array)}")
    if array.ndim == 3:
        array = array[..., None]
    _, height, width, channels = array.shape
    if height in (1, 3) and width == channels > 3:
        raise DataError(f"{where}: expected the channels last, (N, H, W, C), got {describe(array)}")
    return np.ascontiguousarray(array)


def _labels(array: NDArray[Any], where: str) -> NDArray[np.int32]:
    if array.dtype.kind not in "iu" or not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        raise DataError(f"{where}: expected integers (N,), got {describe(array)}")
    flat = array.reshape(-1)
    wrong = (flat < 0) | (flat > _LARGEST_LABEL)
    if wrong.any():
        index = int(np.argmax(wrong))
        raise DataError(f"{where}: expected labels from 0 to {_LARGEST_LABEL}, got {flat[index]} at index {index}")
    return flat.astype(np.int32)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
