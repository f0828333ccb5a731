"""Kaggle's CSV: what is read, and what is refused with the line and the column."""

from __future__ import annotations

import gzip
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from data_files import csv_text, damage, embedded, labelled_images, read_or_refused, refused, unreadable
from hypothesis import given
from hypothesis import strategies as st

from bareconv.data import csv_file, load, read_csv
from bareconv.errors import DataError

HEADER = "label,pixel0,pixel1,pixel2,pixel3\n"
GOOD = HEADER + "7,0,1,20,255\n3,255,9,10,99\n"
IMAGES = np.array([[0, 1, 20, 255], [255, 9, 10, 99]], np.uint8).reshape(2, 2, 2, 1)
BARE = "pixel0,pixel1,pixel2,pixel3\n0,1,20,255\n255,9,10,99\n"  # as test.csv is, without labels


def write(folder: Path, content: str | bytes, name: str = "train.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("\n", "\r"),
        b"\xef\xbb\xbf" + GOOD.encode(),
        b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode(),
        GOOD.rstrip("\n"),
        GOOD.replace("\n", "\r\n").rstrip(),
        GOOD.replace(",", ", "),
        GOOD.replace(",", " , ").replace("\n", " \n"),
        GOOD.replace(",", ",\t"),
        GOOD.replace(",", '","').replace("\n", '"\n"')[:-1].join(['"', ""]),
        GOOD.replace("pixel3", '"pixel3"').replace(",20,", ',"20",'),
        GOOD.replace(",20,", ",020,").replace(",1,", ",0000001,"),
        GOOD.replace(",20,", ",+20,"),
        GOOD.replace("label", "Label"),
        GOOD.replace("pixel0,pixel1,pixel2,pixel3", "1x1,1x2,2x1,2x2"),
        GOOD.replace("pixel0,pixel1,pixel2,pixel3", "0,1,2,3"),
        GOOD.replace("pixel0,pixel1,pixel2,pixel3", "pixel1,pixel2,pixel3,pixel4"),
        gzip.compress(GOOD.encode(), mtime=0),
        gzip.compress(GOOD[:40].encode(), mtime=0) + gzip.compress(GOOD[40:].encode(), mtime=0) + b"\0\0",
    ],
)
def test_reads(content: str | bytes, tmp_path: Path) -> None:
    for labelled in (True, None):
        images, labels = read_csv(write(tmp_path, content), labelled=labelled)
        assert images.dtype == np.uint8
        assert images.flags.c_contiguous
        np.testing.assert_array_equal(images, IMAGES)
        assert labels is not None
        assert labels.dtype == np.int32
        assert labels.tolist() == [7, 3]


def test_reads_files_without_labels(tmp_path: Path) -> None:
    for labelled in (False, None):
        images, labels = read_csv(str(write(tmp_path, BARE)), labelled=labelled)
        np.testing.assert_array_equal(images, IMAGES)
        assert labels is None


