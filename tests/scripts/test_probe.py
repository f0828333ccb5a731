"""scripts/probe.py: what it makes of the driver's library and of nvidia-smi."""

from __future__ import annotations

import ctypes
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROBE = Path(__file__).parents[2] / "scripts" / "probe.py"
SMI = "| NVIDIA-SMI 580.65.06      Driver Version: 580.65.06      CUDA Version: 13.0     |"


def driver_version() -> tuple[int, int] | None:
    answer: tuple[int, int] | None = runpy.run_path(str(PROBE))["driver_version"]()
    return answer


def fake_library(status: int, version: int) -> Any:
    class Library:
        def __init__(self, name: str) -> None:
            assert name.endswith("libcuda.so.1")

        def cuDriverGetVersion(self, answer: Any) -> int:  # noqa: N802 - the driver's own name
            answer._obj.value = version
            return status

    return Library


@pytest.fixture
def no_library(monkeypatch, tmp_path):
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("number", "expected"), [(13000, (13, 0)), (12090, (12, 9)), (11040, (11, 4)), (13020, (13, 2))]
)
def test_library_answers(monkeypatch, number, expected):
    monkeypatch.setattr(ctypes, "CDLL", fake_library(0, number))
    assert driver_version() == expected


def test_stub_library_is_no_driver(monkeypatch, tmp_path):
    monkeypatch.setattr(ctypes, "CDLL", fake_library(34, 0))  # what the toolkit's stub for linking returns
    monkeypatch.setenv("PATH", str(tmp_path))
    assert driver_version() is None


@pytest.mark.parametrize(
    ("printed", "code", "expected"),
    [(SMI, 0, (13, 0)), (SMI.replace("CUDA", "CUDA UMD"), 0, (13, 0)), ("", 0, None), (SMI, 9, None)],
)
def test_nvidia_smi_is_asked_without_library(no_library, printed, code, expected):
    program = no_library / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{printed}'\nexit {code}\n")
    program.chmod(0o755)
    assert driver_version() == expected


def test_nothing_there(no_library):
    assert driver_version() is None


def test_one_line_for_the_shell():
    run = subprocess.run([sys.executable, "-I", "-S", str(PROBE)], capture_output=True, text=True, check=True)
    version, driver, base = run.stdout.rstrip("\n").split(" ", 2)
    assert version == ".".join(map(str, sys.version_info[:3]))
    assert driver == "none" or driver.replace(".", "").isdigit()
    assert Path(base).is_file()
