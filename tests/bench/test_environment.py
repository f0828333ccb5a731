"""The environment: the schema's form, machines that this one is not, and warnings that a user can act on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from nvml_stand_in import StandInNvml

import bareconv
from bareconv import device, host
from bareconv.bench import environment

REPOSITORY = Path(__file__).parents[2]
SCHEMA = json.loads((Path(bareconv.__file__).parent / "bench/result.schema.json").read_text())

CPUINFO = """processor\t: 0
model name\t: Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz
flags\t\t: fpu sse4_2 avx avx2 fma avx512f avx512dq avx512bw avx512vl avx512_vnni

"""
MEMINFO = "MemTotal:       16384000 kB\nMemFree:  1 kB\n"


@pytest.fixture
def machine(tmp_path):
    """Write a fake machine's files under a root: machine(cpuinfo=..., **{"path": text})."""

    def write(cpuinfo=CPUINFO, meminfo=MEMINFO, loadavg="0.10 0.2 0.3 1/100 5", **files):
        everything = {"proc/cpuinfo": cpuinfo, "proc/meminfo": meminfo, "proc/loadavg": loadavg, **files}
        for path, text in everything.items():
            if text is not None:
                target = tmp_path / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text)
        return tmp_path

    return write


@pytest.fixture
def blas(monkeypatch):
    """Say which BLAS there is: blas(architecture="Haswell")."""

    def choose(**changes):
        found = {"library": "OpenBLAS", "version": "0.3.30", "architecture": "SkylakeX", "threads": None, **changes}
        monkeypatch.setattr(environment, "_blas", lambda: found)

    choose()
    return choose


@pytest.fixture
def gpus(monkeypatch):
    def there(count):
        monkeypatch.setattr(environment, "_gpus", lambda: [{"name": f"GPU {i}"} for i in range(count)])

    there(0)
    return there


def conforms(described):
    schema = {"$ref": "#/$defs/environment", "$defs": SCHEMA["$defs"]}
    jsonschema.Draft202012Validator(schema).validate(described)
    properties = SCHEMA["$defs"]["environment"]["properties"]
    assert set(described) <= set(properties)
    assert set(described["cpu"]) <= set(properties["cpu"]["properties"])
    assert set(described["blas"]) <= set(properties["blas"]["properties"])
    for gpu in described["gpus"]:
        assert set(gpu) <= set(properties["gpus"]["items"]["properties"])
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    return described


def test_this_machine():
    found = conforms(environment.describe())
    assert found["cpu"]["cores_allowed"] == host.allowed_cores()
    assert found["cpu"]["memory_bytes"] > 1 << 28
    assert found["cuda_missing"] == device.why_no_cuda()
    import numpy

    assert found["packages"]["numpy"] == numpy.__version__
    assert {"torch", "jax", "tinygrad", "llvmlite", "threadpoolctl"} <= set(found["packages"])
    with device.get_device("cpu").activate():
        import threadpoolctl

        threads = {info["num_threads"] for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"}
    assert found["blas"]["threads"] in threads or found["blas"]["threads"] is None


def test_a_machine_with_nothing_to_read(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError

    for name in ("cpu_model", "allowed_cores", "affinity_cores", "container_quota", "cpuinfo"):
        monkeypatch.setattr(host, name, fails)
    monkeypatch.setattr(device, "why_no_cuda", fails)
    monkeypatch.setattr("platform.platform", fails)
    monkeypatch.setattr("importlib.metadata.version", fails)
    monkeypatch.setattr(device, "get_device", fails)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = conforms(environment.describe(tmp_path, {}))
    assert found["cpu"]["model"] == found["platform"] == found["blas"]["library"] == "unknown"
    assert "memory_bytes" not in found["cpu"]
    assert found["cpu"]["quota"] is None
    assert found["cpu"]["simd"] == found["gpus"] == found["warnings"] == []
    assert set(found["packages"].values()) == {None}


def test_the_cpu(machine, blas, gpus):
    files = {
        "proc/self/cgroup": "0::/job\n",
        "proc/self/mountinfo": "31 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
        "sys/fs/cgroup/memory.max": "max\n",
        "sys/fs/cgroup/job/memory.max": "4294967296\n",
        "sys/fs/cgroup/cpu.max": "100000 100000",
    }
    found = conforms(environment.describe(machine(**files), {}))
    assert found["cpu"]["model"] == "Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz"
    assert found["cpu"]["simd"] == ["SSE4.2", "AVX", "FMA", "AVX2", "AVX-512F", "AVX-512BW", "AVX-512 VNNI"]
    assert found["cpu"]["memory_bytes"] == 4 << 30
    assert found["cpu"]["quota"] == 1.0
    assert found["cpu"]["cores_allowed"] == 1


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("9223372036854771712", 16384000 * 1024), ("1073741824", 1 << 30), ("lots", 16384000 * 1024)],
)
def test_memory_under_version_1_groups(limit, expected, machine):
    root = machine(
        **{
            "proc/self/cgroup": "4:memory:/docker/abc\n",
            "proc/self/mountinfo": "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": limit,
        }
    )
    assert host.memory_bytes(root) == expected


