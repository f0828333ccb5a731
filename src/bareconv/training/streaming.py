"""Images that do not fit into a device's memory: the ones of the next steps are brought there, again and again.

On the host they may be a mapped file. What a window of steps needs is read in the order of the file and laid into one
array on the device, in which the steps choose by the epoch's permutation as they would in the whole.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv.data import Split
from bareconv.device import Device
from bareconv.training.engine import Batches

RESIDENT = 0.5  # of a device's free memory: a data set of no more stays there; the rest is for the model's own arrays
STAGED_BYTES = 1 << 28  # of images on the device at once, or a batch
UNDER_WAY = 2  # windows that the host may have read ahead of the device: each has a copy in the host's memory


def fits(split: Split, device: Device) -> bool:
    """Whether all images may stay on the device. On the CPU they are used where they are."""
    free = device.free_bytes()
    return free is None or split.images.nbytes <= RESIDENT * free


class Stream:
    """Brings images and labels to a device. What it gave is overwritten by what it gives next, in the device's order.

    ``images`` (``room``, H, W, C) and ``labels`` (``room``,) are the same arrays every time; ``steps``: how many steps'
    images there is room for, at least one's.
    """

    def __init__(self, split: Split, device: Device, batch_size: int, staged_bytes: int = STAGED_BYTES) -> None:
        self.split, self.device = split, device
        self.steps = max(1, staged_bytes // (split.images[0].nbytes * batch_size))
        room = min(self.steps * batch_size, len(split))
        self.images = device.xp.zeros((room, *split.images.shape[1:]), np.uint8)
        self.labels = device.xp.zeros(room, np.int32)
        self._copied: deque[Any] = deque()  # a mark after each copy that may still be under way

    def batches(self, order: NDArray[np.int64], size: int, count: int, step: int) -> Batches:
        """The images that ``order`` names, of all there are, for ``count`` steps of ``size`` from step ``step``."""
        if len(self._copied) == UNDER_WAY:
            self.device.seconds_between([self._copied.popleft()])  # which waits for it
        places, chosen = np.unique(order, return_inverse=True)  # ascending, and where each of ``order`` is among them
        self.images[: len(places)] = self.device.asarray(self.split.images[places])
        self.labels[: len(places)] = self.device.asarray(self.split.labels[places])
        self._copied.append(self.device.mark())
        return Batches(self.images, self.labels, self.device.asarray(chosen), size, count, step)
