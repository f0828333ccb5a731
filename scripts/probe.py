"""What setup.sh asks at every start, in one quick run of Python: its version, the driver's CUDA version, its file.

Prints, for instance, ``3.11.7 13.0 /usr/bin/python3.11``; "none" stands for no NVIDIA driver, and the file is that of
the Python from which a virtual environment was made. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import sys

LIBRARIES = ("libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1")  # the driver's own; the second inside Windows' WSL


def driver_version() -> tuple[int, int] | None:
    """The newest CUDA that the installed driver can run, as (major, minor); None without a driver."""
    for name in LIBRARIES:
        try:
            cuda = ctypes.CDLL(name)
            answer = ctypes.c_int(0)
            failed = cuda.cuDriverGetVersion(ctypes.byref(answer))  # needs no cuInit: answers in microseconds
        except (OSError, AttributeError):
            continue
        if not failed and answer.value > 0:  # 13020 is CUDA 13.2
            return answer.value // 1000, answer.value % 1000 // 10
    return ask_nvidia_smi()


def ask_nvidia_smi() -> tuple[int, int] | None:
    """The same from ``nvidia-smi``, for a driver whose library lies where the loader does not look."""
    folders = os.environ.get("PATH", "").split(os.pathsep)
    if not any(os.access(os.path.join(folder, "nvidia-smi"), os.X_OK) for folder in folders if folder):
        return None
    import re  # here, not above: every start of run.sh runs this file, and few come this far
    import subprocess

    try:
        run = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"CUDA[A-Z ]* Version\s*:\s*(\d+)\.(\d+)", run.stdout)
    return (int(found[1]), int(found[2])) if run.returncode == 0 and found else None


if __name__ == "__main__":
    version = driver_version()
    cuda = "none" if version is None else f"{version[0]}.{version[1]}"
    base = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    print(".".join(map(str, sys.version_info[:3])), cuda, base)
