"""What processor kernels are made for: its vector width, its registers, its name to the compiler."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

from bareconv.errors import UsageError

ELEMENT_BYTES = {"float32": 4, "float64": 8}


@dataclass(frozen=True)
class Target:
    """A vector unit: ``lanes`` numbers of ``dtype`` in each of ``registers``.

    ``cpu`` and ``features`` are LLVM's names. Kernels ask only this. Two targets with the same fields share compiled
    code.
    """

    name: str  # "AVX-512", "AVX2", "NEON", "SSE2": what people call it
    lanes: int
    registers: int
    dtype: str
    cpu: str
    features: str

    @property
    def element_bytes(self) -> int:
        return ELEMENT_BYTES[self.dtype]


# name, bytes of a register, registers, features of the host without which it cannot be used. The widest first.
_UNITS = (
    ("AVX-512", 64, 32, ("avx512f", "avx512bw", "avx512dq", "avx512vl")),
    ("AVX2", 32, 16, ("avx2", "fma")),
    ("NEON", 16, 32, ("neon",)),
    ("SSE2", 16, 16, ("sse2",)),
)


def host_target(dtype: str = "float32", name: str | None = None) -> Target:
    """The widest vector unit of this machine, or the one of that ``name`` (or of BARECONV_SIMD), to test narrower code.

    Raises UsageError where the host has no such unit.
    """
    wanted = name or os.environ.get("BARECONV_SIMD") or None
    cpu, features = _host()
    usable = [unit for unit in _UNITS if all(feature in features for feature in unit[3])]
    chosen = next((unit for unit in usable if wanted is None or _folded(unit[0]) == _folded(wanted)), None)
    if chosen is None:
        have = ", ".join(unit[0] for unit in usable) or "none that bareconv knows"
        raise UsageError(f"vector unit {wanted or 'of this machine'}: this processor offers {have}")
    unit, width, registers, _ = chosen
    kept = features - {f for f in features if f.startswith(("avx512", "evex512", "avx10", "amx"))}
    flags = sorted(features if unit == "AVX-512" else kept)
    # LLVM keeps to 256 bits on processors that once slowed down at 512; where 512 is asked for, it is meant.
    tuning = ["-prefer-256-bit"] if unit == "AVX-512" else []
    spelled = ",".join([f"+{flag}" for flag in flags] + tuning)
    return Target(unit, width // ELEMENT_BYTES[dtype], registers, dtype, cpu if unit == usable[0][0] else "", spelled)


@functools.cache
def _host() -> tuple[str, frozenset[str]]:
    import llvmlite.binding as llvm

    features = {name for name, there in llvm.get_host_cpu_features().items() if there}
    if "aarch64" in llvm.get_process_triple() or "arm64" in llvm.get_process_triple():
        features.add("neon")  # part of the architecture
    return llvm.get_host_cpu_name(), frozenset(features)


def _folded(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
