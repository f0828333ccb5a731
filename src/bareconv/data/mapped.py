"""Images in a file that is mapped into memory: a training reads of it what it needs, and may have more than fits."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray


def expect_random_access(images: NDArray[Any]) -> bool:
    """Tell the system that images of a mapped file will be read here and there; returns whether they are of one.

    Otherwise it reads what follows an image along with it, some thirty pages, of which a shuffled training uses none.
    """
    owner: Any = images
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if not isinstance(owner, mmap.mmap):
        return False
    if hasattr(mmap, "MADV_RANDOM"):  # not on Windows
        owner.madvise(mmap.MADV_RANDOM)
    return True
