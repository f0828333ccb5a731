"""Softmax cross-entropy from logits, by itself."""

from __future__ import annotations

from bareconv.kernels.cuda.kernel import KEPT_BYTES, NUMBER, Kernel, Precision, padded

_THREADS = 128


def softmax_loss(precision: Precision, classes: int, batch: int, smoothing: float = 0.0) -> Kernel:
    """Each image's loss and whether its first maximum is its label, and the gradient of the mean loss.

    Operands: logits (batch, padded classes); labels int32 (all images), order (null: as they lie), control; dlogits, as
    logits; image_loss float32 (batch), not divided by the number of images; image_hit int32 (batch), 0 or 1; position
    int32 (null: not wanted), the step's, for its ``update``. Nothing is written for images that the step does not have.
    """
    lanes = lanes_of(classes)
    defines = {
        "PRECISION": NUMBER[precision],
        "CLASSES": classes,
        "SMOOTHING": smoothing,
        "LANES": lanes,
        "THREADS": _THREADS,
    }
    return Kernel(
        "loss.cu",
        "softmax_loss",
        tuple(defines.items()),
        grid=(-(-batch * lanes // _THREADS), 1, 1),
        threads=_THREADS,
        shared_bytes=0,
        operands=(
            *("logits", "labels", "order", "control", "dlogits"),
            *("image_loss", "image_hit", "position"),
        ),
        bytes=batch * (padded(classes) * KEPT_BYTES[precision] * 2 + 16),
    )


def lanes_of(classes: int) -> int:
    """Threads that share an image's classes."""
    lanes = 1
    while lanes < min(classes, 32):
        lanes *= 2
    return lanes
