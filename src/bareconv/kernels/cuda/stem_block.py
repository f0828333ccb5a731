"""What a network's first block is: what the choices of its kernels, of every precision, start from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bareconv.kernels.cuda.geometry import Convolution
from bareconv.kernels.cuda.kernel import KEPT_BYTES, NUMBER, Kernel, Precision, padded
from bareconv.ops.windows import Pair

MAX_CHANNELS = 4
WARP = 32

OPERANDS = {
    "stem_forward": (
        *("pixels", "order", "control", "weight_a", "bias_a", "weight_b", "bias_b"),
        *("y", "where"),
    ),
    "stem_backward_b": (
        *("pixels", "order", "control", "weight_a", "bias_a", "dy", "where"),
        *("partial_weight_b", "partial_bias_b"),
    ),
    "stem_backward_a": (
        *("pixels", "order", "control", "weight_a", "bias_a", "weight_b", "dy", "where"),
        *("partial_weight_a", "partial_bias_a"),
    ),
}


@dataclass(frozen=True)
class Stem:
    """uint8 images, (pixel - mean) / std, through ``a`` and relu and, if ``a_pool``, a 2 x 2 max pool; then ``b`` too.

    ``b`` reads what ``a`` and its pool make. A pool drops an odd last row or column.
    """

    a: Convolution
    a_pool: bool
    b: Convolution
    b_pool: bool
    mean: float
    std: float

    @property
    def middle(self) -> Pair:
        """Height and width of what ``b`` reads."""
        return _pooled(self.a.output, self.a_pool)

    @property
    def output(self) -> Pair:
        """(P, Q) of what ``b`` and its pool make."""
        return _pooled(self.b.output, self.b_pool)

    @property
    def is_possible(self) -> bool:
        """Whether the kernels know such a block at all."""
        plain = all(one.window.stride == one.window.dilation == (1, 1) for one in (self.a, self.b))
        fits = (self.b.height, self.b.width) == self.middle and self.b.channels == self.a.filters
        return plain and fits and self.a.channels <= MAX_CHANNELS and min(*self.middle, *self.output) >= 1

    def defines(self, precision: Precision) -> dict[str, str | int | float]:
        """The block's constants, as the sources name them."""
        made: dict[str, str | int | float] = {
            "PRECISION": NUMBER[precision],
            "HEIGHT": self.a.height,
            "WIDTH": self.a.width,
            "CHANNELS": self.a.channels,
            "MEAN": self.mean,
            "STD": self.std,
        }
        for name, one, pool in (("A", self.a, self.a_pool), ("B", self.b, self.b_pool)):
            made |= {
                f"{name}_FILTERS": one.filters,
                f"{name}_KERNEL_H": one.kernel[0],
                f"{name}_KERNEL_W": one.kernel[1],
                f"{name}_PADDING_H": one.padding[0],
                f"{name}_PADDING_W": one.padding[1],
                f"{name}_POOL": int(pool),
            }
        return made


@dataclass(frozen=True)
class Choice:
    """One way to launch a kernel, and an estimate of its time in cycles."""

    cycles: float
    kernel: Kernel


def stem_kernel(
    entry: str,
    stem: Stem,
    precision: Precision,
    batch: int,
    defines: dict[str, int],
    grid: tuple[int, int, int],
    shared_bytes: int,
) -> Kernel:
    """One of the block's kernels, of ``OPERANDS``; ``defines`` are the constants of the way that is chosen.

    A block of threads has TEAMS of WARPS each; ``shared_bytes`` is what it takes.
    """
    source = entry.replace("stem", "stem_float32") if precision == "float32" else entry
    P, Q = stem.output
    image = stem.a.height * stem.a.width * stem.a.channels
    times_a = 2 if entry == "stem_backward_a" else 1  # a is made again from the pixels, then comes its gradient
    return Kernel(
        f"{source}.cu",
        entry,
        tuple({**stem.defines(precision), **defines, "SHARED_BYTES": shared_bytes}.items()),
        grid=grid,
        threads=defines["WARPS"] * defines["TEAMS"] * WARP,
        shared_bytes=shared_bytes,
        operands=OPERANDS[entry],
        flops=times_a * stem.a.flops(batch) + stem.b.flops(batch),
        bytes=batch * (image + P * Q * padded(stem.b.filters) * (KEPT_BYTES[precision] + 1)),
    )


def bands_of(rows: int) -> Iterator[tuple[int, int]]:
    """Ways to cut ``rows`` rows: how many bands, of how many rows."""
    for size in range(rows, 0, -1):
        bands = -(-rows // size)
        if size == -(-rows // bands):
            yield bands, size


def _pooled(size: Pair, pool: bool) -> Pair:
    return (size[0] // 2, size[1] // 2) if pool else size