def test_simd_of_arm(machine):
    root = machine(cpuinfo="processor : 0\nFeatures : fp asimd evtstrm aes sve sve2\nCPU implementer : 0x41\n")
    assert environment._simd(root) == ["NEON", "SVE", "SVE2"]


def test_variables_are_those_that_change_speed(machine, blas, gpus):
    kept = {
        "OPENBLAS_CORETYPE": "SkylakeX",
        "OMP_PROC_BIND": "true",
        "MKL_DYNAMIC": "0",
        "NUMBA_DISABLE_JIT": "0",
        "CUPY_ACCELERATORS": "cub",
        "CUDA_VISIBLE_DEVICES": "0",
        "NVIDIA_TF32_OVERRIDE": "0",
        "MALLOC_ARENA_MAX": "2",
        "GLIBC_TUNABLES": "x",
    }
    other = {"CUPY_CACHE_DIR": "/home/name", "MKL_THREADING_PATH": "x", "HOME": "/home/name", "MY_OMP_SECRET": "s"}
    assert environment.describe(machine(), {**kept, **other})["variables"] == dict(sorted(kept.items()))


class NvmlError(Exception):
    pass


def fake_nvml(count, broken=()):
    nvml: Any = types.ModuleType("pynvml")

    def answer(name, value):
        def function(*arguments):
            if name in broken:
                raise NvmlError(name)
            return value(*arguments) if callable(value) else value

        setattr(nvml, name, function)

    nvml.NVMLError = NvmlError
    nvml.calls = []
    answer("nvmlInit", lambda: nvml.calls.append("init"))
    answer("nvmlShutdown", lambda: nvml.calls.append("shutdown"))
    answer("nvmlSystemGetDriverVersion", b"580.95.05")  # old releases of the library gave bytes
    answer("nvmlSystemGetCudaDriverVersion_v2", 13010)
    answer("nvmlDeviceGetCount", count)
    answer("nvmlDeviceGetHandleByIndex", lambda index: index)
    answer("nvmlDeviceGetName", lambda handle: f"NVIDIA GPU {handle}")
    answer("nvmlDeviceGetMemoryInfo", types.SimpleNamespace(total=16 << 30))
    answer("nvmlDeviceGetCudaComputeCapability", (9, 0))
    return nvml


def test_gpus_through_nvml(machine, blas, monkeypatch):
    nvml = fake_nvml(2)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(device, "driver_cuda_version", device.driver_cuda_version.__wrapped__)
    found = conforms(environment.describe(machine(), {}))
    assert found["gpus"] == [
        {
            "name": f"NVIDIA GPU {index}",
            "memory_bytes": 16 << 30,
            "compute_capability": "9.0",
            "driver": "580.95.05",
            "driver_cuda": "13.1",
        }
        for index in (0, 1)
    ]
    assert nvml.calls.count("init") == nvml.calls.count("shutdown")


