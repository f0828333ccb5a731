"""Pictures of filters, feature maps, examples and mistakes."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import report_samples as samples
from PIL import Image

from bareconv.report import (
    NARROW,
    WIDE,
    Gallery,
    NothingToShow,
    confusion_matrix,
    confusion_picture,
    examples,
    feature_maps,
    filters,
    mistakes_picture,
    png,
    predictions_picture,
    svg,
)


def texts(drawn: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(drawn).iter("text")]


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.size


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_picture_of_a_gallery(channels: int, width: float) -> None:
    gallery = samples.gallery(channels=channels)
    for figure in (
        filters(gallery, width=width),
        feature_maps(gallery, width=width),
        examples(gallery, right=True, width=width),
        examples(gallery, right=False, width=width),
    ):
        assert len(svg(figure, "picture", "")) < 300_000
        png(figure)


def test_filters_of_many_channels_and_of_none() -> None:
    png(filters(Gallery(filters=np.zeros((3, 3, 16, 200), np.float32))))
    png(filters(Gallery(filters=np.full((3, 3, 1, 1), np.nan))))
    for weights in (None, np.zeros((784, 10)), np.zeros((3, 3, 1, 0))):
        with pytest.raises(NothingToShow):
            filters(Gallery(filters=weights))


def test_a_filter_is_shown_pixel_by_pixel() -> None:
    drawn = svg(filters(Gallery(filters=np.ones((5, 7, 1, 1)))), "f", "")
    assert 'width="7" height="5"' in drawn


def test_feature_maps_need_an_image_and_maps() -> None:
    gallery = samples.gallery()
    for without in (
        dataclasses.replace(gallery, digit=None),
        dataclasses.replace(gallery, feature_maps={}),
        dataclasses.replace(gallery, feature_maps={"dense": np.zeros(10)}),
    ):
        with pytest.raises(NothingToShow):
            feature_maps(without)
    flat = dataclasses.replace(gallery, feature_maps={"dead": np.zeros((4, 4, 2)), "odd": np.full((4, 4, 2), np.nan)})
    png(feature_maps(flat))
    assert "2 channels, 4 × 4" in texts(svg(feature_maps(flat), "f", ""))


def test_examples_are_chosen_as_they_are_said_to_be() -> None:
    gallery = samples.gallery()
    wrong = gallery.labels != gallery.predicted
    shown = texts(svg(examples(gallery, right=False), "e", ""))
    sure = np.flatnonzero(wrong)[np.argmax(gallery.confidence[wrong])]
    assert shown[0] == f"{gallery.labels[sure]} → {gallery.predicted[sure]}"
    right = texts(svg(examples(gallery, right=True), "e", ""))
    classes = sorted({int(label) for label in gallery.labels[~wrong]})
    assert [int(t) for t in right[0::2][: len(classes)]] == classes


def test_where_all_are_right_there_are_no_mistakes() -> None:
    gallery = samples.gallery()
    right = dataclasses.replace(gallery, predicted=gallery.labels)
    with pytest.raises(NothingToShow):
        examples(right, right=False)
    with pytest.raises(NothingToShow):
        examples(Gallery(), right=True)


@pytest.mark.parametrize("classes", [1, 2, 10, 26, 100])
def test_confusion_matrices_of_any_size(classes: int) -> None:
    counts = np.random.default_rng(0).integers(0, 9, (classes, classes))
    counts[0, 0] = 5
    counts[-1, :-1] = 0
    for width in (WIDE, NARROW):
        svg(confusion_matrix(counts, width=width), "c", "")


def test_the_counts_are_in_the_matrix() -> None:
    counts = [[90, 7, 0], [0, 80, 0], [3, 0, 70]]
    shown = texts(svg(confusion_matrix(counts, ["cat", "dog", "$x"]), "c", ""))
    assert {"90", "7", "80", "3", "70", "cat", "dog", "$x"} <= set(shown)
    assert f"{100 * 90 / 97:.1f}%" in shown
    assert "0" not in shown  # where nothing happened nothing stands
    for empty in ([], [[0, 0], [0, 0]]):
        with pytest.raises(NothingToShow):
            confusion_matrix(empty)


def test_picture_files(tmp_path: Path) -> None:
    gallery = samples.gallery()
    path = confusion_picture(samples.confusion(1), tmp_path / "new" / "confusion.png")
    assert path == tmp_path / "new" / "confusion.png"
    assert min(size(path)) > 500
    many = (gallery.images, gallery.labels, gallery.predicted, gallery.confidence)
    assert size(mistakes_picture(*many, tmp_path / "mistakes.png"))[0] > 500
    none = (gallery.images, gallery.labels, gallery.labels, gallery.confidence)
    size(mistakes_picture(*none, tmp_path / "none.png"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mistakes.png", "new", "none.png"]


def test_predictions_in_a_row(tmp_path: Path) -> None:
    gallery = samples.gallery()
    four = (gallery.images[:4], gallery.predicted[:4], gallery.confidence[:4])
    wide, high = size(predictions_picture(*four, tmp_path / "four.png"))
    assert wide > 2 * high
    one = size(predictions_picture(gallery.images[:1, :, :, 0], np.array([7]), np.array([1.0]), tmp_path / "one.png"))
    assert one[0] < wide
    labelled, plain = tmp_path / "labelled.png", tmp_path / "four.png"
    predictions_picture(*four, labelled, labels=gallery.predicted[:4])
    assert labelled.read_bytes() == plain.read_bytes()  # all right: nothing to mark
    predictions_picture(*four, labelled, labels=gallery.predicted[:4] + 1)
    assert labelled.read_bytes() != plain.read_bytes()
    size(predictions_picture(gallery.images[:0], np.zeros(0), np.zeros(0), tmp_path / "none.png"))


def test_pixels_are_not_blurred(tmp_path: Path) -> None:
    checkers = (np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)[None]
    path = predictions_picture(checkers, np.array([0]), np.array([0.5]), tmp_path / "c.png")
    grey = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("L"))
    inside = grey[70:-60, 60:-60]
    assert ((inside < 3) | (inside > 252)).mean() > 0.99
