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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

KEPT_LINES = 40  # of what a part says, the last
SANITIZER = "compute-sanitizer"
SANITIZERS = ("memcheck", "racecheck")
FOUND_EXIT_CODE = 86  # of a sanitizer that found something, whatever the program's own is
TOOLKIT = "/usr/local/cuda/bin"  # where it lies where no PATH leads to it
# What tests give kernels is then allocated byte by byte as it is, without margins, so that a read beyond it is seen.
EXACT_MEMORY: Mapping[str, str] = {"BARECONV_TEST_MEMORY": "exact"}


def run_part(
    name: str, command: Sequence[str], seconds: float, folder: Path, variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run ``command`` in a folder for at most ``seconds``: a ``part`` of the result. "python" is this interpreter.

    ``variables``: added to its environment. Its standard output and error are kept together, the last lines of them.
    It ends with all that it started.
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
            status = "passed" if process.wait(seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "timed out"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said.seek(0)
        lines = said.read().decode(errors="replace").splitlines()[-KEPT_LINES:]
    return {**part, "status": status, "seconds": time.monotonic() - begun, "said": lines}


def pytest_command() -> list[str]:
    """Runs the tests that need a GPU; where there are none, that is a failure."""
    return ["python", "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider"]


def sanitizer_command(tool: str, program: Sequence[str]) -> list[str]:
    """Runs a Python program, the words after "python", and what it starts, under one of compute-sanitizer's tools.

    It fails where the program does, and where the tool finds something. Calls of CUDA that fail are no finding: CuPy
    asks for functions that a driver may lack, and what matters raises an error in Python.
    """
    options = ["--tool", tool, "--error-exitcode", str(FOUND_EXIT_CODE), "--target-processes", "all"]
    options += ["--report-api-errors", "no", "--launch-timeout", "0"]  # Python may take long until its first call
    elsewhere = None if shutil.which(SANITIZER) else shutil.which(SANITIZER, path=TOOLKIT)
    return [elsewhere or SANITIZER, *options, "python", *program]
