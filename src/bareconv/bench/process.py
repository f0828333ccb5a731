"""A candidate's process: started with the environment that all candidates get, spoken to line by line, ended."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import bareconv
from bareconv.errors import BareconvError

REMOVED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # they would steer one side's matrix products and not the other's
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_POLL_SECONDS = 0.2
_QUIT_SECONDS = 2.0

# Another interpreter gets this package's path alone: the folder around it may be a site-packages, with packages that
# were built for this interpreter.
_ELSEWHERE = (
    "import sys, types, runpy; package = types.ModuleType('bareconv'); package.__path__ = [sys.argv.pop(1)]; "
    "sys.modules['bareconv'] = package; runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


class WorkerError(BareconvError):
    """A candidate's process did not answer as it should. ``unsupported``: it said that it cannot do what was asked."""

    def __init__(self, message: str, *, unsupported: bool = False) -> None:
        super().__init__(message)
        self.unsupported = unsupported


class TimeUpError(WorkerError):
    """What was asked for was not done when the time was up, which is no fault of who was asked."""


class StoppedError(Exception):
    """The one who asked was told to stop before the answer came."""


def our_command(module: str) -> list[str]:
    """Runs a module of this package under this interpreter."""
    return [sys.executable, "-m", module]


def foreign_command(python: str, module: str) -> list[str]:
    """Runs a module of ``bareconv.bench.workers`` under an interpreter in which bareconv need not be installed."""
    return [python, "-c", _ELSEWHERE, str(Path(bareconv.__file__).parent), module]


def environment(threads: int, variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What every candidate's process gets: ``variables`` less what distorts, with that many threads."""
    kept = {name: value for name, value in variables.items() if name not in REMOVED}
    if kept.get("PYTHONPATH"):  # the process has another current folder
        kept["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, kept["PYTHONPATH"].split(os.pathsep)))
    return {**kept, **{name: str(threads) for name in THREADS}}


def with_this_package(variables: Mapping[str, str]) -> dict[str, str]:
    """``variables`` by which this interpreter finds this very package."""
    parts = [str(Path(bareconv.__file__).parents[1]), variables.get("PYTHONPATH", "")]
    return {**variables, "PYTHONPATH": os.pathsep.join(filter(None, parts))}


class Worker:
    """A process that serves ``workers.serving``'s commands. Use it in a ``with``, or ``close`` it.

    It is in a session of its own: Ctrl-C on the terminal is for the one who asks, who ends it after the block at hand.
    Unless it is asked, it is stopped (SIGSTOP): OpenBLAS's and OpenMP's threads go on spinning for up to a tenth of a
    second after their work, on the cores of the candidate that runs next, which may take many times as long then.
    """

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], folder: Path) -> None:
        self._said = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed in close)
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                cwd=folder,
                env=dict(variables),
                start_new_session=True,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            self._said.close()
            raise WorkerError(f"{command[0]}: cannot be started: {error.strerror or error}") from None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def ask(
        self, do: str, patience: float, should_stop: Callable[[], bool] = lambda: False, **message: Any
    ) -> dict[str, Any]:
        """The answer to a command. WorkerError where the process says so, ends, or says nothing for ``patience`` s.

        StoppedError where ``should_stop()`` comes first. After either of them, but for an error that the process told,
        it has been ended.
        """
        assert self.process.stdin is not None
        begun = time.monotonic()
        self._signal("SIGCONT")
        with contextlib.suppress(OSError):  # it has ended: then the end of its answers says so
            self.process.stdin.write(json.dumps({"do": do, **message}) + "\n")
            self.process.stdin.flush()
        while True:
            try:
                line = self._lines.get(timeout=_POLL_SECONDS)
                break
            except queue.Empty:
                if should_stop():
                    self.kill()
                    raise StoppedError from None
                if time.monotonic() - begun > patience:
                    self.kill()
                    raise WorkerError(f"gave no answer within {patience:.3g} s and was ended") from None
        if line is None:
            raise WorkerError(self._why_it_ended())
        self._signal("SIGSTOP")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            self.kill()
            raise WorkerError(f"gave an answer that is none: {line.strip()[:80]!r}")
        if "error" in answer:
            raise WorkerError(str(answer["error"]), unsupported=bool(answer.get("unsupported")))
        return answer

    def kill(self) -> None:
        """End the process at once, with what it has started."""
        self._signal("SIGKILL")
        self.process.kill()  # where there are no groups
        self.process.wait()

    def close(self) -> None:
        """Let the process end, and end it where it does not."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._signal("SIGCONT")
        with contextlib.suppress(OSError):
            self.process.stdin.write('{"do": "quit"}\n')
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_QUIT_SECONDS)
        self.kill()
        self._reader.join(_QUIT_SECONDS)
        self.process.stdout.close()
        self._said.close()

    def _signal(self, name: str) -> None:
        """Send a signal to the process and what it has started, where the system has groups of processes."""
        if hasattr(os, "killpg") and self.process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, getattr(signal, name))

    def _read(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError):  # closed
            for line in self.process.stdout:
                self._lines.put(line)
        self._lines.put(None)

    def _why_it_ended(self) -> str:
        try:
            code = self.process.wait(_QUIT_SECONDS)
        except subprocess.TimeoutExpired:  # it has only closed its output
            self.kill()
            return "closed its output and was ended"
        how = f"exit code {code}"
        if code < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-code).name + (" (out of memory?)" if -code == signal.SIGKILL else "")
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip().splitlines()
        return f"its process ended ({how})" + (f": {' '.join(said[-1].split())[:300]}" if said else "")
