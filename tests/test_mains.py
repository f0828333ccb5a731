"""``python main2.py`` and ``python main_cuda.py``: as in the write-up, from a folder with Kaggle's file or without."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bareconv as bc
from bareconv.device import why_no_cuda
from bareconv.report import show

ROOT = Path(__file__).parent.parent


@pytest.fixture
def kaggle(tmp_path, digits):
    """A folder with a digit-recognizer/train.csv of 1,160 digits, the size of which main2.py holds out 1,000."""
    images = np.concatenate([digits.train.images] * 4)[:1160].reshape(1160, -1)
    labels = np.concatenate([digits.train.labels] * 4)[:1160]
    lines = [",".join(["label", *(f"pixel{i}" for i in range(784))])]
    lines += [",".join(map(str, [label, *row])) for label, row in zip(labels.tolist(), images.tolist(), strict=True)]
    (tmp_path / "digit-recognizer").mkdir()
    (tmp_path / "digit-recognizer" / "train.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def python(name, folder):
    hidden = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return subprocess.run(
        [sys.executable, str(ROOT / name)], cwd=folder, env=hidden, capture_output=True, text=True, check=False
    )


def says(done, device, picture, folder):
    assert (done.returncode, done.stderr) == (0, "")
    first, time, accuracy, four = done.stdout.splitlines()
    assert re.fullmatch(r"Training basic on .*, 160 images of digit-recognizer/train.csv", first)
    assert re.fullmatch(rf"{device}: \d+\.\d\d s, [\d,]+ images/s", time)
    assert re.fullmatch(r"Accuracy on images it has not seen: \d+\.\d\d%", accuracy)
    found = re.fullmatch(rf"Four of them: predicted \[(.*)\], in truth \[(.*)\]; see {picture}", four)
    assert found
    assert all(re.fullmatch(r"\d, \d, \d, \d", digits) for digits in found.groups())
    with Image.open(folder / picture) as image:
        assert image.format == "PNG"
    assert {path.name for path in folder.iterdir()} == {"digit-recognizer", picture}


def test_on_the_cpu(kaggle):
    says(python("main2.py", kaggle), "cpu", "predictions-cpu.png", kaggle)


@pytest.mark.cuda
def test_on_the_gpu(kaggle):
    says(python("main_cuda.py", kaggle), "cuda:0", "predictions-cuda.png", kaggle)


def test_without_a_gpu(tmp_path):
    reason = why_no_cuda()
    if reason is None:
        pytest.skip("there is a GPU")
    done = python("main_cuda.py", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"device cuda: {reason}\n")
    assert not list(tmp_path.iterdir())


def test_damaged_data(tmp_path):
    (tmp_path / "digit-recognizer").mkdir()
    (tmp_path / "digit-recognizer" / "train.csv").write_text("label,pixel0\n7,dog\n")
    done = python("main2.py", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "digit-recognizer/train.csv: line 2, column pixel0: expected a whole number from 0 to 255, got 'dog'\n"
    )


def test_they_are_short():
    """A few lines, as in the write-up."""
    assert len((ROOT / "main2.py").read_text().splitlines()) < 60
    assert len((ROOT / "main_cuda.py").read_text().splitlines()) < 15


@pytest.fixture
def no_display(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.mark.parametrize("toolkit", [None, "qt"])
@pytest.mark.parametrize("display", [None, "DISPLAY", "WAYLAND_DISPLAY"])
def test_a_window_where_there_is_a_display(display, toolkit, no_display, tmp_path, digits, monkeypatch):
    """The file is always there; a window opens where there is a display, and something that can draw on it."""
    import matplotlib.pyplot as plt
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if display is not None:
        monkeypatch.setenv(display, ":0")
    plt.switch_backend("agg")
    monkeypatch.setattr(FigureCanvasAgg, "required_interactive_framework", toolkit)
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf().axes[0].images[0].get_size()))
    model = bc.models.mlp()
    predicted = bc.show_predictions(model, digits.test, tmp_path / "four.png")
    logits = model.forward(model.prepare(digits.test.images[:4]))
    assert predicted == logits.argmax(axis=1).tolist()
    with Image.open(tmp_path / "four.png") as image:
        width, height = image.size
    assert shown == ([(height, width)] if display and toolkit else [])
    assert not plt.get_fignums()


@pytest.mark.parametrize(("platform", "expected"), [("darwin", True), ("win32", True), ("linux", False)])
def test_displays(platform, expected, no_display, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    assert show.has_display() is expected
