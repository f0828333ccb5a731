"""Predictions to look at: in a window where there is a display, in a file everywhere."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bareconv.data import Split
from bareconv.nn.model import Model
from bareconv.optim import SGD
from bareconv.report.pictures import predictions_picture
from bareconv.training import make_engine, predict


def show_predictions(model: Model, split: Split, path: str | Path, count: int = 4) -> list[int]:
    """Predict the first ``count`` images of ``split``, write a picture of them to ``path``, show it where one can look.

    A window stays open until it is closed. Returns the predicted classes.
    """
    images, labels = split.images[:count], split.labels[:count]
    predicted, confidence = predict(make_engine("plan", model, SGD(0.0)), images)
    predictions_picture(images, predicted, confidence, Path(path), labels)
    if has_display():
        _window(Path(path))
    return [int(label) for label in predicted]


def has_display() -> bool:
    """Whether a window could be opened: always so on a Mac or Windows, elsewhere where a display server is named."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _window(path: Path) -> None:
    import matplotlib.pyplot as plt

    picture = plt.imread(path)
    height, width = picture.shape[:2]
    figure = plt.figure(path.stem, figsize=(width / 100, height / 100), dpi=100, facecolor="white")
    if figure.canvas.required_interactive_framework is None:  # a display, but no toolkit that draws on it
        plt.close(figure)
        return
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(picture)
    axes.axis("off")
    plt.show()
    plt.close(figure)
