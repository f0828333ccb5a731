"""Batch normalisation, with the relu, the residual sum and the max pool around it.

Forward in training: ``statistics`` (unless the convolution before has written them), ``finish_statistics``, ``apply``;
in evaluation: ``use_running``, ``apply``. Backward: ``sum_gradients``, ``finish_gradients``, ``input_gradient``.

Operands, the same in all: ``x`` what is normalised, ``y`` the node's output, ``dx`` and ``dy`` their gradients,
``other`` what a residual sum adds, all as activations are kept; ``passed`` uint8 (``passed_size``), what a relu after a
sum has let through; ``control``; ``gamma``, ``beta``, ``running_mean``,
``running_var`` float32 (C), the model's own; ``coefficients`` float32 (COEFFICIENTS, padded C), which goes from kernel
to kernel; ``parts`` float32, the blocks' sums, see ``Parts``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from bareconv.kernels.cuda.kernel import KEPT_BYTES, NUMBER, Kernel, Precision, padded
from bareconv.kernels.cuda.limits import Limits
from bareconv.nn.layer import Shape
from bareconv.ops.windows import Pair

THREADS = 256
COEFFICIENTS = 6  # rows: mean, 1 / std, scale, shift, and two of the backward
WIDEST_SLICE = 32  # vectors of 16 bytes, of a pixel's channels, that a block takes

_SUMS = {None: 0, "before relu": 1, "after relu": 2}
_STAGES = (
    *("statistics", "finish_statistics", "use_running", "apply"),
    *("sum_gradients", "finish_gradients", "input_gradient"),
)


@dataclass(frozen=True)
class Norm:
    """A batch norm over ``shape``, (H, W, C) or (C), and what follows it.

    ``added``: where a residual sum comes in, relu(norm(x) + other) or relu(norm(x)) + other. ``pool``: the windows of
    a max pool, which do not overlap; not together with a sum.
    """

    shape: Shape
    relu: bool = False
    added: Literal["before relu", "after relu"] | None = None
    pool: Pair = (1, 1)
    eps: float = 1e-5
    momentum: float = 0.1

    def __post_init__(self) -> None:
        assert self.added is None or self.pool == (1, 1), "a pool after a residual sum is a kernel of its own"

    @property
    def size(self) -> Pair:
        """(H, W); (1, 1) of features."""
        return (self.shape[0], self.shape[1]) if len(self.shape) == 3 else (1, 1)

    @property
    def channels(self) -> int:
        return self.shape[-1]

    @property
    def pixels(self) -> int:
        return math.prod(self.size)

    @property
    def pooled(self) -> Pair:
        """(H, W) of y."""
        (height, width), (down, across) = self.size, self.pool
        return height // down, width // across

    @property
    def remembers(self) -> bool:
        """What the relu lets through depends on ``other``: forward writes it down for backward, in ``passed``."""
        return self.relu and self.added == "before relu"


def passed_size(precision: Precision, batch: int, norm: Norm) -> int:
    """Elements of ``passed``: a byte for each 16 bytes of y, with a bit for each number."""
    return batch * norm.pixels * padded(norm.channels) * KEPT_BYTES[precision] // 16


@dataclass(frozen=True)
class Parts:
    """Sums by block: float32 [``count``][2][padded C], then of statistics how many pixels each block counted.

    Means of a part that counted none are not looked at, but part 0's, which must be a number.
    """

    count: int

    def size(self, channels: int) -> int:
        """Elements of the operand ``parts``."""
        return self.count * (2 * padded(channels) + 1)

    @property
    def threads(self) -> int:
        """Of a block that merges them: up to 2048 parts, a thread has so few that it loads them in one go or two."""
        return min(max(256, 1 << (self.count - 1).bit_length()), 1024)


@dataclass(frozen=True)
class _Grid:
    """A block has ``vectors`` of a pixel's channels (``slices`` blocks have them all), ``rows`` rows at a time."""

    vectors: int
    slices: int
    rows: int
    blocks: int


