"""Dense layers: forward in one launch or split over the features, both gradients, and the gradient with its update.

A dense layer sees an image of ``taps`` pixels of ``channels`` each, one pixel where it follows no Flatten: x is
(batch, taps, padded channels), its weight's working copy (taps, padded channels, padded units), both matrices of
``features`` = taps * padded channels rows or columns. y and dy are (batch, padded units). All of these are of the
precision's kept type; masters, states, sums and partial gradients are float32 and, but for sums, without padding.

What belongs to images that the step does not have may be anything in x, y, dx and sums; it reaches no gradient of a
weight or bias. ``bias`` operands are null where a layer has none.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from bareconv.kernels.cuda.kernel import KEPT_BYTES, NUMBER, Kernel, Precision, padded
from bareconv.kernels.cuda.limits import Limits
from bareconv.kernels.cuda.matrix import ACROSS, ALONG, CACHE_RATE, Tiling, has_matrix_unit, tilings
from bareconv.kernels.cuda.update import rule_defines
from bareconv.optim.rule import Rule

_FINISH_THREADS = 128
_MOST_SPLITS = 64
_MOST_PARTS = 1024
_MOST_PIXEL_UNITS = 16
_MOST_PIXEL_WARPS = 13
_BACKWARD_THREADS = 256
_MOST_COLUMNS = 12  # of matrices of eight features by 128 units, which a block of them keeps in registers
_BLOCK_RATE = 40e9  # bytes a second that a block alone on its multiprocessor loads
MOST_TOGETHER = 3  # layers that ``backward`` takes


@dataclass(frozen=True)
class DenseShape:
    """``taps`` pixels of ``channels`` to ``units``."""

    taps: int
    channels: int
    units: int

    @property
    def features(self) -> int:
        """Rows of the working copy: a pixel's channels with what pads them."""
        return self.taps * padded(self.channels)

    @property
    def weight_size(self) -> int:
        """Elements of the weight itself."""
        return self.taps * self.channels * self.units

    @property
    def copy_size(self) -> int:
        """Elements of the weight's working copy."""
        return self.features * padded(self.units)

    def flops(self, images: int) -> float:
        """Of the forward, of dX or of dW each: a multiplication and an addition count as two."""
        return 2.0 * images * self.weight_size


def splits_of(precision: Precision, shape: DenseShape, batch: int, limits: Limits) -> int:
    """Into how many sums ``product`` splits the features."""
    return _forward_tiling(precision, shape, batch, limits)[1]


def product(precision: Precision, shape: DenseShape, batch: int, limits: Limits) -> Kernel:
    """The layer without its end: ``sums`` float32 (``splits_of``, batch, padded units), to be added up.

    Operands: x, w (the working copy), control, sums. The padding columns are zeros.
    """
    tiling, splits = _forward_tiling(precision, shape, batch, limits)
    return _forward(precision, shape, batch, limits, tiling, splits, None)


