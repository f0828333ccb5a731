"""Digits drawn by hand, in PNG or JPEG files, made into what MNIST's images are.

MNIST's own page says how those were made: the black-and-white digits "were size normalized to fit in a 20x20 pixel box
while preserving their aspect ratio", with grey levels from anti-aliasing, and "centered in a 28x28 image by computing
the center of mass of the pixels, and translating the image so as to position this point at the center"
(http://yann.lecun.com/exdb/mnist/). A network trained on MNIST has seen nothing else, so a drawing goes the same way.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bareconv.data.files import read_raw
from bareconv.errors import DataError, UsageError

if TYPE_CHECKING:
    from PIL import Image

_FIELD, _BOX = 28, 20  # pixels: the image's side, and the longer side of the digit in it
# Where MNIST's centres of mass lie, in pixels counted from 0: in all 60,000 images within half a pixel of 14.
_CENTRE = 14.0
_LONGEST = 640  # pixels; a photograph is first reduced to this, which averages the grain of its paper away
_LEAST_CONTRAST = 16.0  # of 255, between ink and background; less is a blank page
_FAINT = 0.1  # of the strongest ink: what is fainter is smudge or the traces of JPEG, not digit
_GRAIN = 5.0  # standard deviations of the background: what is fainter is grain


def read_images(paths: Sequence[Path | str]) -> NDArray[np.uint8]:
    """One drawn digit from each file, uint8 (N, 28, 28, 1): bright ink on 0, scaled and centred as MNIST's are.

    Files: PNG or JPEG of any size, dark ink on light or light on dark (the background is what the border is).
    Transparency shows white, or black behind ink that would vanish on white. A photograph is turned as its EXIF data
    says. Raises DataError with the file where it cannot be read or is blank, UsageError for no paths at all.
    """
    if not paths:
        raise UsageError("expected at least one image file, got none")
    return np.stack([_normalize(_ink(Path(path)))[..., None] for path in paths])


def _ink(path: Path) -> NDArray[np.float32]:
    """How much ink is where: float32 (H, W), 0 on the background, somewhere above."""
    layers = _open(path)
    grey, alpha = layers[..., 0], layers[..., 1] / 255
    for paper in (255, 0):
        ink, grain = _separate(grey * alpha + paper * (1 - alpha))
        strongest = ink.max()
        if strongest >= max(_LEAST_CONTRAST, 1.5 * _GRAIN * grain):
            ink[ink < max(_FAINT * strongest, _GRAIN * grain)] = 0
            if grain >= 1:
                ink[_neighbours(ink > 0) < 4] = 0  # specks of grain, which would count as the digit's extent
            if ink.any():
                return ink
        if alpha.min() == 1:
            break
    height, width = grey.shape
    raise DataError(f"{path}: expected a drawn digit, got a blank image of {width} x {height} pixels")


def _separate(grey: NDArray[np.floating]) -> tuple[NDArray[np.float32], float]:
    """Ink against the background, (H, W) from 0, and the background's standard deviation.

    The background is the plane through the border's brightness, for light falls on paper from a side. What departs
    from it furthest is ink, so that is what tells dark on light from light on dark.
    """
    height, width = grey.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    edge = np.zeros(grey.shape, bool)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    points = np.stack([np.ones(edge.sum()), y[edge], x[edge]], axis=1)
    inside = np.full(len(points), True)
    for _ in range(3):  # again without what is far off: a stroke may run over the border
        plane = np.linalg.lstsq(points[inside], grey[edge][inside])[0]
        away = np.abs(grey[edge] - points @ plane)
        grain = 1.4826 * float(np.median(away))  # the standard deviation, were it normal; strokes do not move it
        inside = away <= max(3 * grain, 1.0)
    above = grey - (plane[0] + plane[1] * y + plane[2] * x)
    return np.maximum(above if above.max() > -above.min() else -above, 0).astype(np.float32), grain


def _neighbours(mask: NDArray[np.bool_]) -> NDArray[np.int8]:
    """How many of the 3 x 3 pixels around each are set: int8 (H, W)."""
    height, width = mask.shape
    padded = np.pad(mask, 1).astype(np.int8)
    rows = padded[:height] + padded[1 : height + 1] + padded[2:]  # (H, W+2)
    return rows[:, :width] + rows[:, 1 : width + 1] + rows[:, 2:]


def _normalize(ink: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The digit cut out of (H, W), scaled to the box and put by its centre of mass: uint8 (28, 28)."""
    from PIL import Image

    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    digit = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = _BOX / max(digit.shape)
    height, width = (max(1, round(scale * side)) for side in digit.shape)
    # Averaging over areas is what anti-aliasing is; enlarged, it would leave squares.
    resample = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    small = np.asarray(Image.fromarray(digit).resize((width, height), resample))
    # The strongest ink is full white, as in MNIST, also where it was pencil, or a stroke thinner than a pixel is now.
    small = np.rint(small * (255 / small.max())).astype(np.uint8)

    field = np.zeros((_FIELD, _FIELD), np.uint8)
    top, left = _offset(small.sum(axis=1)), _offset(small.sum(axis=0))
    field[top : top + height, left : left + width] = small
    return field


def _offset(mass: NDArray[np.uint64]) -> int:
    """Where a line of pixels with these masses starts, so that its centre of mass comes to the field's centre."""
    centre = float(mass @ np.arange(len(mass))) / float(mass.sum())
    return min(max(math.ceil(_CENTRE - 0.5 - centre), 0), _FIELD - len(mass))


def _open(path: Path) -> NDArray[np.float32]:
    """Brightness and opacity of each pixel, float32 (H, W, 2) from 0 to 255, the right way up."""
    from PIL import Image, ImageOps

    data = read_raw(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF data, or a large picture (too large a one is an error)
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                image.load()
                upright = ImageOps.exif_transpose(image)
                upright = _eight_bits(upright).convert("RGBA").convert("LA")
    except Exception as error:  # Pillow's decoders fail in many ways on a damaged file; each is the file's fault
        raise DataError(f"{path}: expected a PNG or JPEG image, got {_reason(data, error)}") from None
    if max(upright.size) > _LONGEST:
        upright = ImageOps.contain(upright, (_LONGEST, _LONGEST), Image.Resampling.BOX)
    return np.asarray(upright, np.float32)


def _eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit greyscale image in 8 bits: Pillow's own conversion cuts off at 255 instead of scaling."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))


def _reason(data: bytes, error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if not data:
        return "an empty file"
    if isinstance(error, UnidentifiedImageError):  # its own text names an object in memory
        return f"something else (it starts with 0x{data[:4].hex()})"
    return "a damaged one: " + (" ".join(str(error).split())[:120] or type(error).__name__)
