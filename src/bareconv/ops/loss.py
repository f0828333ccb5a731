"""Softmax cross-entropy, with label smoothing: the mean over the batch of -sum over k of t[k] log p[k].

    p = softmax(z) = exp(z - max z) / sum exp(z - max z)
    t[k] = (1 - smoothing) [k is the label] + smoothing / K
    dz = (p - t) / N

The row's maximum is taken off first: exp never overflows. The 1/N is here, and nowhere else.
Shapes: z (N, K) logits, labels (N) integers in 0 .. K-1. Label smoothing: Szegedy et al., 2015.
"""

from __future__ import annotations

import math

import numpy as np

from bareconv.device import Array, namespace


def softmax_cross_entropy_naive(logits: Array, labels: Array, smoothing: float = 0.0) -> tuple[float, Array]:
    """(loss, dz) in loops."""
    N, K = logits.shape
    loss, dz = 0.0, np.zeros_like(logits)
    for n in range(N):
        top = max(logits[n])
        total = sum(math.exp(z - top) for z in logits[n])
        for k in range(K):
            target = (1.0 - smoothing) * (k == labels[n]) + smoothing / K
            loss -= target * (logits[n, k] - top - math.log(total)) / N
            dz[n, k] = (math.exp(logits[n, k] - top) / total - target) / N
    return loss, dz


def softmax(logits: Array) -> Array:
    """Class probabilities (N, K)."""
    xp = namespace(logits)
    p = xp.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return p


def softmax_cross_entropy_forward(logits: Array, labels: Array, smoothing: float = 0.0) -> tuple[Array, Array, Array]:
    """(loss, p, t): the mean loss, an array of no axes that stays on the device; probabilities and targets (N, K)."""
    xp = namespace(logits)
    K = logits.shape[1]
    z = logits - logits.max(axis=1, keepdims=True)
    p = xp.exp(z)
    total = p.sum(axis=1, keepdims=True)
    p /= total
    # A comparison, not an index: a label out of range would wrap around silently on a GPU.
    t = (labels[:, None] == xp.arange(K)).astype(logits.dtype)
    if smoothing:
        t = t * (1.0 - smoothing) + smoothing / K
    # -sum t log p = log sum exp z - sum t z, for t sums to 1. Neither term is negative: nothing cancels.
    loss = (xp.log(total).sum() - (t * z).sum()) / len(logits)
    return loss, p, t


def softmax_cross_entropy_backward(p: Array, t: Array) -> Array:
    """dz (N, K)."""
    dz = p - t
    dz *= 1.0 / len(p)
    return dz
