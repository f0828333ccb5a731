"""Gathers a step's images by the epoch's order, and normalises them."""

from __future__ import annotations

from bareconv.kernels.cuda.kernel import KEPT_BYTES, NUMBER, Kernel, Precision, padded
from bareconv.nn.layer import Shape

THREADS = 256
UNROLL = 4  # vectors of 16 bytes of y, of a thread


def prepare(precision: Precision, batch: int, shape: Shape, mean: float, std: float) -> Kernel:
    """uint8 images of ``shape`` (H, W, C) -> (batch, H, W, padded C), (pixel - mean) / std."""
    height, width, channels = shape
    numbers = height * width * padded(channels)
    vectors = numbers * KEPT_BYTES[precision] // 16
    unroll = min(UNROLL, -(-vectors // THREADS))
    defines = {
        "PRECISION": NUMBER[precision],
        "PIXELS": height * width,
        "CHANNELS": channels,
        "MEAN": mean,
        "STD": std,
        "THREADS": THREADS,
        "UNROLL": unroll,
    }
    return Kernel(
        "prepare.cu",
        "prepare",
        tuple(defines.items()),
        grid=(-(-vectors // (THREADS * unroll)), batch, 1),
        threads=THREADS,
        shared_bytes=0,
        operands=("pixels", "order", "control", "y"),
        bytes=batch * (height * width * channels + numbers * KEPT_BYTES[precision]),
    )
