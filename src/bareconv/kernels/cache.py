"""Compiled code kept on disk, under names that are digests of all that decides it.

A cache that cannot be written is done without; a file that is damaged is as good as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

OnCompile: TypeAlias = Callable[[int, int], None]  # (kernels compiled, kernels to compile), of those not kept


def cache_folder() -> Path:
    """Where compiled code is kept: BARECONV_CACHE_DIR, else the user's cache folder."""
    told = os.environ.get("BARECONV_CACHE_DIR")
    if told:
        return Path(told)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "bareconv"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bareconv"


def read(name: str) -> bytes | None:
    """What is kept in the file of that name; None where there is none, or it is damaged."""
    try:
        data = (cache_folder() / name).read_bytes()
    except OSError:
        return None
    check, code = data[:32], data[32:]
    return code if hashlib.sha256(code).digest() == check else None


def write(name: str, code: bytes) -> None:
    """Keep it; a full disk or a folder that is not ours is no reason to stop."""
    folder = cache_folder()
    aside = folder / f"{name}.{os.getpid()}.new"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside.write_bytes(hashlib.sha256(code).digest() + code)
        aside.replace(folder / name)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()
