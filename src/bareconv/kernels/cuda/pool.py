"""Max and average pools over windows of any size, stride, padding and dilation, up to the whole image.

``shape``: (H, W, C) of x. Operands: ``x``, ``y``, ``dx``, ``dy`` as activations are kept, (batch, H, W, padded C) or
(batch, P, Q, padded C); ``where`` laid out as y, of ``where_dtype``; ``control``.
"""

from __future__ import annotations

from bareconv.errors import ShapeError
from bareconv.kernels.cuda.kernel import KEPT_BYTES, NUMBER, Kernel, Precision, padded
from bareconv.nn.layer import Shape
from bareconv.ops.pool import check_padding
from bareconv.ops.windows import Window

THREADS = 256


def where_dtype(window: Window) -> str:
    """The NumPy dtype of a winning tap: r * S + s, or the largest number for none."""
    return "uint8" if len(window.taps) < 256 else "uint16"


def covers(window: Window) -> bool:
    """Whether the max pool's winners can be told: a window of fewer than 65536 taps."""
    return len(window.taps) < 1 << 16


def max_pool(
    precision: Precision, batch: int, shape: Shape, window: Window, where: bool = True, relu: bool = False
) -> Kernel:
    """x -> y, the maxima, and with ``where`` the winning taps, the first of equals.

    ``relu``: y is max(maximum, 0), and no tap wins where that is 0; x may be the relu's input or output. ShapeError
    where windows do not fit, or ``covers`` says no.
    """
    if not covers(window):
        raise ShapeError(f"max pool of {window.kernel}: expected fewer than 65536 taps")
    operands = ("x", "control", *(("where",) if where else ()), "y")
    extra = {"FORWARD": 1, "HAS_WHERE": int(where), "RELU": int(relu)}
    return _forward("max_pool", precision, batch, shape, window, operands, extra)


def max_pool_backward(precision: Precision, batch: int, shape: Shape, window: Window) -> Kernel:
    """dy, ``where`` -> dx: each dy to the pixel that won. Where forward had a relu, so has this."""
    return _backward("max_pool_backward", precision, batch, shape, window, ("dy", "where", "control", "dx"))


def avg_pool(precision: Precision, batch: int, shape: Shape, window: Window) -> Kernel:
    """x -> y, the means; padding counts as zeros."""
    return _forward("avg_pool", precision, batch, shape, window, ("x", "control", "y"), {"FORWARD": 1, "RELU": 0})


def avg_pool_backward(precision: Precision, batch: int, shape: Shape, window: Window) -> Kernel:
    """dy -> dx: each dy in equal parts to all pixels of its window."""
    return _backward("avg_pool_backward", precision, batch, shape, window, ("dy", "control", "dx"))


def _forward(
    entry: str,
    precision: Precision,
    batch: int,
    shape: Shape,
    window: Window,
    operands: tuple[str, ...],
    extra: dict[str, int],
) -> Kernel:
    length = 16 // KEPT_BYTES[precision]
    taps = len(window.taps)
    P, Q = window.output_size((shape[0], shape[1]))
    items = batch * P * Q * padded(shape[2]) // length
    # Threads share a large window where there are too few windows to occupy a GPU.
    shares = 1
    while shares < 32 and taps >= 8 * shares and items * shares < 1 << 17:
        shares *= 2
    extra = {**extra, "SHARES": shares}
    grid = -(-items // (THREADS // shares))
    shared = THREADS * length * 4 * (2 if entry == "max_pool" else 1) if shares > 1 else 0
    return _kernel(entry, precision, batch, shape, window, operands, extra, grid, shared)


def _backward(
    entry: str, precision: Precision, batch: int, shape: Shape, window: Window, operands: tuple[str, ...]
) -> Kernel:
    items = batch * shape[0] * shape[1] * padded(shape[2]) * KEPT_BYTES[precision] // 16
    return _kernel(entry, precision, batch, shape, window, operands, {}, -(-items // THREADS), 0)


def _kernel(
    entry: str,
    precision: Precision,
    batch: int,
    shape: Shape,
    window: Window,
    operands: tuple[str, ...],
    extra: dict[str, int],
    grid: int,
    shared_bytes: int,
) -> Kernel:
    check_padding(window)
    height, width, channels = shape
    P, Q = window.output_size((height, width))
    where_bytes = 1 if where_dtype(window) == "uint8" else 2
    constants: dict[str, int] = {
        "KIND": int(entry.startswith("avg")),
        "PRECISION": NUMBER[precision],
        "HEIGHT": height,
        "WIDTH": width,
        "CHANNELS": channels,
        "POOLED_H": P,
        "POOLED_W": Q,
        "WHERE_BYTES": where_bytes,
        "THREADS": THREADS,
        **extra,
    }
    for name in ("kernel", "stride", "padding", "dilation"):
        constants |= {f"{name.upper()}_{axis}": size for axis, size in zip("HW", getattr(window, name), strict=True)}
    size = batch * padded(channels)
    return Kernel(
        "pool.cu",
        entry,
        tuple(constants.items()),
        grid=(grid, 1, 1),
        threads=THREADS,
        shared_bytes=shared_bytes,
        operands=operands,
        bytes=size * ((height * width + P * Q) * KEPT_BYTES[precision] + ("where" in operands) * P * Q * where_bytes),
    )
