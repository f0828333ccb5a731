"""The micro-kernel's machine code: the sums stay in registers, on the processors that it is written for."""

from __future__ import annotations

import re

import pytest
from kernel_harness import TOLERANCE, target_of

from bareconv.kernels.cpu import jit
from bareconv.kernels.cpu.correlate import Correlate
from bareconv.kernels.cpu.dense import DenseForward, DenseWeightUpdate, tile_shape
from bareconv.kernels.cpu.gradient import WeightGradient
from bareconv.kernels.cpu.kernel import Kernel
from bareconv.kernels.cpu.narrow import NarrowForward, NarrowWeightGradient
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.target import Target
from bareconv.kernels.cpu.tile import spare_rows
from bareconv.kernels.cpu.winograd import Winograd
from bareconv.optim.rule import Rule

MULTIPLY_ADD = r"vfmadd\w+|fmla"
ON_STACK = r"\(%rsp[,)]|\[sp\b"  # the frame pointer is a register like others here
NEON = {"float32": 4, "float64": 2}


def conv(target: Target, filters: int, pool: tuple[int, int] = (1, 1)) -> Correlate:
    P, Q = 12 // pool[0], 12 // pool[1]
    return Correlate(
        *(target, Plane(12, 12, 24, (1, 1)), Plane(P, Q, filters), filters, (3, 3), (12, 12)),
        origin=(-1, -1),
        bias=True,
        relu=True,
        pool=pool,
        keep_where=pool != (1, 1),
    )


def kernels(target: Target) -> list[Kernel]:
    """Those that spend their time in the micro-kernel."""
    wide = 4 * target.lanes
    return [
        conv(target, target.lanes),
        conv(target, wide),
        conv(target, wide, (2, 2)),
        WeightGradient(target, Plane(12, 12, 24, (1, 1)), Plane(12, 12, wide), (3, 3), origin=(-1, -1)),
        DenseForward(target, 256, wide, 256),
        DenseWeightUpdate(target, 256, wide, 256, Rule("sgd", momentum=True)),
        Winograd(target, Plane(12, 12, 32, (1, 1)), Plane(12, 12, wide), wide, (12, 12), (-1, -1)),
        NarrowForward(target, 256, 4, 256),
        NarrowWeightGradient(target, 256, 4, 256),
    ]


def inner_loops(code: str) -> list[str]:
    """The loops without a jump within, as text: from a label to the jump back to it."""
    found, start = [], dict[str, int]()
    lines = [line.split("#")[0].strip() for line in code.splitlines()]
    for number, line in enumerate(lines):
        if label := re.match(r"^(\.?L\w+):", line):
            start[label[1]] = number
        jump = re.match(r"^(?:j\w+|b(?:\.\w+)?|cbn?z|tbn?z)\s+(?:.*[\s,])?(\.?L\w+)$", line)
        if jump and jump[1] in start:
            body = lines[start[jump[1]] + 1 : number]
            if not any(re.match(r"^(\.?L\w+:|j\w+\s|b\s|b\.|cbn?z|tbn?z)", other) for other in body):
                found.append("\n".join(body))
    return found


def check_inner_loops(code: str, most: int) -> None:
    """Products are in some; their sums, ``most`` registers at most, are never on the stack."""
    loops = [loop for loop in inner_loops(code) if len(re.findall(MULTIPLY_ADD, loop)) >= most // 4]
    assert loops, "no loop of multiply-adds"
    for loop in loops:
        assert not re.search(ON_STACK, loop), f"a register is spilled:\n{loop}"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("unit", ["AVX-512", "AVX2"])
def test_no_spills(unit: str, dtype: str) -> None:
    target = target_of(unit, dtype)
    for kernel in kernels(target):
        check_inner_loops(jit.assembly(kernel), target.registers // 2)


@pytest.mark.parametrize("unit", ["AVX-512", "AVX2", "SSE2"])
def test_vectors_are_as_wide_as_the_unit(unit: str) -> None:
    """LLVM splits wide vectors where it believes narrow ones to be better."""
    code = jit.assembly(conv(target_of(unit, "float32"), 64))
    used = {name for line in re.findall(rf"(?:{MULTIPLY_ADD})\s.*", code) for name in re.findall(r"%([xyz])mm", line)}
    assert used == {{"AVX-512": "z", "AVX2": "y", "SSE2": "x"}[unit]}


def arm_assembly(kernel: Kernel) -> str:
    """The kernel's instructions for 64-bit ARM, which LLVM can write on any machine if it was built to."""
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    triple = "aarch64-unknown-linux-gnu"
    try:
        machine = llvm.Target.from_triple(triple).create_target_machine(cpu="neoverse-n1", opt=3)
    except RuntimeError as error:
        pytest.skip(f"this LLVM writes no code for ARM: {error}")
    written = re.sub(r'target triple = ".*"', f'target triple = "{triple}"', jit.intermediate_code(kernel, "kernel"))
    module = llvm.parse_assembly(written)
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    return str(machine.emit_assembly(module))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_neon(dtype: str) -> None:
    """Compiled for ARM, whatever this machine is: vectors of 128 bits, all in registers."""
    target = Target("NEON", NEON[dtype], 32, dtype, "", "")
    for kernel in kernels(target):
        code = arm_assembly(kernel)
        assert re.search(rf"fmla\s+v\d+\.{target.lanes}[sd]", code)
        check_inner_loops(code, target.registers // 2)


@pytest.mark.parametrize("registers", [16, 32])
@pytest.mark.parametrize("vectors", [1, 2, 3, 4])
def test_a_tile_fits_into_the_registers(registers: int, vectors: int) -> None:
    """Sums, B's registers and one for A's number."""
    rows = spare_rows(registers, vectors)
    assert rows * vectors + vectors + 1 <= registers
    assert (rows + 1) * vectors + vectors + 1 > registers


@pytest.mark.parametrize("filters", [1, 10, 16, 33, 64, 100])
@pytest.mark.parametrize("pool", [(1, 1), (2, 2), (3, 3)])
def test_every_tiling_fits_into_the_registers(target: Target, filters: int, pool: tuple[int, int]) -> None:
    kernel = conv(target, filters, pool)
    tall, wide = kernel.blocking.cells
    rows = tall * wide * pool[0] * pool[1]
    assert rows <= spare_rows(target.registers, kernel.blocking.vectors)
    gradient = WeightGradient(target, Plane(12, 12, 24), Plane(12, 12, filters), (3, 3))
    assert gradient.tile[0] <= spare_rows(target.registers, gradient.tile[1])
    rows, vectors = tile_shape(DenseForward(target, 50, filters, 50))
    assert rows <= spare_rows(target.registers, vectors)
