"""The embedded MNIST is the published one, and is what a run without data gets."""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
import time
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from data_files import csv_text, embedded, refused, unreadable

from bareconv.data import default, load, mnist
from bareconv.data.embedded import SHA256

FOLDER = Path(__file__).parents[2] / "src/bareconv/data/mnist"
PUBLISHED_MD5 = {  # of the unpacked files
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def test_the_files_are_the_published_ones() -> None:
    assert {f"{name}.gz" for name in PUBLISHED_MD5} == set(SHA256)
    for name, digest in PUBLISHED_MD5.items():
        data = gzip.decompress((FOLDER / f"{name}.gz").read_bytes())
        assert hashlib.md5(data, usedforsecurity=False).hexdigest() == digest


def test_read_me_and_notice_name_authors_licence_and_sums() -> None:
    read_me, notice = (FOLDER / "README.md").read_text(), (FOLDER.parents[3] / "NOTICE").read_text()
    assert dict(re.findall(r"\| (\S+\.gz) \| `([0-9a-f]{64})` \|", read_me)) == SHA256
    for text in (read_me, notice):
        for words in ("LeCun", "Cortes", "Burges", "creativecommons.org/licenses/by-sa/3.0", "yann.lecun.com"):
            assert words in text


def test_mnist() -> None:
    data = embedded()
    assert (data.name, data.classes, data.image_shape) == ("MNIST (embedded)", 10, (28, 28, 1))
    assert data.validation is None
    assert data.test is not None
    for split, n, first in ((data.train, 60_000, [5, 0, 4, 1, 9]), (data.test, 10_000, [7, 2, 1, 0, 4])):
        assert split.images.shape == (n, 28, 28, 1)
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
        assert split.labels[:5].tolist() == first
    # The means that every MNIST tutorial subtracts, and the classes' known sizes.
    assert round(float(data.train.images.mean()) / 255, 4) == 0.1307
    assert round(float(data.train.images.std()) / 255, 4) == 0.3081
    assert np.bincount(data.train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(data.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # Upright, not transposed: the first test image is a seven, whose upper half holds its bar.
    assert data.test.images[0, 7:9].sum() > 2 * data.test.images[0, 20:22].sum()


def test_the_arrays_can_be_written_to() -> None:
    train = mnist().train
    train.images[0, 0, 0, 0] = 1
    train.labels[0] = 1


def test_loading_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        mnist()
        seconds.append(time.perf_counter() - start)
    with capsys.disabled():
        print(f"\nembedded MNIST loaded in {min(seconds):.2f} s")
    assert min(seconds) < 2


@pytest.mark.parametrize("name", SHA256)
def test_damage_is_noticed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mnist").mkdir()
    for file in SHA256:
        shutil.copy(FOLDER / file, tmp_path / "mnist" / file)
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    path = tmp_path / "mnist" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    refused(mnist, name, "damaged", f"expected SHA-256 {SHA256[name]}", f"got {got}", "reinstall")
    path.unlink()
    refused(mnist, name, "cannot be read", "reinstall")


def test_default_is_kaggles_file_where_it_is_there(tmp_path: Path) -> None:
    assert default(tmp_path).name == "MNIST (embedded)"
    folder = tmp_path / "digit-recognizer"
    folder.mkdir()
    assert default(tmp_path).name == "MNIST (embedded)"
    path = folder / "train.csv"
    path.write_text(csv_text(np.full((2, 28, 28, 1), 7, np.uint8), np.array([4, 2], np.int32)))
    data = default(tmp_path)
    assert data.name == str(path)
    assert (data.train.labels.tolist(), data.classes, data.image_shape) == ([4, 2], 10, (28, 28, 1))
    assert (data.validation, data.test) == (None, None)
    with unreadable(folder):  # not MNIST in its place, silently
        refused(lambda: default(tmp_path), str(path), "permission")
    path.write_text("nonsense")
    refused(lambda: default(tmp_path), str(path), "line 1")


def test_default_looks_where_the_user_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digit-recognizer").mkdir()
    (tmp_path / "digit-recognizer/train.csv").write_text("label,pixel0\n3,9\n")
    assert default().train.labels.tolist() == [3]


def test_load_tells_kinds_of_files_apart(tmp_path: Path) -> None:
    text = "label,pixel0\n3,9\n"
    for name in ("a.csv", "b.CSV", "c.csv.gz", "d.e.csv"):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
        data = load(tmp_path / name)
        assert (data.name, data.classes, data.train.labels.tolist()) == (str(tmp_path / name), 10, [3])
    for name in ("train.txt", "train.parquet", "archive.zip", "train", "some.gz"):
        (tmp_path / name).write_text(text)
        refused(lambda name=name: load(tmp_path / name), name, "expected a .csv, a .csv.gz, an .npz or a folder")  # type: ignore[misc]
    (tmp_path / "bare.csv").write_text("pixel0\n9\n")
    refused(lambda: load(tmp_path / "bare.csv"), "line 1", "'label'")
    refused(lambda: load(tmp_path / "missing.csv"), "missing.csv", "no such file")
    refused(lambda: load("a\0b"), "b", "null")
