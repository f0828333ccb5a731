"""Any number of images and labels drawn at random: the images in a file, written piece by piece, that may grow.

Drawing each pixel of ten million images would take minutes. A piece is drawn once; the others are the same bits, some
of them flipped, by eight bytes drawn for each piece: every pixel is still uniform, and no two pieces are alike.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from io import RawIOBase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bareconv import random
from bareconv.errors import BareconvError
from bareconv.nn.layer import Shape
from bareconv.report.format import bytes_, count

PIECE_BYTES = 1 << 22
SYNC_BYTES = 1 << 28  # after which the system brings them to the disk: it should not do so while steps are measured
MARGIN_BYTES = 1 << 26  # of free room that are left


class ImageFile:
    """Images of ``image_shape`` (H, W, C) in a file in ``folder``, with their labels, of which there are ``classes``.

    The first images are the same ones however many there are. ``place``: the folder that errors name, where that is a
    temporary one within it.
    """

    def __init__(self, folder: Path, image_shape: Shape, classes: int, seed: int, *, place: Path | None = None) -> None:
        self.path, self.place = folder / "drawn-images", place or folder
        self.image_shape, self.classes, self.seed = image_shape, classes, seed
        self.image_bytes = math.prod(image_shape)
        self.piece = max(1, PIECE_BYTES // self.image_bytes // 8) * 8  # images; a whole number of eight bytes
        self.pieces = 0  # that are in the file

    def grow(
        self,
        images: int,
        tell: Callable[[int, int], None] = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Write until there are so many images; False where ``should_stop()`` came first, and a later call goes on.

        ``tell(done, total)``: images that have been written. BareconvError where there is no room.
        """
        pieces = -(-images // self.piece)
        if pieces <= self.pieces:
            return True
        self._check_room(images, (pieces - self.pieces) * self.piece * self.image_bytes)
        words = random.words(self.seed, (random.SYNTHETIC, 0, 0), self.piece * self.image_bytes // 4).view(np.uint64)
        try:
            # Written, and not assigned to a mapped array: on a full disk that would end the process.
            with self.path.open("r+b" if self.path.exists() else "w+b", buffering=0) as file:
                file.seek(self.pieces * words.nbytes)
                for number in range(self.pieces, pieces):
                    if should_stop():
                        return False
                    flipped = random.words(self.seed, (random.SYNTHETIC, number, 2), 2).view(np.uint64)
                    _write(file, (words ^ flipped).tobytes())
                    self.pieces = number + 1
                    if self.pieces == pieces or self.pieces * words.nbytes % SYNC_BYTES < words.nbytes:
                        os.fsync(file.fileno())
                    tell(min(self.pieces * self.piece, images), images)
        except OSError as error:
            raise BareconvError(
                f"{self._wanted(images)}, which could not be written in {self.place}: {error.strerror or error}: "
                "give another folder (--folder)"
            ) from None
        return True

    def images(self, number: int) -> NDArray[np.uint8]:
        """The first so many, uint8 (number, H, W, C), mapped."""
        assert number <= self.pieces * self.piece
        return np.memmap(self.path, np.uint8, "r", shape=(number, *self.image_shape))

    def labels(self, number: int) -> NDArray[np.int32]:
        """Of the first so many, int32 (number,)."""
        pieces = range(-(-number // self.piece))
        drawn = [random.words(self.seed, (random.SYNTHETIC, piece, 1), self.piece) % self.classes for piece in pieces]
        return np.concatenate([labels.astype(np.int32) for labels in drawn])[:number]

    def _check_room(self, images: int, needed: int) -> None:
        free = shutil.disk_usage(self.path.parent).free
        if needed + MARGIN_BYTES > free:
            raise BareconvError(
                f"{self._wanted(images)}, of which {bytes_(needed)} are still to be written, and in {self.place} "
                f"{bytes_(free)} are free: give a folder with more room (--folder), or fewer images"
            )

    def _wanted(self, images: int) -> str:
        return f"{count(images)} images take {bytes_(images * self.image_bytes)}"


def lies_in_memory(folder: Path, root: Path = Path("/")) -> bool:
    """Whether what is written to ``folder`` goes to memory, not to a disk (tmpfs). Linux; elsewhere it is not known.

    ``root``: where /proc is, for tests.
    """
    try:
        mounts = (root / "proc/self/mounts").read_text().splitlines()
    except OSError:
        return False
    folder = folder.resolve()
    found, kind = Path("/"), ""
    for line in mounts:
        _, point, this, *_ = line.split()
        place = Path(point.replace("\\040", " "))
        if folder.is_relative_to(place) and place.is_relative_to(found):  # of two at one place, the later is above
            found, kind = place, this
    return kind in ("tmpfs", "ramfs")


def _write(file: RawIOBase, content: bytes) -> None:
    """All of it: a raw file may take less at a time."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) or 0 :]
