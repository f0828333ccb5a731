"""Files to read, made without the code that reads them."""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.typing import NDArray

from bareconv.data import Dataset, mnist
from bareconv.errors import DataError

Images = NDArray[np.uint8]
Labels = NDArray[np.int32]


@functools.cache
def embedded() -> Dataset:
    """The embedded MNIST, loaded once for all tests; nobody may write to it."""
    data = mnist()
    for split in (data.train, data.test):
        assert split is not None
        split.images.flags.writeable = False
        split.labels.flags.writeable = False
    return data


def csv_text(images: Images, labels: Labels | None, comma: str = ",", newline: str = "\n", mark: str = "{}") -> str:
    """Kaggle's format, a value at a time; ``mark`` is how a value is written."""
    pixels = images.reshape(len(images), -1)
    header = ["label"] * (labels is not None) + [f"pixel{i}" for i in range(pixels.shape[1])]
    lines = [comma.join(header)]
    for index, row in enumerate(pixels.tolist()):
        values = row if labels is None else [int(labels[index]), *row]
        lines.append(comma.join(mark.format(value) for value in values))
    return newline.join(lines) + newline


def idx_bytes(values: NDArray[np.generic], code: int = 0x08) -> bytes:
    """The IDX format as its description says, big-endian."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, code, values.ndim, *values.shape) + values.tobytes()


@st.composite
def labelled_images(draw: st.DrawFn, square: bool = False) -> tuple[Images, Labels]:
    """A few small images (N, H, W, 1), and labels from 0 to 9."""
    n = draw(st.integers(1, 5))
    height = draw(st.integers(1, 4))
    width = height if square else draw(st.integers(1, 4))
    size = n * height * width
    # Bytes, not numbers: one draw. Small values make values of one and two digits as likely as of three.
    raw = draw(st.binary(min_size=size, max_size=size))
    shift = draw(st.sampled_from([0, 2, 5]))
    labels = draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))
    images = (np.frombuffer(raw, np.uint8) >> np.uint8(shift)).reshape(n, height, width, 1)
    return images, np.array(labels, np.int32)


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A way to harm a file: a byte changed, removed or put in, a piece cut off, or doubled."""
    kind = draw(st.sampled_from(["change", "remove", "insert", "cut", "double", "append"]))
    where = draw(st.floats(0, 1, exclude_max=True))
    junk = draw(st.binary(min_size=1, max_size=3))

    def harm(data: bytes) -> bytes:
        at = int(where * len(data))
        return {
            "change": data[:at] + junk + data[at + len(junk) :],
            "remove": data[:at] + data[at + 1 :],
            "insert": data[:at] + junk + data[at:],
            "cut": data[:at],
            "double": data[:at] + data[at // 2 :],
            "append": data + junk,
        }[kind]

    return harm


def refused(read: Callable[[], object], *parts: str) -> str:
    """``read`` raises DataError in one line that contains all ``parts``; returns the line."""
    with pytest.raises(DataError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    return message


def read_or_refused(read: Callable[[], object]) -> None:
    """``read`` works, or raises DataError in one line; nothing else."""
    try:
        read()
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017  (either outcome is right)


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """``path`` without the permission to read it, also for root, who becomes nobody for the while."""
    if not hasattr(os, "geteuid"):
        pytest.skip("no such permissions on this system")
    root = os.geteuid() == 0
    path.chmod(0)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        path.chmod(0o700)
