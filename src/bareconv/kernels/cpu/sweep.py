"""How kernels go over memory: rows in registers and what is left of them, tiles, blocks turned round, clearing."""

from __future__ import annotations

from collections.abc import Iterator

from llvmlite import ir

from bareconv.kernels.cpu.emit import I1, I8, I64, Builder, Index, Pointer, Value


def columns(b: Builder, count: int) -> Iterator[tuple[Index, Value | None]]:
    """(first column, mask) of each register of a row: whole ones in a loop, then what is left."""
    if count >= b.lanes:
        for i in b.range(0, count // b.lanes * b.lanes, b.lanes):
            yield i, None
    if count % b.lanes:
        yield count // b.lanes * b.lanes, b.tail(count % b.lanes)


def column_tiles(b: Builder, count: int, vectors: int) -> Iterator[tuple[Value, int, Value | None]]:
    """(first column, registers, mask of the last register) of the tiles of a row."""
    width = vectors * b.lanes
    if count >= width:
        for i in b.range(0, count // width * width, width):
            yield i, vectors, None
    rest = count % width
    if rest:
        yield b.index(count - rest), -(-rest // b.lanes), b.tail(rest % b.lanes or b.lanes)


def runs(b: Builder, count: int, size: int) -> Iterator[tuple[Value, int]]:
    """(first, how many) of the parts of a range: whole ones in a loop, then what is left."""
    if count >= size:
        for i in b.range(0, count // size * size, size):
            yield i, size
    if count % size:
        yield b.index(count // size * size), count % size


def row_tiles(b: Builder, count: Value, rows: int) -> Iterator[tuple[Value, int]]:
    """(first row, rows) of tiles over a number of rows that is known at run time: whole tiles, then smaller ones."""
    done = b.variable(b.index(0))
    for size in dict.fromkeys((rows, max(1, rows // 3), 1)):
        last = count - size + 1
        for row in b.range(done.value, last, size):
            yield row, size
            done.value = row + size


def transposed(b: Builder, block: list[Value]) -> list[Value]:
    """The square block of registers turned round: lane j of row i becomes lane i of row j."""
    lanes, half = len(block), len(block) // 2
    while half:
        low = [j + (lanes if j & half else 0) - (half if j & half else 0) for j in range(lanes)]
        high = [j + half if not j & half else j + lanes for j in range(lanes)]
        block = list(block)
        for i in range(lanes):
            if not i & half:
                top, bottom = block[i], block[i + half]
                block[i], block[i + half] = b.shuffle(top, bottom, low), b.shuffle(top, bottom, high)
        half //= 2
    return block


def clear(b: Builder, at: Pointer, count: int) -> None:
    """Set ``count`` elements to zero."""
    size = count * b.target.element_bytes
    b.intrinsic("memset", ir.VoidType(), [at.ir, I8(0), I64(size), I1(0)], [at.ir.type, I64])
