"""Where a verb's results go, and where they must not."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from bareconv.bench import results
from bareconv.cli.screen import Screen
from bareconv.errors import BareconvError, DataError, UnwrittenError, UsageError
from bareconv.files import Attempts

RESULT, PAGE = "result.json", "report.html"


def find_result(path: Path) -> Path:
    """The file of a result: ``path``, or the one in that folder. DataError where it has none."""
    if not path.is_dir():
        return path
    if not (path / RESULT).exists():
        raise DataError(f"{path}: a folder without a {RESULT}; expected the file of a result")
    return path / RESULT


@contextlib.contextmanager
def result_folder(output: Path | None) -> Iterator[Path]:
    """``output``, or a new results/TIME; a folder that is made here goes again where there comes no result.

    Raises UsageError where nothing can be written there, UnwrittenError where that turns out later: a full disk.
    """
    wanted = output or Path("results")
    missing = [path for path in (wanted, *wanted.parents) if not path.exists()]
    try:
        folder = results.results_folder() if output is None else output
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except BareconvError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"--output {wanted}: cannot write there: {error.strerror}") from None
    made = output is None or output in missing
    try:
        with writing(folder):
            yield folder
    except BaseException:  # Ctrl-C among them
        if not (folder / RESULT).exists() and made:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        for path in [folder, *missing] if made else missing:
            with contextlib.suppress(OSError):  # not there any more, or not empty
                path.rmdir()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it, what the system refuses is an error that names ``path``: a full disk itself names none."""
    try:
        yield
    except OSError as error:
        raise UnwrittenError({path: error.strerror or str(error)}) from error


def tell_where(screen: Screen, folder: Path, attempts: Attempts, *, last: bool) -> None:
    """Say where the page is, where it could be written; ``last``: results/latest is to mean this result from now on."""
    also = ""
    if last:
        try:
            also = f" (also {results.point_latest(folder) / PAGE})"
        except BareconvError as error:  # no reason to fail: the result is there
            screen.warn(str(error))
    if folder / PAGE not in attempts.reasons:
        screen.say(f"\nWrote {folder / PAGE}{also}")


def check_apart(output: Path, inputs: Iterable[Path | None]) -> None:
    """UsageError where ``output`` is one of ``inputs``, which would be lost."""
    for path in inputs:
        if path is not None and output.exists() and path.exists() and output.samefile(path):
            raise UsageError(f"{output}: is to be read; expected another name to write to")