def _grid(
    precision: Precision, channels: int, rows: int, unroll: int, limits: Limits, blocks_each: int, least_tiles: int
) -> _Grid:
    vectors = padded(channels) * KEPT_BYTES[precision] // 16
    slices = -(-vectors // WIDEST_SLICE)
    vectors = -(-vectors // slices)
    tile = THREADS // vectors * unroll
    tiles = -(-rows // tile)
    blocks = max(min(limits.multiprocessors * blocks_each // slices, tiles // least_tiles), 1)
    # No more blocks than need be for the first of them to have as few tiles.
    return _Grid(vectors, slices, tile, -(-tiles // -(-tiles // blocks)))


def _kernel(
    stage: str,
    norm: Norm,
    defines: dict[str, str | int | float],
    grid: tuple[int, int, int],
    operands: tuple[str, ...],
    shared_bytes: int = 0,
    work: float = 0.0,
    threads: int = THREADS,
) -> Kernel:
    shape = {"HEIGHT": norm.size[0], "WIDTH": norm.size[1], "CHANNELS": norm.channels, "THREADS": threads}
    constants = {"STAGE": _STAGES.index(stage), **shape, **defines}
    return Kernel("norm.cu", stage, tuple(constants.items()), grid, threads, shared_bytes, operands, bytes=work)


def _pass(
    stage: str,
    precision: Precision,
    batch: int,
    norm: Norm,
    limits: Limits,
    operands: tuple[str, ...],
    tensors: tuple[float, float],
) -> tuple[Kernel, _Grid]:
    """A kernel that goes over the images; ``tensors``: how many of x's size, and of y's size, it reads and writes."""
    cells = norm.pool[0] * norm.pool[1]
    sums = stage in ("statistics", "sum_gradients")
    unroll = 1 if cells > 3 else (2 if cells > 1 else 4)
    if stage == "statistics":
        rows, unroll = norm.pixels, 4
    elif stage == "input_gradient":  # windows that hang over the edge are rows, too
        rows = math.prod(-(-length // step) for length, step in zip(norm.size, norm.pool, strict=True))
        unroll = min(unroll, 2)
    else:
        rows = math.prod(norm.pooled)
        if stage == "sum_gradients" and cells == 4:
            unroll = 2  # it has few threads, whose loads must keep the memory busy
    # Sums have as many blocks as run at a time, and for each at least 32 KB to read: more parts take longer to merge.
    # In other kernels many small blocks share out the work better.
    blocks_each = {"statistics": 4, "sum_gradients": 2}.get(stage, 16)
    least_tiles = max(1, 8 // (unroll * (cells if stage == "sum_gradients" else 1))) if sums else 1
    grid = _grid(precision, norm.channels, batch * rows, unroll, limits, blocks_each, least_tiles)
    defines: dict[str, str | int | float] = {
        "PRECISION": NUMBER[precision],
        "SLICE": grid.vectors,
        "UNROLL": unroll,
    }
    if stage != "statistics":
        defines |= {"POOL_H": norm.pool[0], "POOL_W": norm.pool[1], "RELU": int(norm.relu), "SUM": _SUMS[norm.added]}
    if stage == "apply":
        defines["REMEMBERS"] = int("passed" in operands)
    if stage == "input_gradient":
        defines["RECOMPUTE"] = int(norm.relu and not norm.remembers)
    size = batch * padded(norm.channels) * KEPT_BYTES[precision]
    kernel = _kernel(
        stage,
        norm,
        defines,
        (grid.blocks, grid.slices, 1),
        operands,
        shared_bytes=2 * THREADS // grid.vectors * grid.vectors * (16 // KEPT_BYTES[precision]) * 4 if sums else 0,
        work=size * (tensors[0] * norm.pixels + tensors[1] * math.prod(norm.pooled)),
    )
    return kernel, grid


def statistics(precision: Precision, batch: int, norm: Norm, limits: Limits) -> tuple[Kernel, Parts]:
    """x -> ``parts``: by block and channel the mean, and the sum of the squares of the distances from it."""
    kernel, grid = _pass("statistics", precision, batch, norm, limits, ("x", "control", "parts"), (1, 0))
    return kernel, Parts(grid.blocks)


def finish_statistics(norm: Norm, parts: Parts) -> Kernel:
    """``parts``, of ``statistics`` or of a convolution, merged -> ``coefficients``; the running statistics moved."""
    return _kernel(
        "finish_statistics",
        norm,
        {"PARTS": parts.count, "EPS": norm.eps, "MOMENTUM": norm.momentum},
        (padded(norm.channels) // 8, 1, 1),
        ("parts", "gamma", "beta", "running_mean", "running_var", "coefficients"),
        work=4 * parts.size(norm.channels),
        threads=parts.threads,
    )


def use_running(norm: Norm) -> Kernel:
    """Running statistics -> ``coefficients``, as far as ``apply`` needs them."""
    return _kernel(
        "use_running",
        norm,
        {"EPS": norm.eps},
        (-(-padded(norm.channels) // THREADS), 1, 1),
        ("gamma", "beta", "running_mean", "running_var", "coefficients"),
        work=24 * norm.channels,
    )


def apply(precision: Precision, batch: int, norm: Norm, limits: Limits, backward: bool = False) -> Kernel:
    """x (and ``other``, or null) -> y, normalised by ``coefficients``; with the sum, the relu and the pool.

    ``backward``: there will be one, so ``passed`` is written, too, where ``norm.remembers``. Else it is no operand.
    """
    operands = ("x", "other", "coefficients", "control", "y", *(("passed",) if backward and norm.remembers else ()))
    return _pass("apply", precision, batch, norm, limits, operands, (1, 1 + (norm.added is not None)))[0]


def sum_gradients(precision: Precision, batch: int, norm: Norm, limits: Limits) -> tuple[Kernel, Parts]:
    """x, dy -> ``parts`` of the gradients of beta and of gamma.

    Where ``norm.remembers``, ``passed`` is read, too, and dy as far as the relu lets it through goes to ``masked``: the
    gradient of ``other``, and what ``input_gradient`` then takes for dy. It may be dy itself. Else ``passed`` and
    ``masked`` may be null.
    """
    operands = ("x", "dy", "passed", "coefficients", "control", "parts", "masked")
    tensors = (1.0, 2.0 if norm.remembers else 1.0)
    kernel, grid = _pass("sum_gradients", precision, batch, norm, limits, operands, tensors)
    return kernel, Parts(grid.blocks)


def finish_gradients(norm: Norm, parts: Parts) -> Kernel:
    """``parts`` of ``sum_gradients`` merged -> ``dgamma`` and ``dbeta`` float32 (C), and more of ``coefficients``.

    For the update they are partial gradients in one part.
    """
    return _kernel(
        "finish_gradients",
        norm,
        {"PARTS": parts.count},
        (padded(norm.channels) // 8, 1, 1),
        ("parts", "control", "coefficients", "dgamma", "dbeta"),
        work=4 * parts.size(norm.channels),
        threads=parts.threads,
    )


def input_gradient(precision: Precision, batch: int, norm: Norm, limits: Limits) -> Kernel:
    """x, dy (what ``sum_gradients`` left in ``masked`` where it did), ``coefficients`` -> dx."""
    operands = ("x", "dy", "coefficients", "control", "dx")
    return _pass("input_gradient", precision, batch, norm, limits, operands, (2, 1))[0]
