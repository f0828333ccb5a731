"""The machine and the software that a result was measured with, and what about them distorts a measurement.

Nothing here raises: a probe that fails leaves its entry null or out. ``root`` is where /proc and /sys are, and
``variables`` the environment, so that tests can describe a machine that they are not on.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bareconv import device, host
from bareconv.bench.nvml import Gpu
from bareconv.report.format import counted

T = TypeVar("T")
U = TypeVar("U")

TORCH = "torch==2.13.0"  # the release that the comparisons are made with; also in pyproject.toml

LIBRARIES = (
    "llvmlite",
    "numba",
    "torch",
    "jax",
    "tinygrad",
    "scipy",
    "threadpoolctl",
)  # whose versions a result names, besides NumPy's and CuPy's

# What the CPU says (x86: flags, Arm: Features, in /proc/cpuinfo) and what people call it, the widest last.
SIMD = {
    "sse4_2": "SSE4.2",
    "avx": "AVX",
    "fma": "FMA",
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512F",
    "avx512bw": "AVX-512BW",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_fp16": "AVX-512 FP16",
    "amx_tile": "AMX",
    "neon": "NEON",
    "asimd": "NEON",
    "sve": "SVE",
    "sve2": "SVE2",
}

# Kernels of OpenBLAS and BLIS that use no AVX-512, and what they use. Zen is AVX2 also on those that have AVX-512.
NARROW_KERNELS = {
    **dict.fromkeys(["haswell", "zen", "zen2", "zen3", "excavator"], "AVX2"),
    **dict.fromkeys(["sandybridge", "bulldozer", "piledriver", "steamroller"], "AVX"),
    **dict.fromkeys(["nehalem", "penryn", "dunnington", "core2", "prescott", "atom", "barcelona", "bobcat"], "SSE"),
}

# Variables that change how fast or how exactly NumPy, CuPy or PyTorch compute. Paths stay out: they tell of the user.
SPEED_VARIABLES = re.compile(
    r"BARECONV_SIMD|(OPENBLAS|GOTO|OMP|KMP|MKL|BLIS|VECLIB|NUMBA|CUPY|MALLOC|CUBLAS|CUDNN|NPY|TORCH|PYTORCH)_\w+"
    r"|CUDA_(VISIBLE_DEVICES|DEVICE_ORDER|LAUNCH_BLOCKING|MODULE_LOADING|DEVICE_MAX_CONNECTIONS|CACHE_DISABLE)"
    r"|NVIDIA_TF32_OVERRIDE|GLIBC_TUNABLES|LD_PRELOAD|PYTHONMALLOC|PYTHON_GIL"
)


@dataclass(frozen=True)
class Missing:
    """Something that is not installed: its ``name``, ``why`` it matters, and the ``command`` that installs it."""

    name: str
    why: str
    command: str


def describe(root: Path = Path("/"), variables: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The ``environment`` object of a result; ``result.schema.json`` says what is in it. JSON-able.

    Call it before what is measured: its ``warnings`` look at how busy the machine is.
    """
    environment: dict[str, Any] = {
        "platform": _attempt(platform.platform, "unknown"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "cpu": _cpu(root),
        "blas": _attempt(_blas, {"library": "unknown"}),
        "gpus": _attempt(_gpus, []),
        "cuda_missing": _attempt(device.why_no_cuda, "CUDA could not be looked for"),
        "packages": _packages(),
        "variables": speed_variables(variables),
    }
    load = _attempt(lambda: _load(root), 0.0)
    environment["warnings"] = _attempt(lambda: list(_warnings(environment, load)), [])
    return environment


def speed_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Those of an environment that change how fast or how exactly something computes, by name."""
    return {
        name: value
        for name, value in sorted(variables.items())
        if SPEED_VARIABLES.fullmatch(name) and not name.endswith(("_DIR", "_PATH", "_HOME", "_LIB_OK"))
    }


def missing() -> list[Missing]:
    """What is not installed although this machine could use it, with the command that installs it."""
    found = []
    version = _attempt(device.driver_cuda_version, None)
    if version is not None and version[0] >= device.OLDEST_CUDA and importlib.util.find_spec("cupy") is None:
        why = "this machine has an NVIDIA driver, but without CuPy nothing runs on the GPU"
        found.append(Missing("CuPy", why, device.cupy_install_command(version)))
    if importlib.util.find_spec("torch") is None:
        why = "without it nothing here is compared with PyTorch, neither its speed nor its results"
        found.append(Missing("PyTorch", why, f"pip install {TORCH}"))
    return found


def git_commit(package: Path | None = None) -> str | None:
    """The commit of the checkout that the package lies in, with "+changes" where files differ from it.

    Changes are those to any tracked file, and new files within the package. None where the package is installed
    elsewhere (site-packages within another project's checkout included), or git is absent, or takes over 1.5 s.
    ``package``: the package's folder; this one's unless given.
    """
    package = package or Path(device.__file__).parent
    deadline = time.monotonic() + 1.5
    # GIT_DIR and the like, as a git hook sets them, would point at another repository.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    variables["GIT_OPTIONAL_LOCKS"] = "0"  # only look: another git may be at work in the same checkout

    def git(*arguments: str) -> list[str]:
        done = subprocess.run(
            ["git", *arguments],
            cwd=package,
            env=variables,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=max(0.05, deadline - time.monotonic()),
            check=True,
        )
        return done.stdout.splitlines()

    try:
        files = git("ls-files", "-t", "--cached", "--others", "--exclude-standard", "--", ".")
        if not any(line.endswith(" __init__.py") and not line.startswith("?") for line in files):
            return None
        status = git("status", "--porcelain=v2", "--branch", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    commit = next((line.split()[-1] for line in status if line.startswith("# branch.oid ")), "(initial)")
    if commit == "(initial)":  # a repository without a commit
        return None
    changed = any(not line.startswith("#") for line in status) or any(line.startswith("?") for line in files)
    return commit + ("+changes" if changed else "")


def _attempt(probe: Callable[[], T], otherwise: U) -> T | U:
    """What ``probe`` finds, or ``otherwise`` where it fails, in whatever way: a description must not stop a run."""
    try:
        return probe()
    except Exception:
        return otherwise


def _cpu(root: Path) -> dict[str, Any]:
    cores = os.cpu_count() or 1
    found: dict[str, Any] = {
        "model": _attempt(lambda: host.cpu_model(root), "unknown"),
        "cores": cores,
        "cores_allowed": _attempt(lambda: host.allowed_cores(root), cores),
        "affinity": _attempt(host.affinity_cores, cores),
        "quota": _attempt(lambda: host.container_quota(root), None),
        "simd": _attempt(lambda: _simd(root), []),
    }
    memory = _attempt(lambda: host.memory_bytes(root), None)
    if memory is not None:
        found["memory_bytes"] = memory
    return found


def _simd(root: Path) -> list[str]:
    info = host.cpuinfo(root)
    flags = set((info.get("flags") or info.get("Features") or "").split())
    if not info and platform.machine() == "arm64":  # Apple's have no /proc, but all have NEON
        flags = {"asimd"}
    return list(dict.fromkeys(name for flag, name in SIMD.items() if flag in flags))


def _blas() -> dict[str, Any]:
    """The library behind NumPy's matrix products, with the threads that it has while the CPU device is active."""
    import threadpoolctl

    names = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS", "flexiblas": "FlexiBLAS"}
    with device.get_device("cpu").activate():
        loaded = [library for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]
    # SciPy and PyTorch bring their own; NumPy's lies with NumPy, or is the first that was loaded.
    loaded.sort(key=lambda library: "numpy" not in library["filepath"])
    if loaded:
        library = loaded[0]
        return {
            "library": names.get(library["internal_api"], library["internal_api"]),
            "version": library.get("version"),
            "architecture": library.get("architecture"),
            "threads": library.get("num_threads"),
        }
    built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {"library": built["name"], "version": built.get("version"), "architecture": None, "threads": None}


def _gpus() -> list[dict[str, Any]]:
    """All GPUs that the driver shows, through NVML: whether CuPy is there or not, and CUDA_VISIBLE_DEVICES or not."""
    import pynvml

    def text(value: str | bytes) -> str:
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    pynvml.nvmlInit()
    try:
        driver = _attempt(lambda: text(pynvml.nvmlSystemGetDriverVersion()), None)
        version = device.driver_cuda_version()
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            gpu: dict[str, Any] = {"name": text(pynvml.nvmlDeviceGetName(handle))}
            memory = _attempt(partial(pynvml.nvmlDeviceGetMemoryInfo, handle), None)
            if memory is not None:  # with unified memory, it has none of its own
                gpu["memory_bytes"] = int(memory.total)
            capability = _attempt(partial(pynvml.nvmlDeviceGetCudaComputeCapability, handle), None)
            gpu["compute_capability"] = None if capability is None else f"{capability[0]}.{capability[1]}"
            gpu["driver"] = driver
            gpu["driver_cuda"] = None if version is None else f"{version[0]}.{version[1]}"
            found.append(gpu | Gpu(pynvml, handle).settings())
        return found
    finally:
        pynvml.nvmlShutdown()


def _packages() -> dict[str, str | None]:
    """Versions of what computes; null where it is not installed. CuPy's has the name of its CUDA version."""
    cupy = ["cupy", *(f"cupy-cuda{major}x" for major in range(11, 17))]
    versions = {name: _version(name) for name in ["numpy", *cupy, *LIBRARIES]}
    wheel = next((name for name in cupy if versions[name] is not None), "cupy")
    found = {"numpy": versions["numpy"], "cupy": versions[wheel], wheel: versions[wheel]}
    return found | {name: versions[name] for name in LIBRARIES}


def _version(distribution: str) -> str | None:
    return _attempt(lambda: importlib.metadata.version(distribution), None)


def _load(root: Path) -> float:
    """Processes that wanted to run, on average over the last minute, on the whole machine."""
    if root == Path("/"):
        return os.getloadavg()[0]
    return float((root / "proc/loadavg").read_text().split()[0])


def _warnings(environment: Mapping[str, Any], load: float) -> Iterator[str]:
    """What makes the figures worse than this machine's, or other than they seem; each a sentence with a remedy."""
    cpu, blas, variables = environment["cpu"], environment["blas"], environment["variables"]

    kernel = blas.get("architecture") or ""
    narrow = NARROW_KERNELS.get(kernel.lower())
    # AVX-512BW tells the CPUs that the AVX-512 kernels are made for from Xeon Phi, which has only AVX-512F.
    if narrow is not None and "AVX-512BW" in cpu["simd"]:
        forced = next((name for name in ("OPENBLAS_CORETYPE", "BLIS_ARCH_TYPE") if variables.get(name)), None)
        if forced is not None:
            yield (
                f"{forced}={variables[forced]} makes NumPy use {kernel}'s {narrow} kernels on a CPU that has AVX-512, "
                f"at a half to two thirds of its speed: unset {forced}"
            )
        elif blas["library"] == "OpenBLAS":
            yield (
                f"OpenBLAS chose {kernel}'s {narrow} kernels, though this CPU has AVX-512; "
                "OPENBLAS_CORETYPE=SkylakeX may be faster: try it"
            )
    elif narrow in ("AVX", "SSE") and "AVX2" in cpu["simd"]:
        yield (
            f"NumPy uses {kernel}'s {narrow} kernels on a CPU that has AVX2, at a fraction of its speed: "
            + ("unset OPENBLAS_CORETYPE" if "OPENBLAS_CORETYPE" in variables else "set OPENBLAS_CORETYPE=Haswell")
        )
    if "OPENBLAS_L2_SIZE" in variables:
        yield (
            f"OPENBLAS_L2_SIZE={variables['OPENBLAS_L2_SIZE']} overrides the cache size by which OpenBLAS cuts its "
            "matrices: unset OPENBLAS_L2_SIZE"
        )
    if "NPY_DISABLE_CPU_FEATURES" in variables:
        yield (
            f"NPY_DISABLE_CPU_FEATURES={variables['NPY_DISABLE_CPU_FEATURES']} keeps NumPy from instructions that this "
            "CPU has: unset NPY_DISABLE_CPU_FEATURES"
        )

    allowed, threads, asked = cpu["cores_allowed"], blas.get("threads"), host.requested_threads(variables)
    if asked is not None and asked[1] < allowed:
        name, count = asked
        if threads is None or threads <= count:
            yield f"{name}={count} gives NumPy {count} of the {allowed} cores that it may use: unset {name}"
        else:
            yield f"{name}={count} has no effect here: NumPy's matrix products run on {counted(threads, 'thread')}"
    elif threads is not None and threads < allowed:
        yield f"NumPy's matrix products run on {threads} of the {allowed} cores that they may use"
    if threads is not None and threads > allowed:
        remedy = f"unset {asked[0]}" if asked is not None else f"set OMP_NUM_THREADS={allowed}"
        cores = counted(allowed, "core")
        yield f"NumPy's matrix products run {counted(threads, 'thread')} on {cores}, which slows them down: {remedy}"

    gpus = len(environment["gpus"])
    if gpus or environment["cuda_missing"] is None:
        override = variables.get("NVIDIA_TF32_OVERRIDE")
        if override == "0":
            yield (
                "NVIDIA_TF32_OVERRIDE=0 switches TF32 off, also where a run asks for it: unset NVIDIA_TF32_OVERRIDE "
                "to compare with TF32"
            )
        elif override is not None:
            yield (
                f"NVIDIA_TF32_OVERRIDE={override} lets the GPU round float32 matrix products to TF32's 10 bits, "
                "whatever the precision is called: unset NVIDIA_TF32_OVERRIDE"
            )
        if variables.get("CUPY_TF32") == "1" and override != "0":
            yield (
                "CUPY_TF32=1 lets the GPU round float32 matrix products to TF32's 10 bits: "
                "unset CUPY_TF32 to compare equal precisions"
            )
        if variables.get("CUDA_LAUNCH_BLOCKING") == "1":
            yield (
                "CUDA_LAUNCH_BLOCKING=1 makes the CPU wait for every GPU kernel, which slows the GPU's runs down: "
                "unset CUDA_LAUNCH_BLOCKING"
            )
        visible = variables.get("CUDA_VISIBLE_DEVICES")
        if visible is not None and _visible(visible, gpus) < gpus:
            yield (
                f"CUDA_VISIBLE_DEVICES={visible} shows {_visible(visible, gpus)} of this machine's {gpus} GPUs: "
                "unset CUDA_VISIBLE_DEVICES to use the others"
            )

    cores = cpu["cores"]
    if load > 0.9 + cores / 10:  # a set-up that ended a moment ago still counts with up to 0.9
        yield (
            f"this machine is busy: over the last minute, {load:.1f} processes ran at a time on its "
            f"{counted(cores, 'core')}, so that times come out longer: end other programs, or wait a minute, and "
            "measure again"
        )


def _visible(value: str, gpus: int) -> int:
    """How many of ``gpus`` a CUDA_VISIBLE_DEVICES shows: CUDA stops at the first entry that names none."""
    count = 0
    for entry in value.split(","):
        name = entry.strip()
        if not (name.startswith(("GPU-", "MIG-")) or (name.isdecimal() and int(name) < gpus)):
            break
        count += 1
    return min(count, gpus)