def test_how_a_gpu_is_set(machine, blas, monkeypatch):
    """In hertz and watts; what it does not tell is left out."""
    nvml = fake_nvml(1)
    more = StandInNvml(EccMode=None)
    for name in ("ClockInfo", "MaxClockInfo", "EnforcedPowerLimit", "EccMode", "PersistenceMode"):
        setattr(nvml, f"nvmlDeviceGet{name}", getattr(more, f"nvmlDeviceGet{name}"))
    nvml.nvmlDeviceGetHandleByIndex = more.nvmlDeviceGetHandleByIndex
    more.nvmlInit()
    nvml.nvmlDeviceGetName = lambda handle: "NVIDIA GPU 0"
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    (gpu,) = conforms(environment.describe(machine(), {}))["gpus"]
    assert gpu["sm_clock_hz"] == 1.755e9
    assert gpu["sm_clock_max_hz"] == 1.98e9
    assert gpu["memory_clock_hz"] == gpu["memory_clock_max_hz"] == 2.619e9
    assert gpu["power_limit_watts"] == 700
    assert gpu["persistence"] is False
    assert "ecc" not in gpu


def test_what_nvml_does_not_know_is_null(machine, blas, monkeypatch):
    broken = ["nvmlDeviceGetMemoryInfo", "nvmlDeviceGetCudaComputeCapability", "nvmlSystemGetDriverVersion"]
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(1, broken))
    monkeypatch.setattr(device, "driver_cuda_version", lambda: None)
    found = conforms(environment.describe(machine(), {}))
    assert found["gpus"] == [{"name": "NVIDIA GPU 0", "compute_capability": None, "driver": None, "driver_cuda": None}]
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(1, ["nvmlInit"]))
    assert environment.describe(machine(), {})["gpus"] == []


@pytest.mark.parametrize("wheel", ["cupy", "cupy-cuda12x", "cupy-cuda13x"])
def test_cupy_is_found_under_any_of_its_names(wheel, tmp_path, monkeypatch):
    info = tmp_path / f"{wheel.replace('-', '_')}-99.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {wheel}\nVersion: 99.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = environment._packages()
    assert found["cupy"] == found[wheel] == "99.1"
    assert "cupy" not in sys.modules or sys.modules["cupy"].__version__ != "99.1"


def warnings_of(root, variables):
    return conforms(environment.describe(root, variables))["warnings"]


def test_a_quiet_machine_in_order_has_no_warnings(machine, blas, gpus):
    blas(threads=host.allowed_cores())
    gpus(1)
    assert warnings_of(machine(), {"OMP_NUM_THREADS": str(host.allowed_cores()), "CUDA_VISIBLE_DEVICES": "0"}) == []


@pytest.mark.parametrize(
    ("library", "variables", "expected"),
    [
        (
            {"architecture": "Haswell"},
            {"OPENBLAS_CORETYPE": "Haswell"},
            "OPENBLAS_CORETYPE=Haswell makes NumPy use Haswell's AVX2 kernels on a CPU that has AVX-512, at a half to "
            "two thirds of its speed: unset OPENBLAS_CORETYPE",
        ),
        (
            {"architecture": "Haswell"},
            {},
            "OpenBLAS chose Haswell's AVX2 kernels, though this CPU has AVX-512; OPENBLAS_CORETYPE=SkylakeX may be "
            "faster: try it",
        ),
        (
            {"architecture": "haswell", "library": "BLIS"},
            {"BLIS_ARCH_TYPE": "haswell"},
            "BLIS_ARCH_TYPE=haswell makes NumPy use haswell's AVX2 kernels on a CPU that has AVX-512, at a half to two "
            "thirds of its speed: unset BLIS_ARCH_TYPE",
        ),
        (
            {},
            {"OPENBLAS_L2_SIZE": "512"},
            "OPENBLAS_L2_SIZE=512 overrides the cache size by which OpenBLAS cuts its matrices: unset OPENBLAS_L2_SIZE",
        ),
        (
            {},
            {"NPY_DISABLE_CPU_FEATURES": "AVX2"},
            "NPY_DISABLE_CPU_FEATURES=AVX2 keeps NumPy from instructions that this CPU has: unset "
            "NPY_DISABLE_CPU_FEATURES",
        ),
        (
            {"threads": 2},
            {"OMP_NUM_THREADS": "2"},
            "OMP_NUM_THREADS=2 gives NumPy 2 of the 8 cores that it may use: unset OMP_NUM_THREADS",
        ),
        (
            {"threads": 8},
            {"OPENBLAS_NUM_THREADS": "2"},
            "OPENBLAS_NUM_THREADS=2 has no effect here: NumPy's matrix products run on 8 threads",
        ),
        ({"threads": 4}, {}, "NumPy's matrix products run on 4 of the 8 cores that they may use"),
        (
            {"threads": 64},
            {},
            "NumPy's matrix products run 64 threads on 8 cores, which slows them down: set OMP_NUM_THREADS=8",
        ),
        (
            {"threads": 64},
            {"MKL_NUM_THREADS": "64"},
            "NumPy's matrix products run 64 threads on 8 cores, which slows them down: unset MKL_NUM_THREADS",
        ),
    ],
)
def test_warnings_of_the_cpu(library, variables, expected, machine, blas, gpus, monkeypatch):
    monkeypatch.setattr(host, "allowed_cores", lambda root: 8)
    blas(**library)
    assert warnings_of(machine(), variables) == [expected]


