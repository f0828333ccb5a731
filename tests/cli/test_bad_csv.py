"""Data files that are not what they should be: one line with file, place, expected and got; exit 2; nothing written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HEAD = ["label", *(f"pixel{i}" for i in range(16))]
ROW = ["7", *("0" for _ in range(16))]


def text(*rows, head=HEAD):
    return "".join(",".join(row) + "\n" for row in [head, *rows] if row is not None)


def changed(place, value):
    return [*ROW[:place], value, *ROW[place + 1 :]]


BAD = {
    "empty": ("", "expected a header.*got an empty file"),
    "blank": ("\n", "line 1.*expected a header.*got a blank line"),
    "no header": (text(ROW, ROW, head=None), "line 1.*expected a header.*got numbers"),
    "only a header": (text(), "line 2.*expected an image.*only a header"),
    "no label": (text(ROW[1:], head=HEAD[1:]), "line 1.*expected 'label' as the first column.*got 'pixel0'"),
    "label last": (text(ROW, head=[*HEAD[1:], "label"]), "line 1.*expected 'label' as the first column"),
    "missing column": (text(ROW[:-1], head=HEAD[:-1]), "line 1.*expected a square number.*got 15"),
    "extra column": (text([*ROW, "0"], head=[*HEAD, "pixel16"]), "line 1.*expected a square number.*got 17"),
    "columns out of order": (text(ROW, head=[*HEAD[:2], "pixel9", *HEAD[3:]]), "column 3.*'pixel1'.*'pixel9'"),
    "short row": (text(ROW, ROW, ROW[:-2]), "line 4: expected 17 values, got 15"),
    "long row": (text(ROW, [*ROW, "1"]), "line 3: expected 17 values, got 18"),
    "blank row": (text(ROW) + "\n" + text(ROW, head=None), "line 3: expected 17 values, got a blank line"),
    "text": (text(ROW, changed(3, "dog")), "line 3, column pixel2: expected a whole number from 0 to 255, got 'dog'"),
    "nothing": (text(ROW, changed(3, "")), "line 3, column pixel2: expected .*, got nothing"),
    "a fraction": (text(changed(1, "0.5")), "line 2, column pixel0: expected .*, got '0.5'"),
    "not a number": (text(changed(1, "nan")), "line 2, column pixel0: expected .*, got 'nan'"),
    "negative": (text(ROW, changed(1, "-1")), "line 3, column pixel0: expected .* from 0 to 255, got '-1'"),
    "above 255": (text(ROW, changed(16, "256")), "line 3, column pixel15: expected .* 0 to 255, got '256'"),
    "huge": (text(ROW, changed(16, "9" * 99)), "line 3, column pixel15: expected .* 0 to 255, got '9999"),
    "label 10": (text(ROW, changed(0, "10")), "line 3, column label: expected a label from 0 to 9, got '?10"),
    "label -1": (text(ROW, changed(0, "-1")), "line 3, column label: expected a label from 0 to 9, got '-1'"),
    "label text": (text(ROW, changed(0, "seven")), "line 3, column label: expected a label from 0 to 9, got 'seven'"),
    "semicolons": (text(ROW).replace(",", ";"), "line 1.*expected commas between the columns, got semicolons"),
    "binary": (b"\x00\x01\x02" * 50, r"byte 0: expected CSV text, got byte 0x00"),
    "damaged later": (text(ROW).encode() + b"\xff\xfe," + text(ROW, head=None).encode(), "line 3"),
    "cut gzip": (b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x4b", "cut off|damaged gzip"),
}
ABOUT_LABELS = {"no label", "label 10", "label -1", "label text"}


@pytest.mark.parametrize("name", BAD)
def test_training_on_it(name, run, here, listing):
    content, message = BAD[name]
    Path("bad.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    for words in (
        ["train", "--model", "mlp", "--checkpoint", "m"],
        ["compare", "--model", "mlp", "--quick"],
        ["compare", "--preset", "original", "--output", "out"],
    ):
        outcome = run(*words, "--data", "bad.csv")
        assert (outcome.code, outcome.out) == (2, "")
        complaint = outcome.complaint()
        assert complaint.startswith("bad.csv: ")
        assert re.search(message, complaint), complaint
        assert len(complaint) < 250
        assert listing() == ["bad.csv"]


@pytest.mark.parametrize("name", [name for name in BAD if name not in ABOUT_LABELS])
def test_predicting_it(name, run, here, listing, trained):
    content, message = BAD[name]
    Path("bad.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    outcome = run("predict", trained, "bad.csv", "-o", "new/submission.csv")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.complaint().startswith("bad.csv: ")
    assert re.search(message, outcome.complaint()), outcome.err
    assert listing() == ["bad.csv"]


def test_the_default_data_are_not_skipped(run, here, listing):
    """A digit-recognizer/train.csv that is there, but damaged, is not silently replaced by MNIST."""
    Path("digit-recognizer").mkdir()
    Path("digit-recognizer/train.csv").write_text("")
    outcome = run("train", "--model", "mlp")
    assert outcome.code == 2
    assert outcome.complaint().startswith("digit-recognizer/train.csv: expected a header")
    assert listing() == ["digit-recognizer", "digit-recognizer/train.csv"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("notes.txt", "notes.txt: expected a .csv, a .csv.gz, an .npz or a folder of IDX files"),
        ("folder", "folder: "),
        ("images.npz", "images.npz: "),
    ],
)
def test_other_files(name, message, run, here, listing):
    Path("notes.txt").write_text("hello")
    Path("images.npz").write_text("hello")
    Path("folder").mkdir()
    files = listing()
    outcome = run("train", "--data", name)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.complaint().startswith(message)
    assert listing() == files
