"""Kernels to machine code for one GPU, kept on disk: one that was compiled before is loaded in a millisecond."""

from __future__ import annotations

import functools
import hashlib
import os
import struct
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import resources

from bareconv.kernels import cache
from bareconv.kernels.cache import OnCompile
from bareconv.kernels.cuda import nvrtc
from bareconv.kernels.cuda.kernel import Kernel
from bareconv.kernels.cuda.nvrtc import Compiled

_HEAD = struct.Struct("<iii")  # registers, spilled bytes, stack: before the machine code in a kept file


@dataclass
class CompiledKernels:
    """What ``compile_kernels`` did: machine code, and how long it took."""

    code: dict[Kernel, Compiled] = field(default_factory=dict)
    seconds: float = 0.0
    written: int = 0  # kernels that were not in the cache


def compile_kernels(
    kernels: Iterable[Kernel], architecture: str, on_progress: OnCompile | None = None
) -> CompiledKernels:
    """Machine code of all ``kernels`` for ``architecture`` ("sm_90"): from the disk, or written now by all cores.

    ``on_progress(done, total)`` is told of those that have to be compiled.
    """
    begun, result = time.perf_counter(), CompiledKernels()
    # What differs in its launch alone is the same code.
    wanted: dict[Kernel, tuple[object, ...]] = {
        kernel: (kernel.source, kernel.entry, kernel.defines, kernel.specific) for kernel in kernels
    }
    known: dict[tuple[object, ...], Compiled] = {}
    missing: dict[tuple[object, ...], Kernel] = {}
    for kernel, key in wanted.items():
        if key in known or key in missing:
            continue
        kept = cache.read(_file(kernel, architecture))
        if kept is None:
            missing[key] = kernel
        else:
            registers, spilled, stack = _HEAD.unpack_from(kept)
            known[key] = Compiled(kept[_HEAD.size :], registers, spilled, stack, "")
    if missing:
        nvrtc.version()  # the library is loaded once, not by every thread
        with ThreadPoolExecutor(min(len(missing), os.cpu_count() or 1)) as pool:
            codes = pool.map(lambda kernel: compile_kernel(kernel, architecture), missing.values())
            for done, (key, kernel, code) in enumerate(zip(missing, missing.values(), codes, strict=True), 1):
                known[key] = code
                cache.write(
                    _file(kernel, architecture), _HEAD.pack(code.registers, code.spilled, code.stack) + code.cubin
                )
                if on_progress:
                    on_progress(done, len(missing))
    result.code = {kernel: known[key] for kernel, key in wanted.items()}
    result.seconds, result.written = time.perf_counter() - begun, len(missing)
    return result


def compile_kernel(kernel: Kernel, architecture: str) -> Compiled:
    """Machine code of one kernel. BareconvError, with the compiler's words, where it does not compile."""
    return nvrtc.compile_source(
        source_text(kernel), f"{kernel.entry} of {kernel.source}", _target(kernel, architecture), headers=sources()
    )


def _target(kernel: Kernel, architecture: str) -> str:
    """What the kernel is compiled for: "sm_90", or "sm_90a" where it is specific."""
    return architecture.rstrip("a") + "a" if kernel.specific else architecture


def source_text(kernel: Kernel) -> str:
    """The program that is compiled: the kernel's constants, then its file."""
    lines = [f"#define {name} {value}" for name, value in kernel.defines]
    return "\n".join([*lines, f'#include "{kernel.source}"', ""])


@functools.cache
def sources() -> dict[str, str]:
    """All source files, by name."""
    folder = resources.files("bareconv.kernels.cuda") / "source"
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith((".cu", ".cuh")))
    return {name: (folder / name).read_text() for name in names}


@functools.cache
def _digest_of_sources() -> str:
    digest = hashlib.sha256(repr(nvrtc.version()).encode())
    for name, text in sources().items():
        digest.update(f"{name} {text}".encode())
    return digest.hexdigest()


def _file(kernel: Kernel, architecture: str) -> str:
    what = f"{_digest_of_sources()} {_target(kernel, architecture)} {source_text(kernel)} {kernel.entry}"
    return f"bareconv_{hashlib.sha256(what.encode()).hexdigest()[:32]}.cubin"
