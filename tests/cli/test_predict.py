"""``bareconv predict``: Kaggle submissions and drawn digits."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def test_a_kaggle_submission(run, here, listing, trained, digits, test_csv, probabilities):
    outcome = run("predict", trained, test_csv, "-o", "submission.csv")
    assert (outcome.code, outcome.err) == (0, "")
    text = Path("submission.csv").read_bytes().decode("ascii")
    predicted = probabilities(trained, digits.test.images[:40]).argmax(axis=1)
    expected = "ImageId,Label\n" + "".join(f"{i + 1},{label}\n" for i, label in enumerate(predicted))
    assert text == expected
    assert outcome.out.startswith("Wrote submission.csv: 40 predictions, ids 1 to 40\n")
    assert listing() == ["submission.csv", "test.csv"]


def test_json(run, here, trained, test_csv):
    outcome = run("predict", trained, test_csv, "--json")
    assert outcome.code == 0
    found = outcome.result()["predictions"]
    assert found == {"checkpoint": str(trained), "count": 40, "output": "submission.csv"}
    assert "Wrote submission.csv" in outcome.err


def test_a_label_column_is_not_looked_at(run, here, trained, digits, texts, csv_text):
    """People predict on train.csv too, and on one with its labels blanked out."""
    Path("a.csv").write_text(csv_text(digits.test.images[:40], np.full(40, 99)))
    Path("b.csv").write_text(texts[1])
    for name in "ab":
        assert run("predict", trained, f"{name}.csv", "-o", f"{name}.out").code == 0
    assert Path("a.out").read_text() == Path("b.out").read_text()


def draw(image, path, light, size):
    """A digit as a person might save it: large, and dark on light or light on dark."""
    big = Image.fromarray(image[..., 0]).resize((size, size), Image.Resampling.BICUBIC)
    values = np.asarray(big)
    Image.fromarray(255 - values if light else values).save(path)


@pytest.fixture
def drawings(digits, trained, probabilities):
    """A digit of which the model is sure, in four files: any size, any background, two formats."""
    p = probabilities(trained, digits.test.images)
    right = np.flatnonzero(p.argmax(axis=1) == digits.test.labels)
    best = right[p.max(axis=1)[right].argmax()]

    def make():
        names = ["one [red].png", "two.jpg", "three.png", "four.jpeg"]
        for name, light, size in zip(names, (True, False, False, True), (280, 300, 56, 97), strict=True):
            draw(digits.test.images[best], name, light, size)
        return names, int(digits.test.labels[best])

    return make


def test_drawn_digits(run, here, listing, trained, drawings):
    names, label = drawings()
    outcome = run("predict", trained, *names, "-o", "seen.png")
    assert (outcome.code, outcome.err) == (0, "")
    for name in names:
        assert re.search(rf"^{re.escape(name)} +{label} +[\d.]+%$", outcome.out, re.MULTILINE), outcome.out
    assert listing() == sorted([*names, "seen.png"])
    with Image.open("seen.png") as picture:
        assert picture.format == "PNG"


def test_drawn_digits_as_json(run, here, listing, trained, drawings):
    names, label = drawings()
    found = run("predict", trained, *names, "--json").result()["predictions"]
    assert found["output"] is None
    assert [row["image"] for row in found["images"]] == names
    assert {row["label"] for row in found["images"]} == {label}
    assert listing() == sorted(names)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("blank.png", None, "blank.png: expected a drawn digit, got a blank image of 40 x 30 pixels"),
        ("text.png", b"hello", "text.png: expected a PNG or JPEG image, got something else"),
        ("empty.png", b"", "empty.png: expected a PNG or JPEG image, got an empty file"),
        ("cut.png", b"\x89PNG\r\n\x1a\n\0\0", "cut.png: expected a PNG or JPEG image"),
    ],
)
def test_what_is_no_drawing(name, content, message, run, here, listing, trained):
    Image.new("L", (40, 30), 200).save("blank.png")
    Path(name).write_bytes(content if content is not None else Path("blank.png").read_bytes())
    files = listing()
    outcome = run("predict", trained, name, "-o", "seen.png")
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.complaint()
    assert listing() == files


def test_where_nothing_can_be_written(run, here, listing, trained, test_csv):
    Path("folder").mkdir()
    for path, message in (("folder", "is a directory"), ("test.csv/s.csv", "cannot write there")):
        outcome = run("predict", trained, test_csv, "-o", path)
        assert (outcome.code, outcome.out) == (2, "")
        assert message in outcome.complaint()
    assert listing() == ["folder", "test.csv"]


def test_what_is_read_is_not_written_over(run, here, trained, test_csv, train_csv, drawings):
    (name, *_), _ = drawings()
    Path("m").write_bytes(trained.read_bytes())
    Path("link.csv").symlink_to("test.csv")
    before = {path: path.read_bytes() for path in here.iterdir()}
    for words, message in (
        (["predict", "m", "test.csv", "-o", "./test.csv"], "test.csv: is to be read; expected another name"),
        (["predict", "m", "test.csv", "-o", "link.csv"], "link.csv: is to be read"),
        (["predict", "m", "test.csv", "-o", "m"], "m: is to be read"),
        (["predict", "m", name, "-o", name], "is to be read"),
        (["predict", "m", name, "-o", "seen.jpg"], "--output seen.jpg: for images it is a picture; expected .*.png"),
        (
            ["train", "--model", "mlp", "--data", "digits.csv", "--checkpoint", "digits.csv"],
            "digits.csv: is to be read",
        ),
    ):
        outcome = run(*words)
        assert (outcome.code, outcome.out) == (2, "")
        assert re.search(message, outcome.complaint()), outcome.err
    assert {path: path.read_bytes() for path in here.iterdir()} == before


@pytest.mark.parametrize("images", [False, True])
def test_a_full_disk(images, run, here, listing, trained, test_csv, drawings, monkeypatch):
    """No half of a submission, nor of a picture."""
    names = drawings()[0] if images else [str(test_csv)]
    files = listing()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    monkeypatch.setattr("bareconv.report.pictures.write_whole", full)
    outcome = run("predict", trained, *names, "-o", "output.png")
    assert outcome.code == 1
    assert "No space left on device" in outcome.complaint()
    assert "output.png" in outcome.complaint()
    assert listing() == files
