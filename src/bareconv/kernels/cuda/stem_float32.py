"""The first block of a network in float32: the same kernels as stem's, with other ways through them.

Forward, a thread has some outputs of eight filters. Backward, a warp has 32 of the first convolution's channels, and of
each square of the second one's pool only the output that is the maximum costs anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import gcd

from bareconv.kernels.cuda.kernel import padded
from bareconv.kernels.cuda.limits import Limits
from bareconv.kernels.cuda.stem_block import WARP, Choice, Stem, bands_of, stem_kernel

REGISTERS = 65536  # of a multiprocessor
# For so many squares at once: registers of a thread, and how much longer than its products alone a loop takes.
FORWARD_TILES = {1: (80, 1.5), 2: (112, 1.2), 3: (168, 1.12), 4: (208, 1.08)}
# Backward: what a thread sums in registers, at most; warps and teams on a multiprocessor; instructions of a square's
# filter beside its products.
SUMS, BACKWARD_WARPS, TEAMS, OF_EVENT = 100, 16, 4, 8
# Numbers that an output of the first convolution is made of, at most, so that registers have their weights' gradient;
# codes of squares in registers.
INPUTS, CODES = 18, 48
BAND = 3000.0  # cycles of a band's waits for memory and for others


def forward_choices(stem: Stem, batch: int, limits: Limits) -> Iterator[Choice]:
    """Every way that the forward fits the GPU."""
    if not (stem.is_possible and stem.b_pool):
        return
    a, b = stem.a, stem.b
    (R, S), (P, Q), takes = b.kernel, stem.output, 2 if stem.a_pool else 1
    middle_width, channels, inputs = stem.middle[1], padded(a.filters), a.taps * a.channels
    eights = padded(b.filters) // 8
    a_at_once = 4 if inputs <= 18 else 2 if inputs <= 36 else 1
    a_groups = channels // a_at_once
    for squares, (registers, factor) in FORWARD_TILES.items():
        sets, vector = -(-Q // squares), 2 if squares % 2 else 4
        read = _up(2 * squares + S - 1, vector)
        pitch = _up(max(2 * squares * (sets - 1) + read, middle_width + b.padding[1]), 4)
        for slices in (n for n in range(1, eights + 1) if eights % n == 0):
            weights = (inputs + b.taps * padded(b.filters) // slices) * channels * 4
            for bands, rows in bands_of(P):
                a_rows = 2 * rows + R - 1
                planes = a.channels * (takes * a_rows + a.kernel[0] - 1)
                planes *= _up(takes * middle_width + a.kernel[1] - 1, 4) * 4
                shared = 2 * _image(stem) + weights + planes + channels * a_rows * pitch * 4
                tasks = rows * sets * eights // slices
                for warps in range(1, min(32, REGISTERS // (WARP * registers), -(-tasks // WARP)) + 1):
                    beside = REGISTERS // (WARP * registers * warps)
                    blocks = min(beside, (limits.shared_bytes + 1024) // (shared + 1024))
                    if blocks == 0 or shared > limits.shared_bytes:
                        continue
                    rounds = -(-tasks // (warps * WARP))
                    a_parts = warps // gcd(a_groups, warps)
                    a_items = -(-a_groups * a_parts // warps) * -(-a_rows * middle_width // (WARP * a_parts))
                    of_warp = rounds * channels * b.taps * 32 * squares * factor
                    of_warp += a_items * (takes**2 * inputs * (a_at_once + 1) + 30)
                    of_warp += planes / 4 / (warps * WARP) * 30
                    grid = min(batch * bands, max(1, blocks * limits.multiprocessors // slices))
                    # Four warps of a multiprocessor run at a time, one of them at half their pace at best.
                    cycles = -(-batch * bands // grid) * (max(-(-warps * blocks // 4), 2) * of_warp + BAND)
                    defines = {
                        "WARPS": warps,
                        "TEAMS": 1,
                        "BLOCKS": blocks,
                        "BANDS": bands,
                        "BAND_ROWS": rows,
                        "SQUARES_AT_ONCE": squares,
                        "SLICES": slices,
                    }
                    kernel = stem_kernel("stem_forward", stem, "float32", batch, defines, (grid, slices, 1), shared)
                    yield Choice(cycles, kernel)


def backward_b_choices(stem: Stem, batch: int, limits: Limits) -> Iterator[Choice]:
    """Every way that the gradient of B's parameters fits the GPU."""
    a, b = stem.a, stem.b
    channels, filters = padded(a.filters), padded(b.filters)
    at_once = next((n for n in (8, 4) if n * (b.taps + 1) <= SUMS and filters % n == 0), None)
    if not (stem.is_possible and stem.b_pool) or channels % WARP or at_once is None:
        return
    (R, S), (P, Q), takes = b.kernel, stem.output, 2 if stem.a_pool else 1
    inputs, count = a.taps * a.channels, at_once * (b.taps + 1)
    shares, width = channels // WARP * (filters // at_once), max(2 * Q + S - 1, stem.middle[1] + b.padding[1])
    patch = (R + 1) * (S + 1)
    for bands, rows in bands_of(P):
        a_rows = 2 * rows + R - 1
        planes = a.channels * (takes * a_rows + a.kernel[0] - 1)
        planes *= _up(takes * _up(stem.middle[1], 4) + a.kernel[1] - 1, 4) * 4
        team = _up(2 * _image(stem) + planes + a_rows * width * channels * 4 + rows * Q * filters * 5, 16)
        for warps in range(shares, BACKWARD_WARPS + 1, shares):
            turns = warps // shares
            for teams in range(1, min(TEAMS, BACKWARD_WARPS // warps) + 1):
                shared = max(teams * team, shares * count * 128 if teams * turns > 1 else 0)
                if shared > limits.shared_bytes:
                    continue
                of_warp: float = -(-rows * Q // turns) * (at_once * (b.taps + OF_EVENT) + patch + 20)
                of_warp += -(-a_rows * channels // WARP // warps) * stem.middle[1] * (takes**2 * inputs * 1.5 + 5)
                of_warp += planes / 4 / (warps * WARP) * 30
                grid = min(-(-batch * bands // teams), limits.multiprocessors)
                cycles = -(-batch * bands // (grid * teams)) * (max(warps * teams / 4, 4) * of_warp + BAND)
                defines = {
                    "WARPS": warps,
                    "TEAMS": teams,
                    "BANDS": bands,
                    "BAND_ROWS": rows,
                    "FILTERS_AT_ONCE": at_once,
                }
                kernel = stem_kernel("stem_backward_b", stem, "float32", batch, defines, (grid, 1, 1), shared)
                yield Choice(cycles, kernel)


def backward_a_choices(stem: Stem, batch: int, limits: Limits) -> Iterator[Choice]:
    """Every way that the gradient of A's parameters fits the GPU."""
    a, b = stem.a, stem.b
    channels, fours = padded(a.filters), padded(b.filters) // 4
    inputs, shares = a.taps * a.channels, channels // WARP
    if not (stem.is_possible and stem.b_pool) or stem.a_pool or channels % WARP or inputs > INPUTS:
        return
    (R, S), (P, Q) = b.kernel, stem.output
    for squares, slices in product(range(1, Q + 1), range(1, min(4, fours) + 1)):
        runs, width = -(-Q // squares), 2 * squares + S - 1
        filters = -(-fours // slices) * 4
        if (R + 1) * width > SUMS or 3 * squares > CODES or -(-fours * 4 // filters) < slices:
            continue
        weights = (filters * b.taps + inputs) * channels * 4
        for bands, rows in bands_of(P):
            planes = a.channels * (2 * rows + R + a.kernel[0] - 2)
            planes *= _up(2 * squares * (runs - 1) + width + a.kernel[1] - 1, 4) * 4
            team = _up(2 * _image(stem) + planes + rows * Q * filters * 5, 16)
            for warps in range(shares, BACKWARD_WARPS + 1, shares):
                turns = warps // shares
                for teams in range(1, min(TEAMS, BACKWARD_WARPS // warps) + 1):
                    shared = max(teams * team + weights, shares * (inputs + 1) * 128 if teams * turns > 1 else 0)
                    if shared > limits.shared_bytes:
                        continue
                    of_run = filters * (squares * (b.taps + OF_EVENT + 1) + b.taps + 6)
                    of_run += (R + 1) * width * (2 * inputs + 8)
                    of_warp = -(-rows * runs // turns) * of_run + planes / 4 / (warps * WARP) * 30
                    grid = min(-(-batch * bands // teams), max(1, limits.multiprocessors // slices))
                    cycles = -(-batch * bands // (grid * teams)) * (max(warps * teams / 4, 4) * of_warp + BAND)
                    defines = {
                        "WARPS": warps,
                        "TEAMS": teams,
                        "BANDS": bands,
                        "BAND_ROWS": rows,
                        "SQUARES_AT_ONCE": squares,
                        "SLICES": slices,
                    }
                    kernel = stem_kernel(
                        "stem_backward_a", stem, "float32", batch, defines, (grid * slices, 1, 1), shared
                    )
                    yield Choice(cycles, kernel)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _image(stem: Stem) -> int:
    return _up(stem.a.height * stem.a.width * stem.a.channels, 16)
