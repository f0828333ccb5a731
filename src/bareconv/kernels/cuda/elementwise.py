"""What is done to each number by itself: sums, relus, copies, dropout.

``image``: numbers of an image as it lies in memory, padding channels included. All operands but ``control`` are
activations of (batch, image) numbers; the output may be the same memory as an input.
"""

from __future__ import annotations

from bareconv import random
from bareconv.kernels.cuda.kernel import KEPT_BYTES, NUMBER, Kernel, Precision, padded
from bareconv.ops.windows import Pair

THREADS = 256
UNROLL = 4

_OPERATIONS = ("copy", "add", "relu_forward", "relu_backward", "dropout")


def copy(precision: Precision, batch: int, image: int) -> Kernel:
    """y = x."""
    return _kernel("copy", precision, batch, image, ("x", "control", "y"))


def add(precision: Precision, batch: int, image: int, relu: bool = False) -> Kernel:
    """y = a + b, or relu(a + b). To accumulate, y is a."""
    return _kernel("add", precision, batch, image, ("a", "b", "control", "y"), {"RELU": int(relu)})


def relu(precision: Precision, batch: int, image: int) -> Kernel:
    """y = max(x, 0); a NaN stays one."""
    return _kernel("relu_forward", precision, batch, image, ("x", "control", "y"))


def relu_backward(precision: Precision, batch: int, image: int) -> Kernel:
    """dx = dy where y > 0, else 0."""
    return _kernel("relu_backward", precision, batch, image, ("dy", "y", "control", "dx"))


def dropout(precision: Precision, batch: int, size: Pair, channels: int, p: float, seed: int, layer: int) -> Kernel:
    """y = x mask on (batch, H, W, padded C), forward and, with dy for x, backward.

    The mask is that of ``ops.dropout_mask`` for (seed, step, layer), drawn anew each time; the step is
    ``control.first_step + control.position``.
    """
    image = size[0] * size[1] * padded(channels)
    defines: dict[str, str | int | float] = {
        "CHANNELS": channels,
        "DROPPED": p,
        "SEED_LOW": f"{seed & 0xFFFFFFFF}u",
        "SEED_HIGH": f"{seed >> 32 & 0xFFFFFFFF}u",
        "STREAM": f"{random.DROPOUT << 24 | layer}u",
    }
    return _kernel("dropout", precision, batch, image, ("x", "control", "y"), defines)


def _kernel(
    operation: str,
    precision: Precision,
    batch: int,
    image: int,
    operands: tuple[str, ...],
    defines: dict[str, str | int | float] | None = None,
) -> Kernel:
    vectors = batch * image * KEPT_BYTES[precision] // 16
    # Few numbers are spread over more blocks.
    unroll = UNROLL if vectors > 1 << 18 else 1
    constants: dict[str, str | int | float] = {
        "OPERATION": _OPERATIONS.index(operation),
        "ENTRY": operation,
        "PRECISION": NUMBER[precision],
        "IMAGE": image,
        "THREADS": THREADS,
        "UNROLL": unroll,
        **(defines or {}),
    }
    return Kernel(
        "elementwise.cu",
        operation,
        tuple(constants.items()),
        grid=(-(-vectors // (THREADS * unroll)), 1, 1),
        threads=THREADS,
        shared_bytes=0,
        operands=operands,
        bytes=(len(operands) - 1) * batch * image * KEPT_BYTES[precision],
    )