@pytest.mark.parametrize(
    ("flags", "architecture", "variables", "said"),
    [
        ("avx2 fma", "Haswell", {}, False),  # the right kernels for this CPU
        ("avx2 fma", "Zen", {"OPENBLAS_CORETYPE": "Zen"}, False),
        ("avx2 fma avx512f", "Haswell", {}, False),  # Xeon Phi: no kernels for its AVX-512
        ("avx2 fma avx512f avx512bw", "SkylakeX", {}, False),
        ("avx2 fma avx512f avx512bw", "Cooperlake", {}, False),
        ("avx2 fma avx512f avx512bw", "SapphireRapids", {}, False),
        ("avx2 fma avx512f avx512bw", None, {}, False),
        ("avx2 fma avx512f avx512bw", "Zen", {}, True),
        ("avx2 fma avx512f avx512bw", "Prescott", {}, True),
        ("avx2 fma", "Nehalem", {"OPENBLAS_CORETYPE": "Nehalem"}, True),
        ("avx2 fma", "Sandybridge", {}, True),
    ],
)
def test_kernels_narrower_than_the_cpu(flags, architecture, variables, said, machine, blas, gpus):
    blas(architecture=architecture)
    root = machine(cpuinfo=f"processor : 0\nmodel name : some CPU\nflags : {flags}\n")
    assert bool(warnings_of(root, variables)) == said


