"""What a GPU allows: what tile sizes and grids are chosen from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """``architecture`` ("sm_90"), how many multiprocessors, shared memory of a block at most, second-level cache."""

    architecture: str
    multiprocessors: int
    shared_bytes: int
    cache_bytes: int

    @property
    def capability(self) -> int:
        """90 for sm_90."""
        return int(self.architecture.removeprefix("sm_").rstrip("af"))


H100 = Limits("sm_90", 132, 232448, 50 << 20)

# Every generation that the kernels are compiled for, as its largest or best known card has it.
GENERATIONS = (
    Limits("sm_75", 72, 65536, 6 << 20),
    Limits("sm_80", 108, 166912, 40 << 20),
    Limits("sm_86", 28, 101376, 3 << 20),
    Limits("sm_89", 128, 101376, 72 << 20),
    H100,
    Limits("sm_100", 148, 232448, 126 << 20),
    Limits("sm_120", 170, 101376, 96 << 20),
)
