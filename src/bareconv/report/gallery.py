"""The arrays behind a report's pictures: filters, feature maps, and images with what the model made of them."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv.errors import DataError
from bareconv.files import write_whole


def is_signed(maps: NDArray[Any]) -> bool:
    """Whether a layer answers below zero too, as a convolution does before its ReLU."""
    return bool(np.nanmin(maps, initial=0.0) < 0)


@dataclass(frozen=True)
class Gallery:
    """Pictures' arrays, all NumPy on the host.

    Attributes: ``filters`` (R, S, C, K) float, the first convolution's weights, or None; ``digit`` (H, W, C) uint8, the
    image whose feature maps are shown, or None; ``feature_maps``, by layer in order, each (P, Q, K) float;
    ``images`` (M, H, W, C) uint8 with ``labels`` (M,), the true classes, ``predicted`` (M,) and ``confidence`` (M,),
    the predicted class's probability.
    """

    filters: NDArray[Any] | None = None
    digit: NDArray[Any] | None = None
    feature_maps: dict[str, NDArray[Any]] = field(default_factory=dict)
    images: NDArray[Any] = field(default_factory=lambda: np.zeros((0, 1, 1, 1), np.uint8))
    labels: NDArray[Any] = field(default_factory=lambda: np.zeros(0, np.int64))
    predicted: NDArray[Any] = field(default_factory=lambda: np.zeros(0, np.int64))
    confidence: NDArray[Any] = field(default_factory=lambda: np.zeros(0, np.float32))

    def layers(self, most: int = 8) -> dict[str, NDArray[Any]]:
        """The feature maps that have channels to show; of more than ``most`` layers some, evenly from first to last."""
        found = [(name, maps) for name, maps in self.feature_maps.items() if maps.ndim == 3 and maps.size]
        if len(found) > most:
            found = [found[i] for i in np.linspace(0, len(found) - 1, most).round().astype(int)]
        return dict(found)

    def save(self, path: str | Path) -> Path:
        """Write an .npz without pickled objects, aside and renamed; returns its path."""
        arrays: dict[str, NDArray[Any]] = {
            "images": self.images,
            "labels": self.labels,
            "predicted": self.predicted,
            "confidence": self.confidence,
            "feature_names": np.array(list(self.feature_maps), dtype=np.str_),
        }
        arrays |= {f"feature_{i}": maps for i, maps in enumerate(self.feature_maps.values())}
        arrays |= {name: array for name in ("filters", "digit") if (array := getattr(self, name)) is not None}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        return write_whole(Path(path), buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> Gallery:
        """Read what ``save`` wrote. Raises DataError, naming the file, where it is missing or something else."""
        try:
            with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as stored:
                arrays = dict(stored)
            names = [str(name) for name in arrays["feature_names"]]
            return cls(
                filters=arrays.get("filters"),
                digit=arrays.get("digit"),
                feature_maps={name: arrays[f"feature_{i}"] for i, name in enumerate(names)},
                images=arrays["images"],
                labels=arrays["labels"],
                predicted=arrays["predicted"],
                confidence=arrays["confidence"],
            )
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{path}: expected a gallery, an .npz that bareconv wrote: {reason}") from error
