"""The precisions of a training: what is computed in, which is not always what arrays hold.

float32, float64   arrays and arithmetic
tf32, bfloat16     operands of products on a GPU's matrix units; arrays that outlast a step, and sums, are float32
"""

from __future__ import annotations

from bareconv.errors import UsageError

PRECISIONS = ("float32", "float64", "tf32", "bfloat16")
ON_GPU_ONLY = ("tf32", "bfloat16")


def check_known(precision: str) -> None:
    """UsageError where ``precision`` is none of ``PRECISIONS``."""
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r}: expected {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")


def stored(precision: str) -> str:
    """The dtype of the model's arrays in a training of that precision."""
    return "float32" if precision in ON_GPU_ONLY else precision
