"""The pictures: what a model confuses, what its first layer looks for, what it makes of a digit, and examples.

Everything in a picture stands at a place in points on one board; images keep their own pixels. ``width`` is in inches
(canvas.WIDE or canvas.NARROW). The ``..._picture`` functions write PNG files; the others return a Figure, or raise
NothingToShow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from bareconv.files import write_whole
from bareconv.report import format as fmt
from bareconv.report.canvas import NARROW, POINT, WIDE, NothingToShow, label, png, styled
from bareconv.report.gallery import Gallery, is_signed
from bareconv.report.palette import LIGHT

_MOST_FILTERS, _MOST_EXAMPLES = 64, 12
_NUMBERED = 24  # more classes than this have no room for their counts
_SIGNED = "PiYG"  # negative to positive, white at zero; neither the CPU's colour nor the GPU's
_POSITIVE = "magma"


@styled
def confusion_matrix(confusion: ArrayLike, classes: Sequence[object] | None = None, *, width: float = WIDE) -> Figure:
    """Counts of (true, predicted). Errors are coloured; the diagonal, which only says how many were right, is not."""
    counts = np.asarray(confusion)
    if counts.size == 0 or not counts.any():
        raise NothingToShow("the confusion matrix is empty")
    number = len(counts)
    names = [label(name, 10) for name in (range(number) if classes is None else classes)]
    left, right, top = 44.0, 62.0, 38.0
    whole = min(width / POINT, 520.0)
    side = whole - left - right
    axes = _board(whole, top + side + 8)
    errors = np.where(np.eye(number, dtype=bool), 0, counts)
    depth = 0.1 + 0.8 * np.sqrt(errors / max(4, errors.max()))  # the root, so that single errors are seen too
    if number <= _NUMBERED:
        _cells(axes, counts, np.where(errors > 0, depth, 0.0), names, left, top, side / number)
        _text(axes, whole - right + 8, 9, "found", LIGHT["muted"], 9, ha="left")
    else:  # too many for numbers: one pixel each
        colour = np.array([int(LIGHT["error"][i : i + 2], 16) for i in (1, 3, 5)])
        pixels = np.concatenate(
            [np.broadcast_to(colour, (*counts.shape, 3)), (255 * depth * (errors > 0))[..., None]], -1
        )
        _image(axes, pixels.astype(np.uint8), left, top, side, side)
    axes.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=LIGHT["line"]))
    _text(axes, left, 9, "predicted", LIGHT["muted"], 9, ha="left")
    _text(axes, 2, top - 9, "true", LIGHT["muted"], 9, ha="left")
    return _figure(axes)


def _cells(
    axes: Axes, counts: NDArray[Any], depth: NDArray[Any], names: list[str], left: float, top: float, cell: float
) -> None:
    """The matrix as squares of ``cell`` points with their counts, names before and above, the recall behind."""
    number = len(counts)
    size = min(9.5, 0.42 * cell, 1.6 * cell / len(str(counts.max())))
    for i, j in np.argwhere(counts):
        x, y = left + j * cell, top + i * cell
        look = {"color": LIGHT["soft"]} if i == j else {"color": LIGHT["error"], "alpha": depth[i, j]}
        axes.add_patch(Rectangle((x, y), cell, cell, linewidth=0, **look))
        colour = LIGHT["muted"] if i == j else LIGHT["paper"] if depth[i, j] > 0.78 else LIGHT["ink"]
        _text(axes, x + cell / 2, y + cell / 2, f"{counts[i, j]}", colour, size)
    for i, name in enumerate(names):
        at, end = (i + 0.5) * cell, number * cell
        axes.plot([left, left + end], [top + i * cell] * 2, color=LIGHT["line"], linewidth=0.5)
        axes.plot([left + i * cell] * 2, [top, top + end], color=LIGHT["line"], linewidth=0.5)
        _text(axes, left - 7, top + at, name, LIGHT["ink"], min(10.5, 0.5 * cell), ha="right", weight="bold")
        _text(axes, left + at, top - 9, name, LIGHT["ink"], min(10.5, 0.5 * cell), weight="bold")
        share = fmt.percent(counts[i, i] / counts[i].sum(), 1) if counts[i].sum() else fmt.MISSING
        _text(axes, left + end + 8, top + at, share, LIGHT["muted"], min(9, 0.5 * cell), ha="left")


@styled
def filters(gallery: Gallery, *, width: float = WIDE) -> Figure:
    """The first convolution's weights: green where a filter wants light, pink where it wants dark; colour as colour."""
    weights = gallery.filters
    if weights is None or weights.ndim != 4 or weights.size == 0:
        raise NothingToShow("there are no filters")
    shown = np.nan_to_num(np.moveaxis(np.asarray(weights, np.float64), -1, 0)[:_MOST_FILTERS])  # (K, R, S, C)
    if shown.shape[-1] == 3:
        tiles = [_bytes(0.5 + w / (2 * (np.max(np.abs(w)) or 1.0))) for w in shown]
    else:  # what several channels add up to; with one, the filter itself
        most = float(np.max(np.abs(shown.mean(axis=-1)), initial=0.0)) or 1.0
        tiles = [_mapped(0.5 + w.mean(axis=-1) / (2 * most), _SIGNED) for w in shown]
    whole = width / POINT
    columns = min(len(tiles), 16 if width > NARROW else 8)
    lines = math.ceil(len(tiles) / columns)
    columns = math.ceil(len(tiles) / lines)  # as even as the lines can be
    side = min(72.0, (whole - 2 + 6) / columns - 6)
    axes = _board(whole, lines * (side + 6) - 6 + 2)
    for i, tile in enumerate(tiles):
        _image(axes, tile, 1 + i % columns * (side + 6), 1 + i // columns * (side + 6), side, side, frame=True)
    return _figure(axes)


@styled
def feature_maps(gallery: Gallery, *, width: float = WIDE) -> Figure:
    """One image and what each layer makes of it: a row a layer, a tile a channel, each layer with its own scale."""
    layers = gallery.layers()
    if gallery.digit is None or not layers:
        raise NothingToShow("there are no feature maps")
    whole, narrow = width / POINT, width <= NARROW
    first = 62.0 if narrow else 84.0
    columns = 4 if narrow else 10
    side = (whole - (0 if narrow else first + 16) + 5) / columns - 5
    x0 = 0.0 if narrow else first + 16
    y = first + 26 if narrow else 0.0
    rows = []
    for name, maps in layers.items():
        rows.append((name, maps, y))
        lines = math.ceil(min(maps.shape[2], columns) / columns)
        y += 18 + lines * (side + 5) + 6
    axes = _board(whole, max(y, first + 20))
    _image(axes, _picture(gallery.digit), 0, 16, first, first)
    _text(axes, 0, 7, "the image", LIGHT["ink"], 9, ha="left", weight="bold")
    for name, maps, top in rows:
        P, Q, K = maps.shape
        values = np.nan_to_num(np.asarray(maps, np.float64))
        active = np.sort(np.argsort(-np.abs(values).max(axis=(0, 1)), kind="stable")[:columns])
        values = values[:, :, active]
        channels = f"the {columns} most active of {K} channels" if columns < K else fmt.counted(K, "channel")
        _text(axes, x0, top + 7, label(name, 16 if narrow else 26), LIGHT["ink"], 9, ha="left", weight="bold")
        _text(axes, whole, top + 7, f"{channels}, {P} × {Q}", LIGHT["muted"], 8.5, ha="right")
        # One scale a layer. Its few strongest answers may saturate, or all the others would look alike.
        values /= float(np.quantile(np.abs(values), 0.995)) or float(np.abs(values).max()) or 1.0
        for i, tile in enumerate(np.moveaxis(values, -1, 0)):
            coloured = _mapped(0.5 + tile / 2, _SIGNED) if is_signed(maps) else _mapped(tile, _POSITIVE)
            _image(axes, coloured, x0 + i * (side + 5), top + 16, side, side)
    return _figure(axes)


@styled
def examples(gallery: Gallery, *, right: bool, width: float = WIDE) -> Figure:
    """Images that the model classified rightly, one of each class first, or wrongly, the most confident first."""
    correct = np.asarray(gallery.labels) == np.asarray(gallery.predicted)
    chosen = np.flatnonzero(correct if right else ~correct)
    if chosen.size == 0:
        raise NothingToShow(f"the gallery has no image that was classified {'rightly' if right else 'wrongly'}")
    if right:
        # np.unique gives the first image of each class; the others follow in their order.
        firsts = chosen[np.unique(gallery.labels[chosen], return_index=True)[1]]
        chosen = np.concatenate([firsts, np.setdiff1d(chosen, firsts)])
    else:
        chosen = chosen[np.argsort(-gallery.confidence[chosen], kind="stable")]
    chosen = chosen[:_MOST_EXAMPLES]
    names = [str(p) if right else f"{t} → {p}" for t, p in zip(gallery.labels, gallery.predicted, strict=True)]
    return _figure(
        _grid(
            [gallery.images[i] for i in chosen],
            [names[i] for i in chosen],
            [float(gallery.confidence[i]) for i in chosen],
            [None if right else False for _ in chosen],
            columns=4 if width <= NARROW else 6,
            whole=width / POINT,
        )
    )


def confusion_picture(confusion: ArrayLike, path: str | Path, classes: Sequence[object] | None = None) -> Path:
    """Write the confusion matrix as PNG; returns its path. Counts: rows the true class, columns the predicted one."""
    return write_whole(Path(path), png(confusion_matrix(confusion, classes)))


def mistakes_picture(
    images: NDArray[Any],
    labels: NDArray[Any],
    predicted: NDArray[Any],
    confidence: NDArray[Any],
    path: str | Path,
    *,
    most: int = 24,
) -> Path:
    """Write as PNG the images that were classified wrongly, "true → predicted" above each, the most confident first.

    ``images`` (M, H, W, C) or (M, H, W) uint8, the others (M,). Rightly classified ones are left out. Where all are
    right, the picture says so.
    """
    wrong = np.flatnonzero(np.asarray(labels) != np.asarray(predicted))
    wrong = wrong[np.argsort(-np.asarray(confidence)[wrong], kind="stable")][:most]
    names = [f"{labels[i]} → {predicted[i]}" for i in wrong]
    sure = [float(confidence[i]) for i in wrong]
    return _write_grid([images[i] for i in wrong], names, sure, [False] * len(wrong), path, "No image was misread.")


def predictions_picture(
    images: NDArray[Any],
    predicted: NDArray[Any],
    confidence: NDArray[Any],
    path: str | Path,
    labels: NDArray[Any] | None = None,
    *,
    most: int = 60,
) -> Path:
    """Write as PNG the first ``most`` images in rows, above each its predicted class, and below how sure the model was.

    ``images`` (M, H, W, C) or (M, H, W) uint8, the others (M,). With ``labels``, the true classes, a wrong prediction
    reads "true → predicted" in the colour of errors.
    """
    names, right = [], []
    images, predicted, confidence = images[:most], predicted[:most], confidence[:most]
    for i, guess in enumerate(predicted):
        right.append(None if labels is None else bool(labels[i] == guess))
        names.append(f"{guess}" if labels is None or right[-1] else f"{labels[i]} → {guess}")
    return _write_grid(list(images), names, [float(x) for x in confidence], right, path, "No image was given.")


@styled
def _write_grid(
    images: Sequence[NDArray[Any]],
    names: Sequence[str],
    confidence: Sequence[float],
    right: Sequence[bool | None],
    path: str | Path,
    otherwise: str,
) -> Path:
    if images:
        axes = _grid(images, names, confidence, right, columns=min(6, len(images)), whole=None)
    else:
        axes = _board(300, 40)
        _text(axes, 150, 20, otherwise, LIGHT["ink"], 11)
    return write_whole(Path(path), png(_figure(axes)))


def _grid(
    images: Sequence[NDArray[Any]],
    names: Sequence[str],
    confidence: Sequence[float],
    right: Sequence[bool | None],
    *,
    columns: int,
    whole: float | None,
) -> Axes:
    """Images in rows, a name above each and the confidence beside the name."""
    gap = 14.0
    # Without a given width: as wide as the images, at least as wide as a name needs.
    edge = 8.0 if whole is None else 0.0
    whole = columns * (96 + gap) - gap + 2 * edge if whole is None else whole
    side = min(110.0, (whole - 2 * edge + gap) / columns - gap)
    line = side + 20 + 12
    axes = _board(whole, math.ceil(len(images) / columns) * line - 8 + 2 * edge)
    for i, (image, name, sure, good) in enumerate(zip(images, names, confidence, right, strict=True)):
        x, y = edge + i % columns * (side + gap), edge + i // columns * line
        colour = LIGHT["error"] if good is False else LIGHT["ink"]
        _text(axes, x, y + 9, name, colour, 11, ha="left", weight="bold")
        _text(axes, x + side, y + 9.5, fmt.percent(sure, 0), LIGHT["muted"], 8.5, ha="right")
        _image(axes, _picture(image), x, y + 20, side, side)
    return axes


def _board(width: float, height: float) -> Axes:
    """Axes that fill a figure of ``width`` x ``height`` points, in points from its upper left corner."""
    figure = Figure(figsize=(width * POINT, height * POINT))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.autoscale(enable=False)
    return axes


def _figure(axes: Axes) -> Figure:
    assert isinstance(axes.figure, Figure)
    return axes.figure


def _text(
    axes: Axes, x: float, y: float, text: str, colour: str, size: float, ha: Any = "center", weight: Any = "normal"
) -> None:
    axes.text(x, y, text, color=colour, fontsize=size, ha=ha, va="center_baseline", fontweight=weight)


def _image(
    axes: Axes, image: NDArray[Any], x: float, y: float, width: float, height: float, *, frame: bool = False
) -> None:
    axes.imshow(image, extent=(x, x + width, y + height, y), aspect="auto", interpolation="none", clip_on=False)
    if frame:
        axes.add_patch(
            Rectangle((x, y), width, height, fill=False, edgecolor=LIGHT["line"], linewidth=0.8, clip_on=False)
        )


def _picture(image: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W), (H, W, 1) or (H, W, 3) uint8 as (H, W, 3)."""
    grey = image[..., None] if image.ndim == 2 else image
    return np.ascontiguousarray(np.broadcast_to(grey[..., :3], (*grey.shape[:2], 3)).astype(np.uint8))


def _mapped(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Values of 0 to 1, others as the nearest of these, in the colours of a map, (H, W, 3) uint8; NaN is 0."""
    return np.asarray(colormaps[name](np.nan_to_num(values), bytes=True))[..., :3]


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Values of 0 to 1 as bytes."""
    return np.clip(np.nan_to_num(values) * 255, 0, 255).astype(np.uint8)