def finish(precision: Precision, shape: DenseShape, batch: int, splits: int, relu: bool) -> Kernel:
    """y from ``product``'s sums. Operands: sums, bias, control, y."""
    quads = batch * padded(shape.units) // 4
    return Kernel(
        "dense_finish.cu",
        "dense_finish",
        _defines(precision, IMAGES=batch, UNITS=shape.units, SPLITS=splits, RELU=relu, THREADS=_FINISH_THREADS),
        grid=(-(-quads // _FINISH_THREADS), 1, 1),
        threads=_FINISH_THREADS,
        shared_bytes=0,
        operands=("sums", "bias", "control", "y"),
        flops=4.0 * quads * splits,
        bytes=4 * quads * (4 * splits + KEPT_BYTES[precision]),
    )


def forward(precision: Precision, shape: DenseShape, batch: int, relu: bool, limits: Limits) -> Kernel:
    """y in one launch. Operands: x, w (the working copy), bias, control, y.

    It fills the machine where ``splits_of`` is 1; elsewhere ``product`` and ``finish`` take less time.
    """
    tiling, _ = _forward_tiling(precision, shape, batch, limits, most_splits=1)
    return _forward(precision, shape, batch, limits, tiling, 1, relu)


def gradient_of_input(
    precision: Precision, shape: DenseShape, batch: int, limits: Limits, mask: bool = False, add: bool = False
) -> Kernel:
    """dx, (batch, taps, padded channels). Operands: dy, w (the working copy), x where ``mask``, control, dx.

    ``mask``: zero where x <= 0, x being a relu's output. ``add``: added to what dx holds.
    """
    tiling = _input_tiling(precision, shape, batch, limits)
    size = KEPT_BYTES[precision]
    passes = 1 + mask + add
    return Kernel(
        "dense_input.cu",
        "dense_gradient_of_input",
        _defines(
            precision,
            IMAGES=batch,
            FEATURES=shape.features,
            UNITS=shape.units,
            MASK=mask,
            ADD=add,
            MATRIX_UNIT=has_matrix_unit(limits),
            **tiling.defines,
        ),
        grid=(-(-shape.features // tiling.n), -(-batch // tiling.m), 1),
        threads=tiling.threads,
        shared_bytes=tiling.shared_bytes(precision, ALONG, ALONG),
        operands=("dy", "w", *(("x",) if mask else ()), "control", "dx"),
        flops=shape.flops(batch),
        bytes=size * (batch * (shape.features * passes + padded(shape.units)) + shape.copy_size),
    )


def parts_of(precision: Precision, shape: DenseShape, batch: int, limits: Limits) -> int:
    """Into how many parts ``gradient_of_weight`` splits the images."""
    return _weight_tiling(precision, shape, batch, limits)[1]


def gradient_of_weight(precision: Precision, shape: DenseShape, batch: int, limits: Limits) -> Kernel:
    """Partial gradients, to be added up: float32 (``parts_of``, taps, channels, units) and (``parts_of``, units).

    Operands: x, dy, control, weight_partial, bias_partial (null: none is wanted).
    """
    tiling, parts = _weight_tiling(precision, shape, batch, limits)
    return _weight(precision, shape, batch, limits, tiling, parts, None)


def gradient_and_update(precision: Precision, shape: DenseShape, batch: int, limits: Limits, rule: Rule) -> Kernel:
    """The gradients of weight and bias, and at once the step along them by ``rule``; not for the rule "gradient".

    Operands: x, dy, control; scalars float32 (steps, SCALARS), row ``control.position`` of which is this step's;
    weight, weight_state1, weight_state2, copy (the working copy, whose padding must be zeros); bias, bias_state1,
    bias_state2. A state that the rule does not have may be null. No one may read the weight or its copy while this
    runs: ``gradient_of_input`` of the same layer comes before it.
    """
    tiling, _ = _weight_tiling(precision, shape, batch, limits, most_parts=1)
    return _weight(precision, shape, batch, limits, tiling, 1, rule)


def backward(
    precision: Precision,
    shapes: Sequence[DenseShape],
    batch: int,
    limits: Limits,
    rule: Rule,
    dx: bool = True,
    mask: bool = False,
    add: bool = False,
) -> Kernel | None:
    """``gradient_of_input`` of the first layer, where ``dx``, and ``gradient_and_update`` of up to three: one launch.

    None where it does not fit, or several launches take less time; for float32 and the rule "gradient" always. It loads
    x_0 and the weights early: not the kernel just before it may write these, but one before that.
    Operands: control, scalars, dx, and of each layer i: x_i, dy_i, weight_i, weight_i_state1, weight_i_state2, copy_i,
    bias_i, bias_i_state1, bias_i_state2.
    """
    if precision == "float32" or not has_matrix_unit(limits) or rule.name == "gradient" or len(shapes) > MOST_TOGETHER:
        return None
    found = _backward_tile(precision, tuple(shapes), batch, limits, rule.states, dx)
    if found is None:
        return None
    tile, chunk, stages, shared = found
    defines: dict[str, int] = {
        **rule_defines(rule),
        "LAYERS": len(shapes),
        "INPUT": dx,
        "MASK": dx and mask,
        "ADD": dx and add,
        "TILE": tile,
        "CHUNK": chunk,
        "STAGES": stages,
    }
    operands: tuple[str, ...] = ("control", "scalars", "dx")
    for i, shape in enumerate(shapes):
        defines |= {f"TAPS_{i}": shape.taps, f"CHANNELS_{i}": shape.channels, f"UNITS_{i}": shape.units}
        for name in (f"weight_{i}", f"bias_{i}"):
            states = (name, f"{name}_state1", f"{name}_state2")
            operands += (f"x_{i}", f"dy_{i}", *states, f"copy_{i}") if "weight" in name else states
    return Kernel(
        "dense_backward.cu",
        "dense_backward",
        _defines(precision, **defines),
        grid=(sum(-(-shape.features // tile) for shape in shapes) + 1, 1, 1),
        threads=_BACKWARD_THREADS,
        shared_bytes=shared,
        operands=operands,
        flops=sum(shape.flops(batch) * (2 if dx and i == 0 else 1) for i, shape in enumerate(shapes)),
        bytes=_backward_bytes(precision, shapes, batch, rule.states, dx),
    )


def _backward_bytes(precision: Precision, shapes: Sequence[DenseShape], batch: int, states: int, dx: bool) -> int:
    size = KEPT_BYTES[precision]
    read = sum(batch * (shape.features + padded(shape.units)) * size for shape in shapes)
    changed = sum(shape.weight_size * (8 + 8 * states + size) for shape in shapes)
    return read + changed + (size * (shapes[0].copy_size + batch * shapes[0].features) if dx else 0)


@functools.cache
def _backward_tile(
    precision: Precision, shapes: tuple[DenseShape, ...], batch: int, limits: Limits, states: int, dx: bool
) -> tuple[int, int, int, int] | None:
    """(features of a block, images at a time, of these on their way, bytes of shared memory)."""
    size = KEPT_BYTES[precision]
    # The smallest tile with which every multiprocessor has one block, one of them that of the biases.
    wanted = 1
    while (
        wanted < _MOST_COLUMNS and sum(-(-shape.features // (8 * wanted)) for shape in shapes) >= limits.multiprocessors
    ):
        wanted += 1
    for columns in range(wanted, 0, -1):
        tile = 8 * columns
        # Many images at a time, for each row of weights that a warp loads is multiplied with more of them.
        for chunk, stages in ((128, 2), (64, 3), (64, 2), (32, 2)):
            if chunk > 64 and chunk // 2 >= batch:
                continue
            shared = max(
                _backward_shared(precision, shape, tile, chunk, stages, states, dx and i == 0)
                for i, shape in enumerate(shapes)
            )
            fits = all(-(-shape.units // 128) * columns <= _MOST_COLUMNS for shape in shapes)
            if not fits or shared > limits.shared_bytes:
                continue
            waves = -(-sum(-(-shape.features // tile) for shape in shapes) // limits.multiprocessors)
            # Every block goes through all images.
            load = waves * batch * (max(padded(shape.units) for shape in shapes) + tile) * size / _BLOCK_RATE
            rate = min(CACHE_RATE, _BLOCK_RATE * limits.multiprocessors)
            least = 3e-6 + _backward_bytes(precision, shapes, batch, states, dx) / rate
            return (tile, chunk, stages, shared) if load <= 2 * least else None
    return None


def _backward_shared(
    precision: Precision, shape: DenseShape, tile: int, chunk: int, stages: int, states: int, dx: bool
) -> int:
    size = KEPT_BYTES[precision]
    segment = 16 // size
    step = 2 * (16 if precision == "bfloat16" else 8)
    unit_pitch = -(-padded(shape.units) // step) * step + segment
    held = -(-(1 + states) * tile * shape.units // 4) * 16
    w = tile * unit_pitch * size if dx else 0
    x_pitch = tile + (8 if tile // 8 % 2 == 0 else 0)
    result = tile * (-(-shape.units // 16) * 16 + 4) * 4
    bias = segment * _BACKWARD_THREADS * 4
    return max(held + w + max(stages * chunk * (x_pitch + unit_pitch) * size, result), bias)


def pixel_product(
    precision: Precision, shape: DenseShape, batch: int, mean: float, std: float, limits: Limits
) -> Kernel | None:
    """``product`` upon uint8 images, gathered and normalised as ``prepare`` does it; one split. None: it does not fit.

    Few units only, on a GPU with a matrix unit for tf32. Pixels are whole numbers, which tf32 has exactly, whatever the
    precision; in float32 the weight is taken in two such parts, which keep 22 of its 24 bits, and sums are float32.
    Operands: pixels, order (null: as they lie), w (the working copy), control, sums float32 (batch, padded units).
    """
    features, units = shape.taps * shape.channels, shape.units
    if units > _MOST_PIXEL_UNITS or not has_matrix_unit(limits):
        return None
    columns = _pixel_columns(precision, units)
    shared = 4 * columns * (-(-features // 64) * 64 + 1)
    if shared > limits.shared_bytes:
        return None
    # A warp takes 32 images, and a multiprocessor one block.
    groups = -(-batch // 32)
    blocks = min(groups, limits.multiprocessors)
    turns = -(-groups // (blocks * _MOST_PIXEL_WARPS))
    warps = -(-groups // (blocks * turns))
    return Kernel(
        "dense_pixels.cu",
        "dense_pixels_product",
        _pixel_defines(precision, shape, mean, std, GRADIENT_OF_WEIGHT=0, THREADS=32 * max(warps, 4)),
        grid=(blocks, 1, 1),
        threads=32 * max(warps, 4),
        shared_bytes=shared,
        operands=("pixels", "order", "w", "control", "sums"),
        flops=shape.flops(batch),
        bytes=batch * (features + 4 * padded(units)) + KEPT_BYTES[precision] * shape.copy_size,
    )


@dataclass(frozen=True)
class PixelGradient:
    """``kernel``, and into how many ``parts`` it splits the images."""

    kernel: Kernel
    parts: int


def pixel_gradient(
    precision: Precision, shape: DenseShape, batch: int, mean: float, std: float, limits: Limits
) -> PixelGradient | None:
    """``gradient_of_weight`` of a layer upon uint8 images. None where ``pixel_product`` is.

    Operands: pixels, order (null: as they lie), dy, control, weight_partial, bias_partial (null: none is wanted).
    """
    features, units = shape.taps * shape.channels, shape.units
    if pixel_product(precision, shape, batch, mean, std, limits) is None:
        return None
    all_warps = -(-features // 64)
    slices = -(-all_warps // _MOST_PIXEL_WARPS)
    warps = -(-all_warps // slices)
    parts = max(1, min(limits.multiprocessors // slices, -(-batch // 32)))
    images = -(-batch // (8 * parts)) * 8
    parts = -(-batch // images)
    at_once = min(-(-images // 32) * 32, 512)
    kernel = Kernel(
        "dense_pixels.cu",
        "dense_pixels_gradient",
        _pixel_defines(
            precision,
            shape,
            mean,
            std,
            GRADIENT_OF_WEIGHT=1,
            THREADS=32 * warps,
            PART_IMAGES=images,
            AT_ONCE=at_once,
        ),
        grid=(parts, slices, 1),
        threads=32 * warps,
        shared_bytes=4 * at_once * (_pixel_columns(precision, units) + 1),
        operands=("pixels", "order", "dy", "control", "weight_partial", "bias_partial"),
        flops=shape.flops(batch),
        bytes=batch * (features + KEPT_BYTES[precision] * padded(units)) + 4 * parts * shape.weight_size,
    )
    return PixelGradient(kernel, parts)


def _pixel_columns(precision: Precision, units: int) -> int:
    """Columns of the matrices that pixels are multiplied with: float32 takes two for a unit."""
    return -(-units * (2 if precision == "float32" else 1) // 8) * 8


def _forward(
    precision: Precision,
    shape: DenseShape,
    batch: int,
    limits: Limits,
    tiling: Tiling,
    splits: int,
    relu: bool | None,
) -> Kernel:
    """``relu`` None: sums alone."""
    finishes = relu is not None
    units, size = padded(shape.units), KEPT_BYTES[precision]
    return Kernel(
        "dense_forward.cu",
        "dense_forward" if finishes else "dense_product",
        _defines(
            precision,
            IMAGES=batch,
            FEATURES=shape.features,
            UNITS=shape.units,
            SPLITS=splits,
            FINISH=finishes,
            **({"RELU": int(bool(relu))} if finishes else {}),
            MATRIX_UNIT=has_matrix_unit(limits),
            **tiling.defines,
        ),
        grid=(-(-units // tiling.n), -(-batch // tiling.m), splits),
        threads=tiling.threads,
        shared_bytes=tiling.shared_bytes(precision, ALONG, ACROSS),
        operands=("x", "w", "bias", "control", "y") if finishes else ("x", "w", "control", "sums"),
        flops=shape.flops(batch),
        bytes=size * (batch * shape.features + shape.copy_size) + batch * units * (size if finishes else 4 * splits),
    )


def _weight(
    precision: Precision,
    shape: DenseShape,
    batch: int,
    limits: Limits,
    tiling: Tiling,
    parts: int,
    rule: Rule | None,
) -> Kernel:
    operands: tuple[str, ...] = ("x", "dy", "control", "weight_partial", "bias_partial")
    written = 4 * parts
    if rule is not None:
        operands = ("x", "dy", "control", "scalars", "weight", "weight_state1", "weight_state2", "copy")
        operands += ("bias", "bias_state1", "bias_state2")
        written = 8 + 8 * rule.states + KEPT_BYTES[precision]
    return Kernel(
        "dense_weight.cu",
        "dense_gradient_of_weight" if rule is None else "dense_update",
        _defines(
            precision,
            **(rule_defines(rule) if rule is not None else {}),
            TAPS=shape.taps,
            CHANNELS=shape.channels,
            UNITS=shape.units,
            PART_IMAGES=-(-batch // parts),
            MATRIX_UNIT=has_matrix_unit(limits),
            **tiling.defines,
        ),
        grid=(-(-shape.features // tiling.m) + 1, -(-padded(shape.units) // tiling.n), parts),
        threads=tiling.threads,
        shared_bytes=tiling.shared_bytes(precision, ACROSS, ACROSS),
        operands=operands,
        flops=shape.flops(batch),
        bytes=KEPT_BYTES[precision] * batch * (shape.features + padded(shape.units)) + written * shape.weight_size,
    )


@functools.cache
def _forward_tiling(
    precision: Precision, shape: DenseShape, batch: int, limits: Limits, most_splits: int = _MOST_SPLITS
) -> tuple[Tiling, int]:
    units = padded(shape.units)
    best: tuple[float, Tiling, int] | None = None
    for tiling in tilings(precision, limits, ALONG, ACROSS, batch, units, shape.features):
        chunks = -(-shape.features // tiling.chunk)
        tiles = -(-batch // tiling.m) * -(-units // tiling.n)
        # Fewer splits of as many chunks, for those with most of them, take no longer.
        each = -(-chunks // min(chunks, most_splits))
        for splits in sorted({-(-chunks // one) for one in range(each, chunks + 1)}):
            summed = -(-chunks // splits) * tiling.chunk
            seconds = tiling.seconds(precision, limits, ALONG, ACROSS, tiles * splits, summed)
            seconds += 8.0 * splits * batch * units / CACHE_RATE
            if best is None or seconds < best[0]:
                best = seconds, tiling, splits
    assert best is not None, "the smallest tile fits every GPU"
    return best[1:]


@functools.cache
def _input_tiling(precision: Precision, shape: DenseShape, batch: int, limits: Limits) -> Tiling:
    units = padded(shape.units)
    return min(
        tilings(precision, limits, ALONG, ALONG, batch, shape.features, units),
        key=lambda tiling: tiling.seconds(
            precision, limits, ALONG, ALONG, -(-batch // tiling.m) * -(-shape.features // tiling.n), units
        ),
    )


@functools.cache
def _weight_tiling(
    precision: Precision, shape: DenseShape, batch: int, limits: Limits, most_parts: int = _MOST_PARTS
) -> tuple[Tiling, int]:
    units = padded(shape.units)
    best: tuple[float, Tiling, int] | None = None
    for tiling in tilings(precision, limits, ACROSS, ACROSS, shape.features, units, batch):
        if tiling.m * tiling.n // tiling.threads > 32 or tiling.threads < tiling.n:
            continue  # an update keeps a tile's weights and states in registers; a thread sums up a bias
        tiles = -(-shape.features // tiling.m) * -(-units // tiling.n)
        parts = 1
        while parts <= min(most_parts, -(-batch // tiling.chunk)):
            seconds = tiling.seconds(precision, limits, ACROSS, ACROSS, tiles * parts, -(-batch // parts))
            seconds += 8.0 * parts * shape.weight_size / CACHE_RATE
            if best is None or seconds < best[0]:
                best = seconds, tiling, parts
            parts *= 2
    assert best is not None, "the smallest tile fits every GPU"
    return best[1:]


def _pixel_defines(
    precision: Precision, shape: DenseShape, mean: float, std: float, **others: int
) -> tuple[tuple[str, str | int | float], ...]:
    return (
        *_defines(
            precision, FEATURES=shape.taps * shape.channels, CHANNELS=shape.channels, UNITS=shape.units, **others
        ),
        ("MEAN", mean),
        ("STD", std),
    )


def _defines(precision: Precision, **others: int) -> tuple[tuple[str, str | int | float], ...]:
    return ("PRECISION", NUMBER[precision]), *((name, int(value)) for name, value in others.items())
