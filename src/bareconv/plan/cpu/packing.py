"""The orders in which kernels read weights, as tables of places: element i of the packed array is weight[table[i]]."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bareconv.kernels.cpu.correlate import Correlate
from bareconv.kernels.cpu.sparse import SparseBackward

Places = NDArray[np.int32]  # 0 is a place that holds zero


def correlate_places(kernel: Correlate, weight: Places) -> Places:
    """The places ``weight`` (R, S, C, K) in ``Correlate``'s order: [block of filters][r][s][c][filter of the block]."""
    lanes, vectors = kernel.target.lanes, kernel.blocking.vectors
    padded = in_registers(weight.reshape(-1, weight.shape[3]), lanes)
    width = vectors * lanes
    blocks = [padded[:, start : start + width] for start in range(0, padded.shape[1], width)]
    return np.concatenate([block.reshape(-1) for block in blocks])


def turned_round(weight: Places, rows: slice, columns: slice) -> Places:
    """The weights that dX meets: of those taps, the last first, inputs and filters exchanged: (R, S, K, C)."""
    return weight[rows, columns][::-1, ::-1].transpose(0, 1, 3, 2)


def in_registers(weight: Places, lanes: int) -> Places:
    """``weight`` (rows, K), places, each row with zeros up to a multiple of the lanes."""
    padded = np.zeros((len(weight), -(-weight.shape[1] // lanes) * lanes), np.int32)
    padded[:, : weight.shape[1]] = weight
    return padded


def run_places(kernel: SparseBackward, weight: Places) -> Places:
    """``weight`` (R, S, C, K), places, in the order of ``SparseBackward``: [filter][r][s and c, zeros after them]."""
    R, S, C, K = weight.shape
    padded = np.zeros((K, R, kernel.run), np.int32)
    padded[:, :, : S * C] = weight.reshape(R, S * C, K).transpose(2, 0, 1)
    return padded.reshape(-1)


def run_positions(kernel: SparseBackward, shape: tuple[int, int, int, int]) -> Places:
    """Where ``SparseBackward`` puts the gradient of each weight (R, S, C, K): positions within its own array."""
    R, S, C, K = shape
    k, r, run = np.meshgrid(np.arange(K), np.arange(R), np.arange(S * C), indexing="ij")
    at = (k * R + r) * kernel.run + run  # (K, R, S*C)
    return at.transpose(1, 2, 0).reshape(-1).astype(np.int32)


def by_unit(width: int, weight: Places) -> Places:
    """Dense ``weight`` (features, units), places, as (units, width): features in a row, zeros after them."""
    features, units = weight.shape
    padded = np.zeros((units, width), np.int32)
    padded[:, :features] = weight.T
    return padded.reshape(-1)


def by_unit_positions(width: int, shape: tuple[int, int]) -> Places:
    """Where the gradient of each dense weight (features, units) is in an array (units, width)."""
    f, u = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    return (u * width + f).reshape(-1).astype(np.int32)
