"""A batch in slices, one for each thread."""

from __future__ import annotations

import itertools


def slices(images: int, threads: int) -> list[slice]:
    """At most ``threads`` runs of images, of equal length or nearly so; none is empty."""
    edges = [images * i // threads for i in range(threads + 1)]
    return [slice(begin, end) for begin, end in itertools.pairwise(edges) if begin < end]
