"""Compiled kernels on disk: found by other processes, written anew where damaged, and done without."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from kernel_harness import NAMES, target_of

from bareconv.errors import UsageError
from bareconv.kernels import cache
from bareconv.kernels.cpu import jit
from bareconv.kernels.cpu.correlate import Correlate
from bareconv.kernels.cpu.elementwise import Elementwise
from bareconv.kernels.cpu.kernel import Kernel
from bareconv.kernels.cpu.parameters import Pack
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.target import host_target
from bareconv.nn import models
from bareconv.optim import SGD
from bareconv.plan.cpu.plan import CpuPlan

PROGRAM = """
import numpy as np
from bareconv.nn import models
from bareconv.optim import SGD
from bareconv.plan.cpu.plan import CpuPlan
model = models.lenet5((14, 14, 1))
plan = CpuPlan(model, SGD(0.1, momentum=0.9), 8, threads=2)
pixels = np.random.default_rng(0).integers(0, 256, (8, 14, 14, 1), np.uint8)
losses = [plan.step(pixels, np.arange(8), np.arange(8), 0.1)[0] for _ in range(3)]
logits = plan.predict(pixels)
plan.close()
print(plan.compiled, repr(losses), repr(float(logits.sum())))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and nothing in memory."""
    monkeypatch.setenv("BARECONV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(jit, "_loaded", {})
    return tmp_path / "cache"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(jit, "_loaded", {})


def kernel(channels: int) -> Kernel:
    plane = Plane(3, 3, channels)
    return Elementwise(host_target(), "add", plane, plane, plane)


def test_another_process_compiles_nothing(tmp_path: Path) -> None:
    """Neither the plan's kernels nor those that see to the threads; and it comes to the same results."""
    environment = {**os.environ, "BARECONV_CACHE_DIR": str(tmp_path / "cache")}
    command, printed, kept = [sys.executable, "-c", PROGRAM], [], []
    for _ in range(2):
        printed.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
        kept.append({path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()})
    (first, results), (second, again) = (text.split(" ", 1) for text in printed)
    assert int(first) > 10
    assert int(second) == 0
    assert results == again
    assert len(kept[0]) > int(first)
    assert kept[0] == kept[1]


def test_each_kernel_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    made = jit.compile_kernels([kernel(5), kernel(6), kernel(5)], lambda done, total: told.append((done, total)))
    assert (made.written, len(made.addresses)) == (2, 2)
    assert told == [(0, 2), (1, 2), (2, 2)]
    assert jit.compile_kernels([kernel(6)]).written == 0
    forget(monkeypatch)
    told.clear()
    assert jit.compile_kernels([kernel(5), kernel(6)], lambda done, total: told.append((done, total))).written == 0
    assert told == []
    assert [path.suffix for path in folder.iterdir()] == [".o", ".o"]


@pytest.mark.parametrize("damage", [b"", b"\x7fELF", None], ids=["empty", "too short", "one bit"])
def test_a_damaged_file_is_written_anew(folder: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None) -> None:
    jit.compile_kernels([kernel(7)])
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:] if damage is None else damage)
    forget(monkeypatch)
    assert jit.compile_kernels([kernel(7)]).written == 1
    forget(monkeypatch)
    assert jit.compile_kernels([kernel(7)]).written == 0


@pytest.mark.parametrize("below", ["", "further/down"], ids=["a file", "below a file"])
def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    (tmp_path / "taken").write_text("not a folder")
    monkeypatch.setenv("BARECONV_CACHE_DIR", str(tmp_path / "taken" / below))
    for _ in range(2):
        forget(monkeypatch)
        assert jit.compile_kernels([kernel(8)]).written == 1
    assert (tmp_path / "taken").read_text() == "not a folder"


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BARECONV_CACHE_DIR", str(tmp_path / "told"))
    assert cache.cache_folder() == tmp_path / "told"
    monkeypatch.delenv("BARECONV_CACHE_DIR")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "bareconv"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache.cache_folder() == tmp_path / ".cache" / "bareconv"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache.cache_folder() == tmp_path / "Library" / "Caches" / "bareconv"


FAR_APART = """
import ctypes
from bareconv.kernels.cpu import jit
from bareconv.kernels.cpu.ends import SoftmaxCrossEntropy
from bareconv.kernels.cpu.target import host_target

libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
PAGE = 4096

def take(size):
    reserved, nothing = 0x4022, 0  # MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, PROT_NONE
    return libc.mmap(None, size, nothing, reserved, -1, 0)

for classes in range(2, 22):
    for pages in (1, 1, 1, 4, 16) * 1000:  # the holes of before
        take(pages * PAGE)
    block = take(3 * PAGE)
    take(3 << 30)
    libc.munmap(block + PAGE, PAGE)  # room for instructions, and not for their constants
    kernel = SoftmaxCrossEntropy(host_target(), classes, 0.0)
    assert jit.compile_kernels([kernel]).addresses[kernel]
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="maps memory as Linux does")
def test_code_and_its_constants_stay_close(folder: Path) -> None:
    """However much of the address space has been taken since the last kernel was loaded."""
    done = subprocess.run([sys.executable, "-c", FAR_APART], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[:500]


def test_names_tell_kernels_apart() -> None:
    """By shape, by kind, by processor, and by the sources that write them."""
    target = host_target()
    one = Correlate(target, Plane(5, 5, 3), Plane(3, 3, 8), 8, (3, 3), (3, 3))
    others = [
        replace(one, relu=True),
        replace(one, x=Plane(5, 5, 3, (1, 0))),
        replace(one, target=replace(target, features=target.features + ",+other")),
        replace(one, target=host_target("float64")),
        Pack(target),
    ]
    assert len({jit._digest(each) for each in (one, *others)}) == 6
    assert jit._digest(one) == jit._digest(replace(one))


def test_a_large_model_is_compiled_in_seconds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = CpuPlan(models.resnet18(), SGD(0.1, momentum=0.9), 8, threads=1)
    try:
        plan.prepare()
    finally:
        plan.close()
    with capsys.disabled():
        print(f" [resnet18: {plan.compiled} kernels in {plan.compile_seconds:.1f} s]", end="")
    assert plan.compiled > 30
    assert plan.compile_seconds < 20


@pytest.mark.parametrize("unit", NAMES)
def test_units(unit: str) -> None:
    """As wide as they are; of those that this machine lacks, no kernel is tested."""
    single, double = target_of(unit, "float32"), target_of(unit, "float64")
    width, registers = {"AVX-512": (64, 32), "AVX2": (32, 16), "NEON": (16, 32), "SSE2": (16, 16)}[unit]
    assert (single.lanes * single.element_bytes, single.registers) == (width, registers)
    assert (double.lanes * double.element_bytes, double.registers) == (width, registers)


def test_units_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """In any spelling; the environment's, where none is given; an error that says what there is."""
    widest = host_target()
    assert host_target(name=widest.name.lower().replace("-", "_")) == widest
    assert host_target("float64").lanes * 2 == widest.lanes
    monkeypatch.setenv("BARECONV_SIMD", widest.name)
    assert host_target() == widest
    monkeypatch.setenv("BARECONV_SIMD", "MMX")
    with pytest.raises(UsageError, match=f"MMX: this processor offers .*{widest.name}"):
        host_target()
    assert host_target(name=widest.name) == widest
