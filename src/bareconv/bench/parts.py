"""Programs that are run beside a measurement, each a ``part`` of the result: the tests, a sanitizer over kernels."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

KEPT_LINES = 40  # of what a part says, the last
SANITIZER = "compute-sanitizer"
# Each with options of its own: barriers in shared memory order what lies behind several of them, too.
SANITIZERS: Mapping[str, Sequence[str]] = {"memcheck": (), "racecheck": ("--racecheck-indirect-barrier-dependency",)}
FOUND_EXIT_CODE = 86  # of a sanitizer that found something, whatever the program's own is
TOOLKIT = "/usr/local/cuda/bin"  # where it lies where no PATH leads to it
# For the tests. What they give kernels is then allocated byte by byte as it is, without margins, so that a read beyond
# it is seen; and kernels are launched in ways that racecheck can follow (tests/harness/planted.py has what it cannot).
SANITIZED: Mapping[str, Mapping[str, str]] = {
    "memcheck": {"BARECONV_TEST_MEMORY": "exact"},
    "racecheck": {"BARECONV_TEST_RACECHECK": "1"},
}


def run_part(
    name: str,
    command: Sequence[str],
    seconds: float,
    folder: Path,
    variables: Mapping[str, str] | None = None,
    wanted: int = 0,
) -> dict[str, Any]:
    """Run ``command`` in a folder for at most ``seconds``: a ``part`` of the result. "python" is this interpreter.

    ``variables``: added to its environment. ``wanted``: the exit code of one that has passed. Its standard output and
    error are kept together, the last lines of them. It ends with all that it started.
    """
    words, variables = [sys.executable if word == "python" else word for word in command], variables or {}
    said_so = " ".join([*(f"{key}={value}" for key, value in variables.items()), shlex.join(command)])
    part = {"name": name, "command": said_so, "status": "missing", "seconds": 0.0, "said": []}
    if shutil.which(words[0]) is None:
        return {**part, "said": [f"{words[0]} is not installed"]}
    begun = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            words,
            cwd=folder,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = "passed" if process.wait(seconds) == wanted else "failed"
        except subprocess.TimeoutExpired:
            status = "timed out"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said.seek(0)
        lines = said.read().decode(errors="replace").splitlines()[-KEPT_LINES:]
    return {**part, "status": status, "seconds": time.monotonic() - begun, "said": lines}


def side_by_side(name: str, parts: Sequence[Callable[[], dict[str, Any]]], parallel: int) -> dict[str, Any]:
    """Several parts as one, ``parallel`` of them at a time: it passes if all do, and says of each how it ended."""
    begun = time.monotonic()
    with ThreadPoolExecutor(max(1, parallel)) as pool:
        made = list(pool.map(lambda run: run(), parts))
    worst = [status for status in ("failed", "timed out", "missing") if any(one["status"] == status for one in made)]
    said = []
    for one in made:
        last = next((line for line in reversed(one["said"]) if line.strip()), "")
        said.append(f"{one['name']}: {one['status']} after {one['seconds']:.0f} s: {last.strip('= ')}")
    return {
        "name": name,
        "command": "; ".join(one["command"] for one in made),
        "status": worst[0] if worst else "passed",
        "seconds": time.monotonic() - begun,
        "said": said,
    }


def pytest_command() -> list[str]:
    """Runs the tests that need a GPU; where there are none, that is a failure."""
    return ["python", "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider"]


def sanitized_command(test: str) -> list[str]:
    """Runs a file's tests that need a GPU, in one process."""
    return ["-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", "-p", "no:xdist", test]


def sanitizer_command(tool: str, program: Sequence[str]) -> list[str]:
    """Runs a Python program, the words after "python", and what it starts, under one of compute-sanitizer's tools.

    It fails where the program does, and where the tool finds something. Calls of CUDA that fail are no finding: CuPy
    asks for functions that a driver may lack, and what matters raises an error in Python.
    """
    options = ["--tool", tool, *SANITIZERS[tool], "--error-exitcode", str(FOUND_EXIT_CODE), "--target-processes", "all"]
    options += ["--report-api-errors", "no", "--launch-timeout", "0"]  # Python may take long until its first call
    elsewhere = None if shutil.which(SANITIZER) else shutil.which(SANITIZER, path=TOOLKIT)
    return [elsewhere or SANITIZER, *options, "python", *program]
