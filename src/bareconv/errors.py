"""The errors a user can cause or meet. Each message says what was wrong, what was expected and what came.

The command line prints them as one line, without a traceback, and ends with ``exit_code``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class BareconvError(Exception):
    """Something that a user is told in one line. ``exit_code`` is the process's: 1, the work failed."""

    exit_code = 1


class UsageError(BareconvError):
    """A setting, an argument or a missing requirement; exit code 2."""

    exit_code = 2


class DataError(UsageError):
    """An input file that is not what it should be. The message names the file and the row or byte."""


class ShapeError(UsageError):
    """Shapes that do not fit. The message names the layer and both shapes."""


class UnwrittenError(BareconvError):
    """Files that could not be written.

    Attributes: ``reasons``, of each file by its path.
    """

    def __init__(self, reasons: Mapping[Path, str]) -> None:
        self.reasons = dict(reasons)
        files: dict[str, list[str]] = {}
        for path, reason in self.reasons.items():
            files.setdefault(reason, []).append(str(path))
        super().__init__("; ".join(f"{', '.join(all_)}: could not be written: {why}" for why, all_ in files.items()))


class NotFiniteError(BareconvError):
    """The loss turned NaN or infinite.

    Attributes: ``step`` (counted from 0) whose loss was not finite, ``layer``, the first whose output was not.
    """

    def __init__(self, message: str, *, step: int, layer: str) -> None:
        super().__init__(message)
        self.step = step
        self.layer = layer
