"""Folders of IDX files."""

from __future__ import annotations

import gzip
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_files import damage, embedded, idx_bytes, labelled_images, read_or_refused, refused, unreadable
from hypothesis import given
from hypothesis import strategies as st

from bareconv.data import load

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
LABELS = np.array([7, 3], np.uint8)
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def write(folder: Path, part: str = "train", dot: str = "-", packed: bool = False, n: int = 2) -> None:
    for kind, rank, values in (("images", 3, IMAGES[:n]), ("labels", 1, LABELS[:n])):
        data = idx_bytes(values)
        name = f"{part}-{kind}{dot}idx{rank}-ubyte"
        (folder / (name + ".gz" if packed else name)).write_bytes(gzip.compress(data, mtime=0) if packed else data)


@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_reads_a_folder(dot: str, packed: bool, tmp_path: Path) -> None:
    write(tmp_path, "train", dot, packed)
    data = load(tmp_path)
    assert (data.name, data.validation, data.test) == (str(tmp_path), None, None)
    assert data.image_shape == (3, 4, 1)
    assert data.classes == 8  # no shape of digits, and the largest label is 7
    assert data.train.images.dtype == np.uint8
    np.testing.assert_array_equal(data.train.images, IMAGES[..., None])
    assert data.train.labels.dtype == np.int32
    assert data.train.labels.tolist() == [7, 3]

    write(tmp_path, "t10k", dot, packed, n=1)
    data = load(str(tmp_path))
    assert data.test is not None
    np.testing.assert_array_equal(data.test.images, IMAGES[:1, ..., None])
    assert data.test.labels.tolist() == [7]


def test_gzip_is_told_by_content(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / TRAIN_IMAGES).write_bytes(gzip.compress(idx_bytes(IMAGES), mtime=0))
    (tmp_path / TRAIN_LABELS).rename(tmp_path / f"{TRAIN_LABELS}.gz")
    assert len(load(tmp_path).train) == 2


