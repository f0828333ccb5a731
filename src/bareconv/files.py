"""Writing a file as a whole: whoever reads it finds the old one or the new one, never a half."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bareconv.errors import DataError, UnwrittenError


def write_whole(path: Path, content: bytes, *, durable: bool = True) -> Path:
    """Write ``content`` to a temporary file beside ``path``, then rename it; folders on the way are made.

    Neither a full disk nor an interruption leaves half a file, or takes away the one that was there. ``durable``: wait
    until it is on the disk, or a crash of the machine may leave the new name with no content. Raises UnwrittenError.
    """
    aside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            aside = Path(file.name)
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        aside.chmod(0o666 & ~_umask())  # a temporary file is its owner's alone
        aside.replace(path)
    except OSError as error:
        raise UnwrittenError({path: error.strerror or str(error)}) from None
    finally:
        if aside is not None:  # after the renaming there is none, after an error or an interruption there is
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
    return path


class Attempts:
    """Writes of which each is tried, whatever became of those before it. ``reasons``: of the files not written."""

    def __init__(self) -> None:
        self.reasons: dict[Path, str] = {}

    def conclude(self) -> None:
        """UnwrittenError where something could not be written."""
        if self.reasons:
            raise UnwrittenError(self.reasons)

    def failed(self, error: UnwrittenError | None) -> None:
        """Keep an error of an attempt elsewhere, where there was one."""
        if error is not None:
            self.reasons |= error.reasons

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Within it, an UnwrittenError ends the block alone, and is kept."""
        try:
            yield
        except UnwrittenError as error:
            self.failed(error)


def check_writable(path: Path, what: str) -> None:
    """DataError where ``path`` could not be written: better said before hours of work than after. ``what`` it is."""
    if path.is_dir():
        raise DataError(f"{what} {path}: that is a folder; expected a file name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise DataError(f"{what} {path}: cannot write there: {error.strerror}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
