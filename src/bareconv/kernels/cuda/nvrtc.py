"""NVRTC, NVIDIA's run-time compiler, through its C interface: CUDA source to machine code, without a GPU or CuPy.

It comes with CuPy's ``[ctk]`` extra, with PyTorch, as the wheel ``nvidia-cuda-nvrtc``, or with the CUDA toolkit.
Interface: https://docs.nvidia.com/cuda/nvrtc/
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bareconv.device import driver_cuda_version
from bareconv.errors import BareconvError


@dataclass(frozen=True)
class Compiled:
    """Machine code, and what the compiler says that it needs: a thread's registers and bytes of spilled ones."""

    cubin: bytes
    registers: int
    spilled: int  # bytes stored to and loaded from memory for want of registers
    stack: int  # bytes of a thread's own memory
    log: str


def compile_source(
    text: str, name: str, architecture: str, options: Sequence[str] = (), headers: Mapping[str, str] | None = None
) -> Compiled:
    """Machine code for ``architecture`` ("sm_90"). BareconvError, with the compiler's words, where it cannot be."""
    library = _library()
    headers = headers or {}
    program = ctypes.c_void_p()
    texts = (ctypes.c_char_p * len(headers))(*(text.encode() for text in headers.values()))
    names = (ctypes.c_char_p * len(headers))(*(name.encode() for name in headers))
    _check(library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), name.encode(), len(headers), texts, names))
    try:
        # "-v" is how ptxas is asked for registers and spills; NVRTC adds its words to the log.
        words = [f"--gpu-architecture={architecture}", "--std=c++17", "-default-device", "--ptxas-options=-v", *options]
        arguments = (ctypes.c_char_p * len(words))(*(word.encode() for word in words))
        status = library.nvrtcCompileProgram(program, len(words), arguments)
        log = _text(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program).decode(errors="replace")
        log = log.rstrip("\0")
        if status:
            raise BareconvError(f"kernel {name} does not compile for {architecture}:\n{log.strip()}")
        return Compiled(
            _text(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN, program),
            registers=max(_numbers(r"Used (\d+) registers", log), default=0),
            spilled=sum(_numbers(r"(\d+) bytes spill", log)),
            stack=max(_numbers(r"(\d+) bytes stack frame", log), default=0),
            log=log,
        )
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


@functools.cache
def version() -> tuple[int, int]:
    """Of the compiler: (13, 0)."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


def why_not() -> str | None:
    """Why there is no run-time compiler; None where there is one."""
    try:
        _library()
    except BareconvError as error:
        return str(error)
    return None


@functools.cache
def _library() -> Any:
    for path in _candidates():
        try:
            for builtins in Path(path).parent.glob("libnvrtc-builtins.so.*"):  # which NVRTC looks for by name alone
                ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
            library = ctypes.CDLL(path)
            library.nvrtcGetErrorString.restype = ctypes.c_char_p
            return library
        except (OSError, AttributeError):
            continue
    raise BareconvError("NVRTC, CUDA's run-time compiler, was not found: pip install nvidia-cuda-nvrtc")


def _candidates() -> list[str]:
    """Where the library may be: NVIDIA's wheels, then wherever the system looks.

    What is newer than the driver's CUDA comes last: its machine code may be none for this driver.
    """
    found: list[str] = []
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or [] if spec else []:
        for pattern in ("cu*/lib/libnvrtc.so.*", "cu*/bin/**/nvrtc64_*.dll"):
            # The library of builtins beside it has another name.
            found += [str(path) for path in Path(folder).glob(pattern) if ".alt." not in path.name]
    found = sorted(found, key=_major, reverse=True)  # newest first
    found += ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
    system = ctypes.util.find_library("nvrtc")
    found += [*([system] if system else []), "/usr/local/cuda/lib64/libnvrtc.so"]
    driver = driver_cuda_version()
    return sorted(found, key=lambda path: driver is not None and _major(path) > driver[0])


def _major(path: str) -> int:
    """13 for libnvrtc.so.13; 0 where the name does not say it."""
    return max(_numbers(r"nvrtc(?:\.so\.|64_)(\d\d)", path), default=0)


def _check(status: int) -> None:
    if status:
        raise BareconvError(f"NVRTC: {_library().nvrtcGetErrorString(status).decode()}")


def _text(size: Any, get: Any, program: ctypes.c_void_p) -> bytes:
    count = ctypes.c_size_t()
    _check(size(program, ctypes.byref(count)))
    buffer = ctypes.create_string_buffer(count.value)
    _check(get(program, buffer))
    return buffer.raw


def _numbers(pattern: str, text: str) -> list[int]:
    return [int(number) for number in re.findall(pattern, text)]