def test_reads_the_files_that_the_package_embeds(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "src/bareconv/data/mnist"
    for file in source.glob("t10k*"):
        shutil.copy(file, tmp_path / file.name.replace("t10k", "train"))
    data = load(tmp_path)
    test = embedded().test
    assert test is not None
    np.testing.assert_array_equal(data.train.images, test.images)
    np.testing.assert_array_equal(data.train.labels, test.labels)
    assert data.classes == 10


def test_digits_without_a_nine_are_still_of_ten_classes(tmp_path: Path) -> None:
    (tmp_path / TRAIN_IMAGES).write_bytes(idx_bytes(np.zeros((2, 28, 28), np.uint8)))
    (tmp_path / TRAIN_LABELS).write_bytes(idx_bytes(np.array([0, 1], np.uint8)))
    assert load(tmp_path).classes == 10
    (tmp_path / TRAIN_LABELS).write_bytes(idx_bytes(np.array([0, 25], np.uint8)))
    assert load(tmp_path).classes == 26  # letters


GOOD = idx_bytes(IMAGES)  # 16 + 24 bytes


@pytest.mark.parametrize(
    ("name", "data", "parts"),
    [
        (TRAIN_IMAGES, b"", ["header of 16 bytes", "ends at byte 0"]),
        (TRAIN_IMAGES, GOOD[:9], ["header of 16 bytes", "ends at byte 9"]),
        (TRAIN_LABELS, b"\0\0\x08\x01", ["header of 8 bytes", "ends at byte 4"]),
        (TRAIN_IMAGES, b"\x01" + GOOD[1:], ["byte 0", "0x00000803", "0x01000803"]),
        (TRAIN_IMAGES, b"label,pixel0,pixel1\n", ["byte 0", "0x00000803", "0x6c616265"]),
        (TRAIN_LABELS, b"label,pixel0,pixel1\n", ["byte 0", "0x00000801", "0x6c616265"]),
        (TRAIN_IMAGES, idx_bytes(IMAGES.astype(">f4"), 0x0D), ["byte 2", "0x08", "unsigned byte", "0x0d", "float32"]),
        (TRAIN_IMAGES, idx_bytes(IMAGES, 0x42), ["byte 2", "0x08", "0x42"]),
        (TRAIN_IMAGES, idx_bytes(LABELS) + b"12345678", ["byte 3", "expected 3", "images", "got 1", "labels"]),
        (TRAIN_LABELS, GOOD, ["byte 3", "expected 1", "labels", "got 3", "images"]),
        (TRAIN_IMAGES, idx_bytes(IMAGES[None]), ["byte 3", "expected 3", "got 4"]),
        (TRAIN_IMAGES, idx_bytes(IMAGES[:0]), ["byte 4", "at least one", "0 x 3 x 4"]),
        (TRAIN_LABELS, idx_bytes(LABELS[:0]), ["byte 4", "at least one", "got 0"]),
        (TRAIN_IMAGES, GOOD[:-1], ["expected 40 bytes", "2 x 3 x 4", "truncated at byte 39"]),
        (TRAIN_IMAGES, GOOD[:4] + b"\xff" * 12 + GOOD[16:], ["4294967295 x 4294967295", "truncated at byte 40"]),
        (TRAIN_IMAGES, GOOD + b"\0\0\0", ["byte 40", "expected the end", "3 trailing bytes"]),
        (TRAIN_IMAGES, gzip.compress(GOOD, mtime=0)[:-9], ["cut off at byte"]),
        (TRAIN_IMAGES, gzip.compress(GOOD, mtime=0)[:-8] + bytes(8), ["damaged gzip data", "incorrect data check"]),
        (TRAIN_IMAGES, b"\x1f\x8b" + GOOD, ["damaged gzip data near byte 0"]),
        (TRAIN_IMAGES, idx_bytes(IMAGES[:1]), ["1 images in train-images", "2 labels in train-labels"]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_refuses(name: str, data: bytes, parts: list[str], packed: bool, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / name).unlink()
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(data, mtime=0) if packed and not data.startswith(b"\x1f\x8b") else data)
    message = refused(lambda: load(tmp_path), str(tmp_path), *parts)
    assert name in message


def test_says_where_a_gzip_file_is_damaged(tmp_path: Path) -> None:
    header = gzip.compress(b"", mtime=0)[:10]
    # RFC 1951: a stored block is its type, its length and the length's complement, and the bytes.
    stored = struct.pack("<BHH", 0, 60_000, 60_000 ^ 0xFFFF) + bytes(60_000)
    (tmp_path / f"{TRAIN_IMAGES}.gz").write_bytes(header + stored + struct.pack("<BHH", 0, 60_000, 0) + bytes(60_000))
    (tmp_path / TRAIN_LABELS).touch()
    message = refused(lambda: load(tmp_path), f"{TRAIN_IMAGES}.gz", "damaged gzip data near byte", "stored block")
    where = int(message.split("near byte ")[1].split(":")[0])
    assert len(header + stored) - 1024 < where <= len(header + stored) + 5


def test_a_missing_partner_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, "t10k")
    for name in ("t10k-labels-idx1-ubyte", "t10k-images-idx3-ubyte", TRAIN_LABELS, TRAIN_IMAGES):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        refused(lambda name=name: load(tmp_path), str(tmp_path), f"expected {name}", "missing")  # type: ignore[misc]
        (tmp_path / name).write_bytes(content)
    load(tmp_path)


def test_a_folder_without_the_files_is_refused(tmp_path: Path) -> None:
    refused(lambda: load(tmp_path), str(tmp_path), TRAIN_IMAGES, TRAIN_LABELS, "no files")
    (tmp_path / "train.csv").touch()
    refused(lambda: load(tmp_path), TRAIN_IMAGES, "got train.csv", "give its path")
    write(tmp_path, "t10k")
    refused(lambda: load(tmp_path), TRAIN_IMAGES, "got t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, train.csv")
    with unreadable(tmp_path):
        refused(lambda: load(tmp_path), str(tmp_path), "permission")


def test_test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, "t10k")
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(IMAGES.reshape(2, 4, 3)))
    refused(lambda: load(tmp_path), str(tmp_path), "test images of 3 x 4 x 1", "got 4 x 3 x 1")


def test_an_idx_file_alone_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    refused(lambda: load(tmp_path / TRAIN_IMAGES), TRAIN_IMAGES, "give the folder")


@given(labelled_images(), st.booleans())
def test_round_trip(tmp_path: Path, sample: tuple[np.ndarray, np.ndarray], packed: bool) -> None:
    images, labels = sample
    for name, values in ((TRAIN_IMAGES, images[..., 0]), (TRAIN_LABELS, labels.astype(np.uint8))):
        data = idx_bytes(values)
        (tmp_path / name).write_bytes(gzip.compress(data, 1, mtime=0) if packed else data)
    train = load(tmp_path).train
    np.testing.assert_array_equal(train.images, images)
    np.testing.assert_array_equal(train.labels, labels)


@given(damage(), st.booleans(), st.sampled_from([TRAIN_IMAGES, TRAIN_LABELS]))
def test_damage_is_refused_or_harmless(tmp_path: Path, harm: Callable[[bytes], bytes], packed: bool, name: str) -> None:
    write(tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(harm(gzip.compress(data, 1, mtime=0) if packed else data))
    read_or_refused(lambda: load(tmp_path))
