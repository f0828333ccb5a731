"""Batch normalisation: each channel to mean 0 and variance 1 over the batch, then scaled and shifted.

    xhat = (x - mean) / sqrt(var + eps)        y = gamma xhat + beta
    dgamma = sum dy xhat                       dbeta = sum dy
    dx = gamma / sqrt(var + eps) * (dy - dbeta/M - xhat dgamma/M)

mean, var (of the population) and the sums go over all axes but the last; M is how many numbers that is a channel.
Shapes: x, y, dy (..., C); gamma, beta, mean, var (C). Source: Ioffe, Szegedy, "Batch normalization", 2015.
"""

from __future__ import annotations

import math

import numpy as np

from bareconv.device import Array, namespace


def batch_norm_naive(x: Array, gamma: Array, beta: Array, eps: float) -> Array:
    """y in training, channel by channel, number by number."""
    rows = x.reshape(-1, x.shape[-1])
    y = np.zeros_like(rows)
    for c in range(rows.shape[1]):
        mean = sum(rows[:, c]) / len(rows)
        var = sum((value - mean) ** 2 for value in rows[:, c]) / len(rows)
        for m in range(len(rows)):
            y[m, c] = gamma[c] * (rows[m, c] - mean) / math.sqrt(var + eps) + beta[c]
    return y.reshape(x.shape)


def batch_norm_backward_naive(dy: Array, x: Array, gamma: Array, eps: float) -> tuple[Array, Array, Array]:
    """(dx, dgamma, dbeta), by the chain rule through every path: x itself, the variance, the mean."""
    rows, d = x.reshape(-1, x.shape[-1]), dy.reshape(-1, x.shape[-1])
    dx, dgamma, dbeta = np.zeros_like(rows), np.zeros_like(gamma), np.zeros_like(gamma)
    M = len(rows)
    for c in range(rows.shape[1]):
        mean = sum(rows[:, c]) / M
        var = sum((value - mean) ** 2 for value in rows[:, c]) / M
        scale = 1.0 / math.sqrt(var + eps)
        dvar = sum(d[m, c] * gamma[c] * (rows[m, c] - mean) * -0.5 * scale**3 for m in range(M))
        dmean = sum(-d[m, c] * gamma[c] * scale for m in range(M))  # the variance's own path through it is zero
        for m in range(M):
            centred = rows[m, c] - mean
            dgamma[c] += d[m, c] * centred * scale
            dbeta[c] += d[m, c]
            dx[m, c] = d[m, c] * gamma[c] * scale + dvar * 2.0 * centred / M + dmean / M
    return dx.reshape(x.shape), dgamma, dbeta


def batch_norm_forward(x: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, Array, Array, Array, Array]:
    """Training: (y, xhat, inverse standard deviation, mean, variance); backward needs the second and third."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axis=axes)
    xhat = x - mean
    var = (xhat * xhat).mean(axis=axes)
    inv_std = 1.0 / namespace(x).sqrt(var + eps)
    xhat *= inv_std
    y = xhat * gamma
    y += beta
    return y, xhat, inv_std, mean, var


def batch_norm_inference(x: Array, gamma: Array, beta: Array, mean: Array, var: Array, eps: float) -> Array:
    """y with the running statistics: one multiply-add a number."""
    scale = gamma / namespace(x).sqrt(var + eps)
    return x * scale + (beta - mean * scale)


def batch_norm_backward(dy: Array, xhat: Array, inv_std: Array, gamma: Array) -> tuple[Array, Array, Array]:
    """(dx, dgamma, dbeta)."""
    axes = tuple(range(dy.ndim - 1))
    dgamma, dbeta = (dy * xhat).sum(axis=axes), dy.sum(axis=axes)
    M = dy.size // dy.shape[-1]
    dx = dy - xhat * (dgamma / M)
    dx -= dbeta / M
    dx *= gamma * inv_std
    return dx, dgamma, dbeta
