"""The end of a classifier in one launch: the small dense layers, the loss, and backward through them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from bareconv.kernels.cuda.kernel import KEPT_BYTES, NUMBER, Kernel, Precision, padded
from bareconv.kernels.cuda.limits import Limits
from bareconv.kernels.cuda.loss import lanes_of

_THREADS = 256
_MOST_LAYERS = 3
_MOST_IMAGES = 32  # of a block
_FEW_UNITS = 16  # of a layer, which a thread keeps in registers
_FEW_THREADS = 128


def head(
    precision: Precision,
    units: Sequence[int],
    relus: Sequence[bool],
    splits: int,
    batch: int,
    limits: Limits,
    smoothing: float = 0.0,
    backward: bool = True,
) -> Kernel | None:
    """From the first dense layer's sums to the loss and back. None where it does not fit: too many or too wide layers.

    ``units`` of each dense layer, up to three, the last being the classes; ``relus``: whether a relu follows each,
    which it never does the last. ``splits``: of the sums.

    Operands, i counting the layers: sums float32 (splits, batch, padded units_0); bias_0 float32; w_1 (its working
    copy), bias_1, w_2, bias_2, a null bias being none; labels int32 (all images), order (null: as they lie), control.
    Written: h_0, h_1, what the next layer reads; logits (null: not wanted); where ``backward``, dz_0, dz_1, dz_2, the
    gradients of the mean loss before each relu; image_loss float32 (batch), not divided by the number of images;
    image_hit int32 (batch), 0 or 1; position int32 (null: not wanted), the step's, for its ``update``. All but the
    sums, the bias and these are of the kept type, (batch, padded units), with zeros in the padding.
    """
    layers = len(units)
    if not 1 <= layers <= _MOST_LAYERS or relus[-1]:
        return None
    size = KEPT_BYTES[precision]
    # With a thread for every image there must be images for all multiprocessors.
    few = max(units) <= _FEW_UNITS and batch >= 32 * limits.multiprocessors
    weights = sum(padded(below) * _row_pitch(above, precision) * size for below, above in pairwise(units))
    # Enough blocks for all multiprocessors, and a power of two of images for each.
    tile = 1
    while tile < _MOST_IMAGES and -(-batch // (2 * tile)) >= limits.multiprocessors * 3 // 4:
        tile *= 2
    while True:
        shared = weights + _values_bytes(units, tile) + _gathered_bytes(units[0], tile, splits)
        if shared <= limits.shared_bytes or tile == 1:
            break
        tile //= 2
    if shared > limits.shared_bytes:
        return None
    threads = _THREADS
    if few:
        tile = threads = _FEW_THREADS
        shared = 4 * (padded(units[0]) + sum((padded(below) + 1) * padded(above) for below, above in pairwise(units)))
    defines: dict[str, int | float] = {
        "PRECISION": NUMBER[precision],
        "IMAGES": batch,
        "SPLITS": splits,
        "LAYERS": layers,
        **{f"UNITS_{i}": one for i, one in enumerate(units)},
        **{f"RELU_{i}": int(one) for i, one in enumerate(relus)},
        "SMOOTHING": smoothing,
        "BACKWARD": int(backward),
        **({} if few else {"TILE": tile, "LANES": lanes_of(units[-1])}),
        "THREADS": threads,
    }
    above = range(1, layers)
    operands = (
        *("sums", "bias_0"),
        *(name for i in above for name in (f"w_{i}", f"bias_{i}")),
        *("labels", "order", "control"),
        *(f"h_{i}" for i in range(layers - 1)),
        "logits",
        *(f"dz_{i}" for i in range(layers) if backward),
        *("image_loss", "image_hit", "position"),
    )
    small = sum(padded(one) for one in units)
    products = sum(below * one for below, one in pairwise(units))
    return Kernel(
        "head_few.cu" if few else "head.cu",
        "head_few" if few else "head",
        tuple(defines.items()),
        grid=(-(-batch // tile), 1, 1),
        threads=threads,
        shared_bytes=shared,
        operands=operands,
        flops=2.0 * batch * products * (2 if backward else 1) + float(batch * splits * units[0]),
        bytes=batch * (4 * splits * padded(units[0]) + small * size * (2 if backward else 1) + 16) + weights,
    )


def _row_pitch(units: int, precision: Precision) -> int:
    segment = 16 // KEPT_BYTES[precision]
    return padded(units) + (segment if padded(units) // segment % 2 == 0 else 0)


def _values_bytes(units: Sequence[int], tile: int) -> int:
    """Of all layers' numbers and biases, the logits' gradient, and the labels."""
    return 4 * (tile + 1) * sum(padded(one) for one in units) + 4 * tile * padded(units[-1]) + 16 * -(-tile // 4)


def _gathered_bytes(units: int, tile: int, splits: int) -> int:
    """Of what groups of threads that share the splits have each."""
    quads = tile * padded(units) // 4
    groups = min(_THREADS // quads, splits)
    return 16 * quads * groups if groups > 1 else 0