@pytest.mark.parametrize(
    ("count", "variables", "starts"),
    [
        (0, {"CUPY_TF32": "1", "CUDA_VISIBLE_DEVICES": "", "NVIDIA_TF32_OVERRIDE": "1"}, []),
        (1, {"CUPY_TF32": "0"}, []),
        (1, {"CUPY_TF32": "1"}, ["CUPY_TF32=1 lets the GPU round float32"]),
        (1, {"NVIDIA_TF32_OVERRIDE": "1"}, ["NVIDIA_TF32_OVERRIDE=1 lets the GPU round float32"]),
        (1, {"NVIDIA_TF32_OVERRIDE": "0"}, ["NVIDIA_TF32_OVERRIDE=0 switches TF32 off"]),
        (1, {"NVIDIA_TF32_OVERRIDE": "0", "CUPY_TF32": "1"}, ["NVIDIA_TF32_OVERRIDE=0 switches TF32 off"]),
        (1, {"CUDA_LAUNCH_BLOCKING": "1"}, ["CUDA_LAUNCH_BLOCKING=1 makes the CPU wait"]),
        (2, {"CUDA_VISIBLE_DEVICES": "0,1"}, []),
        (2, {"CUDA_VISIBLE_DEVICES": "1"}, ["CUDA_VISIBLE_DEVICES=1 shows 1 of this machine's 2 GPUs"]),
        (2, {"CUDA_VISIBLE_DEVICES": ""}, ["CUDA_VISIBLE_DEVICES= shows 0 of this machine's 2 GPUs"]),
        (2, {"CUDA_VISIBLE_DEVICES": "-1,0"}, ["CUDA_VISIBLE_DEVICES=-1,0 shows 0 of this machine's 2 GPUs"]),
        (2, {"CUDA_VISIBLE_DEVICES": "0,7,1"}, ["CUDA_VISIBLE_DEVICES=0,7,1 shows 1 of this machine's 2 GPUs"]),
        (2, {"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}, ["CUDA_VISIBLE_DEVICES=GPU-8932f937 shows 1 of"]),
    ],
)
def test_warnings_of_the_gpu(count, variables, starts, machine, blas, gpus):
    gpus(count)
    found = warnings_of(machine(), variables)
    assert len(found) == len(starts)
    assert all(warning.startswith(start) for warning, start in zip(found, starts, strict=True))


@pytest.mark.parametrize(("load", "cores", "busy"), [(0.4, 2, False), (1.5, 2, True), (1.5, 16, False), (9, 64, True)])
def test_a_busy_machine_is_said_to_be(load, cores, busy, machine, blas, gpus, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    found = warnings_of(machine(loadavg=f"{load:.2f} 0.50 0.25 3/200 99"), {})
    assert [f"{load:.1f} processes ran at a time on its {cores} cores" in warning for warning in found] == [True] * busy


def test_warnings_do_without_a_load_average(machine, blas, gpus):
    root = machine(loadavg=None)
    assert warnings_of(root, {"OPENBLAS_L2_SIZE": "1"})[0].startswith("OPENBLAS_L2_SIZE=1")


@pytest.mark.parametrize(
    ("version", "installed", "names"),
    [
        (None, [], ["PyTorch"]),  # without a driver, CuPy is of no use
        ((13, 0), [], ["CuPy", "PyTorch"]),
        ((12, 2), ["torch"], ["CuPy"]),
        ((11, 4), ["torch"], []),
        ((13, 0), ["torch", "cupy"], []),
    ],
)
def test_missing(version, installed, names, monkeypatch):
    monkeypatch.setattr(device, "driver_cuda_version", lambda: version)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name in installed else None)
    found = environment.missing()
    assert [entry.name for entry in found] == names
    for entry in found:
        assert entry.why
        expected = device.cupy_install_command(version) if entry.name == "CuPy" else f"pip install {environment.TORCH}"
        assert entry.command == expected


def test_the_peers_release_is_the_projects():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert environment.TORCH in project["optional-dependencies"]["peers"]


def git(folder, *arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with a package at src/some, committed."""
    try:
        git(tmp_path, "init", "-q")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git is not installed")
    package = tmp_path / "src/some"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (tmp_path / "main.py").write_text("")
    (tmp_path / ".gitignore").write_text(".venv/\n*.pyc\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return package


def test_commit(checkout):
    commit = git(checkout, "rev-parse", "HEAD")
    assert environment.git_commit(checkout) == commit
    (checkout / "cached.pyc").write_text("")  # ignored
    (checkout.parents[1] / "notes.txt").write_text("")  # new, but not within the package
    assert environment.git_commit(checkout) == commit


@pytest.mark.parametrize("path", ["src/some/__init__.py", "main.py", "src/some/new.py", "src/some/deep/new.py"])
def test_commit_with_changes(path, checkout):
    target = checkout.parents[1] / path
    target.parent.mkdir(exist_ok=True)
    target.write_text("changed")
    assert environment.git_commit(checkout) == git(checkout, "rev-parse", "HEAD") + "+changes"


def test_no_commit_of_a_stranger(checkout, tmp_path):
    # Installed into an environment within some other project's checkout: that project's commit says nothing.
    installed = checkout.parents[1] / ".venv/lib/bareconv"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert environment.git_commit(installed) is None
    assert environment.git_commit(tmp_path / "there is no such folder") is None


def test_no_commit_before_the_first(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "__init__.py").write_text("")
    git(tmp_path, "add", ".")
    assert environment.git_commit(tmp_path) is None


def test_no_commit_outside_or_without_git(checkout, tmp_path_factory, monkeypatch):
    outside = tmp_path_factory.mktemp("outside")
    assert environment.git_commit(outside) is None
    commit = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(outside))  # as within another repository's hook
    assert environment.git_commit(checkout) == commit
    monkeypatch.setenv("PATH", str(outside))
    assert environment.git_commit(checkout) is None


def test_a_slow_git_is_not_waited_for(checkout, tmp_path, monkeypatch):
    import time

    slow = tmp_path / "bin/git"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    started = time.monotonic()
    assert environment.git_commit(checkout) is None
    assert time.monotonic() - started < 2
