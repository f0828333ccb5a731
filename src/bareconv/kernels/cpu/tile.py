"""The micro-kernel: a tile of outputs that stays in registers while products are added to it.

Everything that costs time in a network is a sum of products C[i, j] += A[i, l] B[l, j]: i over output pixels, batch
rows or input channels, j over channels. The tile holds ``rows`` values of i and ``vectors`` registers of j. A step of l
loads ``vectors`` registers of B, and for each row one number of A, spread over all lanes: rows * vectors multiply-adds
for rows + vectors loads. With enough of them in flight the processor's multiply-add units never wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from bareconv.kernels.cpu.emit import Builder, Index, Pointer, Value

Tile: TypeAlias = list[list[Value]]  # [row][vector]


def spare_rows(registers: int, vectors: int) -> int:
    """How many rows a tile of ``vectors`` registers can have: B's registers and one for A's number come off."""
    return max(1, (registers - vectors - 1) // vectors)


def accumulate(
    k: Builder,
    rows: Sequence[Index],
    vectors: int,
    a: Pointer,
    b: Pointer,
    loops: Sequence[tuple[Index, int, int]],
    start: Callable[[int, int], Value] | None = None,
) -> Tile:
    """The sums of products of one tile, [row][vector].

    ``rows``: the offsets of the tile's rows in A. ``loops``: what is summed over, the outermost first, each as (count,
    step in A, step in B) in elements. ``start(row, vector)``: what a sum starts from, zero unless given.
    """
    sums = [[k.variable(start(i, v) if start else k.zero) for v in range(vectors)] for i in range(len(rows))]

    def products(a: Pointer, b: Pointer) -> None:
        right = [b.vector(v * k.lanes) for v in range(vectors)]
        for row, into in zip(rows, sums, strict=True):
            left = a.splat(row)
            for v in range(vectors):
                into[v].value = k.fma(left, right[v], into[v].value)

    def loop(a: Pointer, b: Pointer, level: int) -> None:
        if level == len(loops):
            products(a, b)
            return
        count, a_step, b_step = loops[level]
        if count == 1:
            loop(a, b, level + 1)
            return
        for i in k.range(0, count):
            loop(a + i * a_step, b + i * b_step, level + 1)

    loop(a, b, 0)
    return [[variable.value for variable in row] for row in sums]
