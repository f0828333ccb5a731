"""CUDA kernels on a CPU: the same source built by g++, one fiber a thread (``source/host.hpp``)."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bareconv.kernels.cuda import nvrtc
from bareconv.kernels.cuda.kernel import Kernel

SOURCES = Path(__file__).parents[2] / "src/bareconv/kernels/cuda/source"
FOR_RACECHECK = "BARECONV_TEST_RACECHECK"  # a variable: kernels are launched in ways that racecheck can follow
GUARD = 4096  # bytes around every operand, which no kernel may touch
ORDERS = {"forward": 0, "backward": 1, "random": 2}

COMPILER = shutil.which("g++") or shutil.which("clang++")

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler to build CUDA kernels for the CPU with")

needs_nvrtc = pytest.mark.skipif(nvrtc.why_not() is not None, reason=str(nvrtc.why_not()))


class Guarded:
    """A copy of an array with margins, to find out who writes beyond it."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.block = np.full(array.nbytes + 2 * GUARD + 256, 0xA5, np.uint8)
        self.start = GUARD + -(self.block.ctypes.data + GUARD) % 256
        self.end = self.start + array.nbytes
        self.view = self.block[self.start : self.end].view(array.dtype).reshape(array.shape)
        self.view[...] = array

    @property
    def address(self) -> int:
        return self.view.ctypes.data

    def is_intact(self) -> bool:
        return bool((self.block[: self.start] == 0xA5).all() and (self.block[self.end :] == 0xA5).all())


def run_on_host(kernel: Kernel, arrays: Mapping[str, NDArray[Any] | None], order: str = "forward") -> None:
    """Launch ``kernel`` on these arrays, by operand, in place. None is a null pointer.

    ``order``: in which order a block's threads run: "forward", "backward" or "random". AssertionError where a barrier
    is not reached by all, or memory beyond an operand or the shared memory is written.
    """
    assert set(arrays) == set(kernel.operands), f"{kernel.entry} wants {kernel.operands}, got {tuple(arrays)}"
    guarded = {name: None if array is None else Guarded(np.asarray(array)) for name, array in arrays.items()}
    addresses = [guarded[name] for name in kernel.operands]
    pointers = [ctypes.c_void_p(None if one is None else one.address) for one in addresses]
    launch_at(kernel, pointers, order)
    for name, one in guarded.items():
        if one is not None:
            assert one.is_intact(), f"{kernel.entry} wrote beyond operand {name}"
            array = arrays[name]
            assert array is not None
            array[...] = one.view


def launch_at(kernel: Kernel, pointers: list[ctypes.c_void_p], order: str = "forward") -> None:
    """Launch on operands at these addresses."""
    arguments = (ctypes.c_void_p * len(pointers))(*(ctypes.addressof(pointer) for pointer in pointers))
    grid = (ctypes.c_int * 3)(*kernel.grid)
    failure = _built(kernel.source, kernel.entry, kernel.defines)(
        arguments, grid, kernel.threads, kernel.shared_bytes, ORDERS[order]
    )
    assert failure is None, f"{kernel.entry}: {failure.decode()}"


FLAGS: tuple[str, ...] = ("-O1", "-std=c++20", "-shared", "-fPIC", "-w", "-fno-strict-aliasing", "-ffp-contract=off")
# A block's own variables are static in functions of the same name in every library: none may be another's.
FLAGS += ("-fno-gnu-unique",) if COMPILER is not None and COMPILER.endswith("g++") else ()
# Headers of host.hpp, which take longer to read than a kernel to compile.
STANDARD = (
    *("cmath", "cstddef", "cstdint", "cstdio", "cstdlib", "cstring"),
    *("functional", "memory", "random", "stdexcept", "string", "utility", "vector"),
)


@functools.cache
def _built(source: str, entry: str, defines: tuple[tuple[str, Any], ...]) -> Any:
    lines = [f"#define {name} {value}" for name, value in defines]
    lines += [f'#include "{source}"']
    lines += [
        'extern "C" const char* launch_on_host(',
        "    void** arguments, const int* grid, int block, int shared_bytes, int order) {",
        f"    return host::launch({entry}, arguments, grid, block, shared_bytes, order);",
        "}",
    ]
    text = "\n".join(lines) + "\n"
    digest = hashlib.sha256(f"{text} {_sources()}".encode()).hexdigest()[:24]
    library = _folder() / f"{digest}.so"
    if not library.exists():
        program = library.with_suffix(f".{os.getpid()}.cpp")
        program.write_text(text)
        _compile(library, "-include", str(_standard_headers()), "-I", str(SOURCES), str(program))
        program.unlink()
    function = ctypes.CDLL(str(library)).launch_on_host
    function.restype = ctypes.c_char_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    return function


def _folder() -> Path:
    folder = Path(os.environ.get("BARECONV_TEST_CACHE", Path(tempfile.gettempdir()) / "bareconv-host-kernels"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def _sources() -> str:
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _standard_headers() -> Path:
    """The standard headers, compiled once where the compiler can."""
    header = _folder() / f"standard-{_sources()[:12]}.hpp"
    if not header.exists():
        header.write_text("".join(f"#include <{name}>\n" for name in STANDARD))
    compiled = header.with_suffix(".hpp.gch")
    if not compiled.exists():
        with contextlib.suppress(AssertionError):
            _compile(compiled, "-x", "c++-header", str(header))
    return header


def _compile(result: Path, *arguments: str) -> None:
    assert COMPILER is not None
    aside = result.with_suffix(f".{os.getpid()}{result.suffix}")
    done = subprocess.run([COMPILER, *FLAGS, *arguments, "-o", str(aside)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
    aside.replace(result)


# Numbers as the kernels keep them


def to_kept(values: NDArray[Any], precision: str) -> NDArray[Any]:
    """float64 values -> bf16 bits in uint16, or float32, of tf32's mantissa where that is asked for."""
    single = np.ascontiguousarray(values, np.float32)
    bits = single.view(np.uint32)
    if precision == "bfloat16":
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    if precision == "tf32":
        return ((bits + 0x1000) & np.uint32(0xFFFFE000)).astype(np.uint32).view(np.float32)
    return single.copy()


def from_kept(kept: NDArray[Any]) -> NDArray[np.float64]:
    """The inverse, as float64."""
    if kept.dtype == np.uint16:
        return (kept.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return kept.astype(np.float64)


def poison(shape: tuple[int, ...], precision: str = "float32") -> NDArray[Any]:
    """An array of NaN, to find out what is not written."""
    if precision == "bfloat16":
        return np.full(shape, 0x7FFF, np.uint16)
    return np.full(shape, np.nan, np.float32)


def pad_channels(values: NDArray[Any]) -> NDArray[Any]:
    """Zeros after the last axis, up to a multiple of 8."""
    missing = -values.shape[-1] % 8
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])


def relative_error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """|got - expected| / |expected|; infinite where something is not finite."""
    if not np.isfinite(got).all():
        return float("inf")
    return float(np.linalg.norm(got - expected) / max(float(np.linalg.norm(expected)), 1e-30))


TOLERANCE = {"float32": 1e-5, "tf32": 1e-3, "bfloat16": 1e-2}  # relative error of a kernel against float64
