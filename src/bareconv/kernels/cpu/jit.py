"""From kernels to addresses of machine code, with a cache on disk.

A kernel's code depends on its fields, the processor, the compiler and the sources of this package, so that their digest
names the file. A cache that cannot be written is done without; a file that is damaged is written anew.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bareconv.kernels import cache
from bareconv.kernels.cache import OnCompile
from bareconv.kernels.cpu.kernel import Frame, Kernel
from bareconv.kernels.cpu.target import Target


@dataclass
class Compiled:
    """What ``compile_kernels`` did: addresses, and how long it took."""

    addresses: dict[Kernel, int] = field(default_factory=dict)
    seconds: float = 0.0
    written: int = 0  # kernels that were not in the cache


def compile_kernels(kernels: Iterable[Kernel], on_progress: OnCompile | None = None) -> Compiled:
    """The machine code of all ``kernels``: from memory, from the disk, or written now.

    ``on_progress(done, total)`` is told of those that have to be compiled.
    """
    begun = time.perf_counter()
    result = Compiled()
    wanted = list(dict.fromkeys(kernels))
    names = {kernel: _digest(kernel) for kernel in wanted}
    absent = [kernel for kernel in wanted if names[kernel] not in _loaded]
    codes = {kernel: cache.read(f"{names[kernel]}.o") for kernel in absent}
    missing = [kernel for kernel in absent if codes[kernel] is None]
    for done, kernel in enumerate(missing):
        if on_progress:
            on_progress(done, len(missing))
        code = object_code(kernel, names[kernel])
        cache.write(f"{names[kernel]}.o", code)
        codes[kernel] = code
    if on_progress and missing:
        on_progress(len(missing), len(missing))
    _load({names[kernel]: code for kernel, code in codes.items() if code is not None})
    result.addresses = {kernel: _loaded[names[kernel]] for kernel in wanted}
    result.seconds, result.written = time.perf_counter() - begun, len(missing)
    return result


def object_code(kernel: Kernel, name: str) -> bytes:
    """The kernel as an object file with one function ``name``."""
    machine = _machine(kernel.target)
    return bytes(machine.emit_object(_optimized(kernel, name, machine)))


def assembly(kernel: Kernel) -> str:
    """The kernel's instructions, to read."""
    machine = _machine(kernel.target)
    return str(machine.emit_assembly(_optimized(kernel, "kernel", machine)))


def _optimized(kernel: Kernel, name: str, machine: Any) -> Any:
    import llvmlite.binding as llvm

    module = llvm.parse_assembly(intermediate_code(kernel, name))
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    # The kernels are vectors already, unrolled as far as they should be.
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    return module


def intermediate_code(kernel: Kernel, name: str) -> str:
    """The kernel in LLVM's language."""
    import llvmlite.binding as llvm
    from llvmlite import ir

    from bareconv.kernels.cpu.emit import I64, PTR, Builder

    module = ir.Module(name)
    module.triple = llvm.get_process_triple()
    builder = Builder(module, name, kernel.target, (PTR, I64, I64, I64, I64))
    kernel.write(Frame(builder, kernel.operands))
    builder.finish()
    return str(module)


_loaded: dict[str, int] = {}  # the digests of what is in memory, and where
_kept: list[Any] = []  # linked libraries, which own the code


@functools.cache
def _machine(target: Target) -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    triple = llvm.Target.from_triple(llvm.get_process_triple())
    return triple.create_target_machine(cpu=target.cpu, features=target.features, opt=3, reloc="pic", codemodel="small")


@functools.cache
def _linker() -> Any:
    """LLVM's newer linker (JITLink).

    It gives an object one range of memory. The older one, MCJIT's, maps an object's instructions and its constants one
    by one, wherever there is room; in a process that has mapped gigabytes they can be too far apart for the 32 bits by
    which the one refers to the other, and LLVM then ends the process.
    """
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.create_lljit_compiler(use_jit_link=True)


def _load(codes: Mapping[str, bytes]) -> None:
    """Make the objects' functions callable, by their names."""
    if not codes:
        return
    import llvmlite.binding as llvm

    library = llvm.JITLibraryBuilder()
    for name, code in codes.items():
        library.add_object_img(code).export_symbol(name)
    linked = library.link(_linker(), f"bareconv {len(_kept)}")
    _kept.append(linked)
    _loaded.update({name: linked[name] for name in codes})


@functools.cache
def _sources() -> str:
    """A digest of all that decides what code is written, apart from the kernel and the target."""
    import llvmlite

    digest = hashlib.sha256(llvmlite.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _digest(kernel: Kernel) -> str:
    return "bareconv_" + hashlib.sha256(f"{_sources()} {kernel!r}".encode()).hexdigest()[:32]