@pytest.mark.parametrize("label", ["7", "11", "999", "", "seven", '"a_b"'])
def test_prediction_ignores_a_label_column(label: str, tmp_path: Path) -> None:
    images, labels = read_csv(write(tmp_path, GOOD.replace("\n7,", f"\n{label},")), labelled=False)
    np.testing.assert_array_equal(images, IMAGES)
    assert labels is None


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        # headers
        ("", ["label,pixel0", "empty file"]),
        (b"\xef\xbb\xbf", ["label,pixel0", "empty file"]),
        (gzip.compress(b"", mtime=0), ["label,pixel0", "empty file"]),
        ("\n" + GOOD, ["line 1", "header", "blank line"]),
        (HEADER, ["line 2", "expected an image", "only a header"]),
        (HEADER.rstrip(), ["line 2", "expected an image", "only a header"]),
        ("7,0,1,20,255\n", ["line 1", "expected a header", "label,pixel0", "'7,0,1,20,255'"]),
        (BARE, ["line 1", "expected 'label' as the first column", "'pixel0'"]),
        ("id," + GOOD, ["line 1", "'label' as the first column", "column 2"]),
        ("label,pixel0,pixel1,pixel2,label\n1,2,3,4,5\n", ["line 1", "first column only", "column 5"]),
        (GOOD.replace(",pixel3", ""), ["line 1", "square number of pixel columns (784 for 28 x 28", "got 3"]),
        (GOOD.replace(",pixel1", ""), ["line 1", "got 3", "column 3", "'pixel1'", "'pixel2'"]),
        (GOOD.replace("pixel3", "pixel3,pixel4"), ["line 1", "square number", "got 5"]),
        (GOOD.replace("pixel3", "pixel3,note"), ["line 1", "got 5", "column 6", "'note'"]),
        (GOOD.replace("pixel2", "pixel1"), ["line 1", "column 4", "expected 'pixel2'", "got 'pixel1'"]),
        ("label\n1\n", ["line 1", "square number", "got 0"]),
        (GOOD.replace(",", ";"), ["line 1", "commas", "semicolons"]),
        (GOOD.replace(",", "\t"), ["line 1", "commas", "tabs"]),
        ('label,"pixel0\n1,2\n', ["line 1", "header"]),
        # lines
        (GOOD.replace(",9,10,99", ",9,10"), ["line 3", "expected 5 values", "got 4"]),
        (GOOD.replace(",9,10,99", ",9,10,99,1"), ["line 3", "expected 5 values", "got 6"]),
        (GOOD.replace(",9,10,99", ",9,10,99,"), ["line 3", "expected 5 values", "got 6"]),
        (HEADER + "7,0,1,20\n255,3,255,9,10,99\n", ["line 2", "expected 5 values", "got 4"]),
        (GOOD.replace("3,255,9,10,99\n", "3,255"), ["line 3", "expected 5 values", "got 2"]),
        (HEADER + "\n7,0,1,20,255\n", ["line 2", "expected 5 values", "blank line"]),
        (GOOD.replace("\n3", "\n\n3"), ["line 3", "expected 5 values", "blank line"]),
        (GOOD.replace("\n3", "\n  \t\n3"), ["line 3", "expected 5 values", "blank line"]),
        (GOOD.replace("\n3", "\n\n3").replace("\n", "\r\n"), ["line 3", "expected 5 values", "blank line"]),
        (GOOD + "\n", ["line 4", "expected 5 values", "blank line"]),
        # values
        (GOOD.replace(",20,", ",x,"), ["line 2", "column pixel2", "from 0 to 255", "'x'"]),
        (GOOD.replace(",20,", ",-20,"), ["line 2", "column pixel2", "from 0 to 255", "'-20'"]),
        (GOOD.replace(",20,", ",256,"), ["line 2", "column pixel2", "from 0 to 255", "'256'"]),
        (GOOD.replace(",99\n", ",1000\n"), ["line 3", "column pixel3", "from 0 to 255", "'1000'"]),
        (GOOD.replace(",20,", ",65537,"), ["line 2", "column pixel2", "from 0 to 255", "'65537'"]),
        (GOOD.replace(",20,", ",99999999999999999999999,"), ["line 2", "column pixel2", "'99999999999999999999999'"]),
        (GOOD.replace("pixel0", "a\u2028b").replace("7,0,", "7,x,"), ["line 2", r"column 'a\u2028b'", "'x'"]),
        (GOOD.replace(",20,", "," + "1" * 5000 + ","), ["line 2", "column pixel2", "'111111111111111111111111...'"]),
        (GOOD.replace(",20,", ",2.5,"), ["line 2", "column pixel2", "whole number", "'2.5'"]),
        (GOOD.replace(",20,", ",2e1,"), ["line 2", "column pixel2", "whole number", "'2e1'"]),
        (GOOD.replace(",20,", ",nan,"), ["line 2", "column pixel2", "whole number", "'nan'"]),
        (GOOD.replace(",20,", ",2_0,"), ["line 2", "column pixel2", "whole number", "'2_0'"]),
        (GOOD.replace(",20,", ",2 0,"), ["line 2", "column pixel2", "whole number", "'2 0'"]),
        (GOOD.replace(",20,", ",,"), ["line 2", "column pixel2", "whole number", "nothing"]),
        (GOOD.replace(",20,", ",  ,"), ["line 2", "column pixel2", "whole number", "nothing"]),
        (GOOD.replace(",20,", ',"20,'), ["line 2", "column pixel2", "whole number", """'"20'"""]),
        (GOOD.replace(",20,", ",\u0662\u0660,"), ["line 2", "column pixel2", "whole number", "'\u0662\u0660'"]),
        (GOOD.replace(",20,", ",\u00a020,"), ["line 2", "column pixel2", "whole number"]),
        (GOOD.encode().replace(b",20,", b",\xff,"), ["line 2", "column pixel2", "whole number", "xff"]),
        (GOOD.replace(",20,", ",2\x000,"), ["line 2", "column pixel2", "whole number", "NUL byte"]),
        (GOOD.replace(",20,", ",20\x00"), ["line 2", "expected 5 values", "got 4", "NUL byte"]),
        (GOOD.replace(",20,", ",2\r0,"), ["line 2", "column pixel2", "whole number", r"'2\r0'"]),
        # labels
        (GOOD.replace("\n3,", "\n10,"), ["line 3", "column label", "from 0 to 9", "10"]),
        (GOOD.replace("\n3,", "\n255,"), ["line 3", "column label", "from 0 to 9", "255"]),
        (GOOD.replace("\n3,", "\n256,"), ["line 3", "column label", "from 0 to 9", "'256'"]),
        (GOOD.replace("\n3,", "\n-1,"), ["line 3", "column label", "from 0 to 9", "'-1'"]),
        (GOOD.replace("\n3,", "\nthree,"), ["line 3", "column label", "from 0 to 9", "'three'"]),
        (GOOD.replace("\n3,", "\n,"), ["line 3", "column label", "from 0 to 9", "nothing"]),
        # no text
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ["byte 0", "CSV text", "0x89", "PNG"]),
        (GOOD.encode("utf-16"), ["byte 0", "CSV text", "0xff", "UTF-16"]),
        (b"\0" + GOOD.encode(), ["byte 0", "CSV text", "0x00", "not text"]),
        (GOOD.encode().replace(b"pixel1", b"pixel\0"), ["byte 18", "CSV text", "0x00"]),
        (b"\xef\xbb\xbf" + GOOD.encode().replace(b"pixel1", b"pixel\xff"), ["byte 21", "CSV text", "0xff"]),
        (bytes(range(1, 256)) * 3, ["byte 0", "CSV text", "0x01", "not text"]),
        (gzip.compress(GOOD.encode(), mtime=0)[:-12], ["cut off at byte"]),
        (gzip.compress(GOOD.encode(), mtime=0)[:-8] + bytes(8), ["damaged gzip data"]),
        (gzip.compress(GOOD.encode(), mtime=0) + b"tail", ["damaged gzip data"]),
        (b"\x1f\x8b", ["cut off at byte 2"]),
    ],
)
def test_refuses(content: str | bytes, parts: list[str], tmp_path: Path) -> None:
    path = write(tmp_path, content)
    refused(lambda: read_csv(path, labelled=True), str(path), *parts)


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    refused(lambda: read_csv(tmp_path, labelled=None), str(tmp_path), "expected a file", "directory")
    missing = tmp_path / "missing.csv"
    refused(lambda: read_csv(missing, labelled=None), str(missing), "no such file")
    refused(lambda: read_csv(missing / "deeper.csv", labelled=None), "deeper.csv")
    refused(lambda: read_csv("a\0b.csv", labelled=None), "b.csv", "null")
    path = write(tmp_path, GOOD)
    with unreadable(path):
        refused(lambda: read_csv(path, labelled=None), str(path), "permission")


