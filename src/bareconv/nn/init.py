"""Initialisation of weights: He, Xavier, uniform.

    he          normal, standard deviation sqrt(2 / fan_in)             He et al., 2015; for relus
    xavier      uniform in +-sqrt(6 / (fan_in + fan_out))               Glorot, Bengio, 2010
    uniform(a)  uniform in +-a, biases too, as the first from-scratch tutorials do
    zeros

Fans count the numbers that one output sees (in) and that see one input (out): C/G*R*S and K/G*R*S for a convolution.
Draws are float32 on the host, so that every device and every precision starts from the very same numbers.
"""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from bareconv import random
from bareconv.errors import UsageError

_UNIFORM = re.compile(r"uniform\((\d*\.?\d+)\)")


def draw(
    scheme: str, shape: tuple[int, ...], fan_in: int, fan_out: int, seed: int, stream: tuple[int, int]
) -> NDArray[np.float32]:
    """Weights of ``shape``, float32; ``stream``: (number of the layer in the model, number of the tensor in it).

    Raises UsageError for a scheme that is none of the above.
    """
    layer, tensor = stream
    where = (random.INIT, layer, tensor)
    if scheme == "zeros":
        return np.zeros(shape, np.float32)
    if scheme == "he":
        return (random.normal(seed, where, shape) * math.sqrt(2.0 / fan_in)).astype(np.float32)
    uniform = _UNIFORM.fullmatch(scheme)
    if scheme != "xavier" and not uniform:
        raise UsageError(f"initialisation {scheme!r}: expected he, xavier, uniform(0.5) (any bound) or zeros")
    bound = float(uniform[1]) if uniform else math.sqrt(6.0 / (fan_in + fan_out))
    return ((2.0 * random.uniform64(seed, where, shape) - 1.0) * bound).astype(np.float32)
