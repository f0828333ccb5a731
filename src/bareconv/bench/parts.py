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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KEPT_LINES = 40  # of what a part says, the last
SANITIZER = "compute-sanitizer"
SANITIZERS = ("memcheck", "racecheck")
FOUND_EXIT_CODE = 86  # of a sanitizer that found something, whatever the program's own is


def run_part(name: str, command: Sequence[str], seconds: float, folder: Path) -> dict[str, Any]:
    """Run ``command`` in a folder for at most ``seconds``: a ``part`` of the result. "python" is this interpreter.

    Its standard output and error are kept together, the last lines of them. It ends with all that it started.
    """
    words = [sys.executable if word == "python" else word for word in command]
    part = {"name": name, "command": shlex.join(command), "status": "missing", "seconds": 0.0, "said": []}
    if shutil.which(words[0]) is None:
        return {**part, "said": [f"{words[0]} is not installed"]}
    begun = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            words, cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
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
    """Runs a Python program, the words after "python", under one of compute-sanitizer's tools."""
    options = ["--tool", tool, "--error-exitcode", str(FOUND_EXIT_CODE), "--target-processes", "all"]
    return [SANITIZER, *options, "python", *program]
