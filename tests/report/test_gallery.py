"""A gallery on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import report_samples as samples

from bareconv.errors import DataError
from bareconv.files import write_whole
from bareconv.report import Gallery


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    gallery = samples.gallery(channels=3)
    path = gallery.save(tmp_path / "deeper" / "gallery.npz")
    loaded = Gallery.load(path)
    assert list(loaded.feature_maps) == ["conv1", "conv2", "pool"]
    for name in ("filters", "digit", "images", "labels", "predicted", "confidence"):
        mine, theirs = getattr(gallery, name), getattr(loaded, name)
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype
    for name, maps in gallery.feature_maps.items():
        np.testing.assert_array_equal(maps, loaded.feature_maps[name])
    assert [p.name for p in path.parent.iterdir()] == ["gallery.npz"]


def test_what_is_missing_stays_missing(tmp_path: Path) -> None:
    loaded = Gallery.load(Gallery().save(tmp_path / "empty.npz"))
    assert loaded.filters is None
    assert loaded.digit is None
    assert loaded.feature_maps == {}
    assert len(loaded.images) == 0


@pytest.mark.parametrize("content", [None, b"", b"not an archive", b"PK\x03\x04broken"])
def test_another_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "other.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"other\.npz"):
        Gallery.load(path)


def test_an_archive_of_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    np.savez(path, weights=np.zeros(3))
    with pytest.raises(DataError, match=r"other\.npz.*feature_names"):
        Gallery.load(path)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    np.savez(path, feature_names=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="pickle"):
        Gallery.load(path)


def test_of_many_layers_some_are_shown_from_first_to_last() -> None:
    maps = {f"layer{i}": np.zeros((2, 2, 1)) for i in range(30)} | {"flat": np.zeros(7)}
    shown = list(Gallery(feature_maps=maps).layers(5))
    assert len(shown) == 5
    assert shown[0] == "layer0"
    assert shown[-1] == "layer29"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_whole(tmp_path / "a", b"old")
    with pytest.raises(TypeError):
        write_whole(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
