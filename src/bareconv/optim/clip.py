"""Gradient clipping by the global norm."""

from __future__ import annotations

import math

import numpy as np

from bareconv.device import Array, namespace
from bareconv.optim.settings import number


def clip_grad_norm(grads: dict[str, Array], max_norm: float) -> Array:
    """Scale all gradients, in place, by one factor, so that their joint L2 norm is at most ``max_norm``.

        norm = sqrt(sum over tensors and elements of g^2)
        g <- g * min(1, max_norm / (norm + 1e-6))

    One factor for all, so that the direction of the step is kept: clipping tensor by tensor would turn it.
    Returns the norm before clipping, shape (), on the gradients' device. The factor never leaves the device, so that
    the host does not wait; a norm that is not larger scales by exactly 1. ``max_norm`` may be infinite: measure only.

    Raises UsageError where ``max_norm`` is not above 0.
    Source: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", ICML 2013, algorithm 1;
    the 1e-6 is PyTorch's, and keeps a gradient of zeros from dividing by 0.
    """
    max_norm = number(clip_grad_norm, "max_norm", max_norm, low=0, ends="(]")
    if not grads:
        return np.zeros(())
    xp = namespace(next(iter(grads.values())))
    norm = xp.sqrt(xp.stack([xp.vdot(g.ravel(), g.ravel()) for g in grads.values()]).sum())
    if math.isfinite(max_norm):
        factor = xp.minimum(max_norm / (norm + 1e-6), 1.0)
        for g in grads.values():
            g *= factor
    return xp.asarray(norm)
