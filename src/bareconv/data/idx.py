"""The IDX format, in which MNIST was published: a header of big-endian numbers, then the values.

    byte 0, 1   zero
    byte 2      the type of the values: 0x08 is unsigned byte
    byte 3      how many dimensions: 3 for images (N, H, W), 1 for labels (N)
    then        each dimension in 4 bytes, then the values, the last dimension changing fastest

Source: "The IDX file format", http://yann.lecun.com/exdb/mnist/.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bareconv.data.dataset import Dataset, Split, count_classes, dimensions
from bareconv.data.files import read_bytes, unreadable
from bareconv.errors import DataError

_TYPES = {
    0x08: "unsigned byte",
    0x09: "signed byte",
    0x0B: "int16",
    0x0C: "int32",
    0x0D: "float32",
    0x0E: "float64",
}
_WHAT = {1: "labels", 3: "images"}


def read_folder(folder: Path) -> Dataset:
    """The data set in a folder of IDX files named as MNIST's are, each packed with gzip or not.

    train-images-idx3-ubyte and train-labels-idx1-ubyte must be there, t10k-images-idx3-ubyte and
    t10k-labels-idx1-ubyte may be (test); "." before idx, ".gz" at the end. Classes: see ``count_classes``.
    Raises DataError.
    """
    try:
        names = {entry.name for entry in folder.iterdir() if entry.is_file()}
    except OSError as error:
        raise unreadable(folder, error) from None
    train = _read_pair(folder, names, "train")
    if train is None:
        raise DataError(
            f"{folder}: expected train-images-idx3-ubyte and train-labels-idx1-ubyte (or .gz), got {_listing(names)}"
        )
    test = _read_pair(folder, names, "t10k")
    return Dataset(str(folder), train, None, test, count_classes(train, test))


def parse_images(data: bytes, name: str) -> NDArray[np.uint8]:
    """Unpacked IDX bytes as images, uint8 (N, H, W, 1). Raises DataError, with ``name`` and the byte."""
    return _parse(data, name, 3)[..., None]


def parse_labels(data: bytes, name: str) -> NDArray[np.int32]:
    """Unpacked IDX bytes as labels, int32 (N,). Raises DataError, with ``name`` and the byte."""
    return _parse(data, name, 1).astype(np.int32)


def _read_pair(folder: Path, names: set[str], part: str) -> Split | None:
    """Images and labels of one part; None where neither is there."""
    images_name = _find(names, f"{part}-images", "idx3-ubyte")
    labels_name = _find(names, f"{part}-labels", "idx1-ubyte")
    if images_name is None and labels_name is None:
        return None
    if images_name is None or labels_name is None:
        missing = f"{part}-labels-idx1-ubyte" if labels_name is None else f"{part}-images-idx3-ubyte"
        raise DataError(f"{folder}: expected {missing} (or .gz) beside {images_name or labels_name}, but it is missing")
    images = parse_images(read_bytes(folder / images_name), str(folder / images_name))
    labels = parse_labels(read_bytes(folder / labels_name), str(folder / labels_name))
    if len(images) != len(labels):
        raise DataError(
            f"{folder}: expected as many labels as images, "
            f"got {len(images)} images in {images_name} and {len(labels)} labels in {labels_name}"
        )
    return Split(images, labels)


def _find(names: set[str], stem: str, ending: str) -> str | None:
    """The file's name among ``names`` in whichever spelling; the unpacked one where both are there."""
    spellings = (f"{stem}{dot}{ending}{packed}" for packed in ("", ".gz") for dot in "-.")
    return next((name for name in spellings if name in names), None)


def _listing(names: set[str]) -> str:
    if not names:
        return "no files"
    shown = sorted(names)[:4]
    hint = " (to read train.csv, give its path)" if "train.csv" in names else ""
    return ", ".join(shown) + (f" and {len(names) - 4} more" if len(names) > 4 else "") + hint


def _parse(data: bytes, name: str, rank: int) -> NDArray[np.uint8]:
    """The values of unpacked IDX bytes of ``rank`` dimensions, uint8; they own their memory."""
    header = 4 + 4 * rank
    if len(data) < header:
        raise DataError(f"{name}: expected a header of {header} bytes, but the file ends at byte {len(data)}")
    if data[:2] != b"\0\0":
        raise DataError(
            f"{name}: byte 0: expected the magic number 0x{0x0800 + rank:08x} (IDX, {_WHAT[rank]}), "
            f"got 0x{data[:4].hex()}"
        )
    if data[2] != 0x08:
        got = f"0x{data[2]:02x} ({_TYPES.get(data[2], 'no IDX type')})"
        raise DataError(f"{name}: byte 2: expected the type code 0x08 (unsigned byte), got {got}")
    if data[3] != rank:
        got = f"{data[3]} ({_WHAT[data[3]]})" if data[3] in _WHAT else str(data[3])
        raise DataError(f"{name}: byte 3: expected {rank} as the number of dimensions ({_WHAT[rank]}), got {got}")
    shape = struct.unpack(f">{rank}I", data[4:header])
    end = header + math.prod(shape)
    if end == header:
        raise DataError(f"{name}: byte 4: expected at least one of {_WHAT[rank]}, got {dimensions(shape)}")
    if len(data) < end:
        raise DataError(
            f"{name}: expected {end} bytes for {dimensions(shape)} {_WHAT[rank]}, "
            f"but the data is truncated at byte {len(data)}"
        )
    if len(data) > end:
        raise DataError(
            f"{name}: byte {end}: expected the end after {dimensions(shape)} {_WHAT[rank]}, "
            f"got {len(data) - end} trailing bytes"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()