def test_a_zip_archive_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train.csv", GOOD)
    refused(lambda: load(path), str(path), "byte 2", "zip archive")


@pytest.mark.parametrize("row", [0, 1, 20, 21, 999])
def test_the_line_is_right_in_a_file_of_many_blocks(row: int, tmp_path: Path) -> None:
    images = np.full((1000, 10, 10, 1), 200, np.uint8)  # 402 bytes a line, so 163 lines a block
    lines = csv_text(images, np.full(1000, 9, np.int32)).splitlines()
    for bad, parts in (
        (lines[1].replace("200,200", "200,300", 1), ["column pixel1", "'300'"]),
        (lines[1].replace("9,", "10,", 1), ["column label", "10"]),
        ("", ["blank line"]),
        (lines[1] + ",1", ["expected 101 values, got 102"]),
    ):
        broken = [*lines[: row + 1], bad, *lines[row + 2 :]]
        path = write(tmp_path, "\n".join(broken) + "\n")
        refused(lambda path=path: read_csv(path, labelled=True), f"line {row + 2}", *parts)  # type: ignore[misc]


def test_lines_longer_than_a_block_are_read(tmp_path: Path) -> None:
    images = np.random.default_rng(3).integers(0, 256, (3, 170, 170, 1), np.uint8)  # 100 kB a line
    read, labels = read_csv(write(tmp_path, csv_text(images, None)), labelled=None)
    np.testing.assert_array_equal(read, images)
    assert labels is None


@given(
    labelled_images(square=True),
    st.booleans(),
    st.sampled_from([",", ", ", " ,", ",\t"]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["{}", '"{}"', "{:03d}"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_round_trip(
    tmp_path: Path,
    sample: tuple[np.ndarray, np.ndarray],
    labelled: bool,
    comma: str,
    newline: str,
    mark: str,
    byte_order_mark: bool,
    last_newline: bool,
    packed: bool,
) -> None:
    images, labels = sample
    text = csv_text(images, labels if labelled else None, comma, newline, mark)
    data = (b"\xef\xbb\xbf" if byte_order_mark else b"") + (text if last_newline else text.rstrip("\r\n")).encode()
    path = write(tmp_path, gzip.compress(data, 1) if packed else data)
    read, read_labels = read_csv(path, labelled=None)
    np.testing.assert_array_equal(read, images)
    if labelled:
        np.testing.assert_array_equal(read_labels, labels)
    else:
        assert read_labels is None


@given(labelled_images(square=True), damage(), st.booleans(), st.sampled_from([True, False, None]))
def test_damage_is_refused_or_harmless(
    tmp_path: Path, sample: tuple[np.ndarray, np.ndarray], harm: object, packed: bool, labelled: bool | None
) -> None:
    assert callable(harm)
    data = csv_text(*sample).encode()
    path = write(tmp_path, harm(gzip.compress(data, 1) if packed else data))
    read_or_refused(lambda: read_csv(path, labelled=labelled))


@given(st.text("0123456789", max_size=5) | st.text('0129,,,\n\n -+._x"\0\r', max_size=30), st.integers(1, 4))
def test_the_fast_form_equals_the_careful_one(text: str, columns: int) -> None:
    raw = text.encode() + b"\n"
    header = csv_file._Header([f"c{i}" for i in range(columns)], False, 0)
    fast = csv_file._parse_block(raw, columns)
    try:
        careful = [list(csv_file._parse_row(line, header, True, "here")) for line in raw[:-1].split(b"\n")]
    except DataError:
        assert fast is None
    else:
        assert fast is None or fast.tolist() == careful


@given(st.lists(st.lists(st.integers(0, 255), min_size=3, max_size=3), min_size=1, max_size=4))
def test_the_fast_form_reads_plain_lines(rows: list[list[int]]) -> None:
    raw = "".join(",".join(map(str, row)) + "\n" for row in rows).encode()
    fast = csv_file._parse_block(raw, 3)
    assert fast is not None
    assert fast.tolist() == rows


def test_a_full_file_is_read_quickly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Kaggle's train.csv in size and shape: 42,000 lines, 76.7 MB."""
    train = embedded().take(42_000).train
    text = np.array([f",{value}" for value in range(256)], object)
    path = tmp_path / "train.csv"
    with path.open("w") as file:
        file.write("label," + ",".join(f"pixel{i}" for i in range(784)) + "\n")
        for label, row in zip(train.labels.tolist(), train.images.reshape(-1, 784), strict=True):
            file.write(f"{label}{''.join(text[row])}\n")
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        images, labels = read_csv(path, labelled=True)
        seconds.append(time.perf_counter() - start)
    np.testing.assert_array_equal(images, train.images)
    np.testing.assert_array_equal(labels, train.labels)
    with capsys.disabled():
        print(f"\n{path.stat().st_size / 1e6:.1f} MB of CSV read in {min(seconds):.2f} s")
    assert min(seconds) < 3
    path.unlink()
