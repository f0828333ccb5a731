"""run.sh, test.sh and scripts/setup.sh against Pythons that only pretend: no network, no GPU, next to no time.

A stand-in for Python notes how it is called and lets the real one answer with altered facts: its version, whether it
has a venv module, what the driver says, whether pip succeeds.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

PYTEST = "pytest --numprocesses auto --dist worksteal"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the scripts are for bash")

PROJECT = Path(__file__).parents[2]
TOOLS = ["bash", "cat", "cksum", "cp", "dirname", "grep", "mkdir", "mv", "rm", "sed", "sleep", "tail"]
REAL_PYTHON = getattr(sys, "_base_executable", sys.executable)
NO_NETWORK = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0"}

STAND_IN = """\
#!/usr/bin/env bash
case "$*" in
    *import*) printf 'asked\\n' >>"$CALLS" ;;
    *) printf '%s\\n' "$*" >>"$CALLS" ;;
esac
case "$*" in
    *probe.py*) echo "VERSION ${DRIVER:-none} /base/VERSION" ;;
    *find_spec*)
        exec REAL -I -c "import sys
sys._base_executable, sys.version_info = '$0', tuple(map(int, 'VERSION'.split('.')))
sys.modules.update(dict.fromkeys('MISSING'.split()))
$3" ;;
    *'-m venv '*)
        sleep "${SLOWNESS:-0}"
        mkdir -p "$4/bin"
        cp "$0" "$4/bin/python" ;;
    *'-m pip '*"${FAILING_INSTALL:-%none%}"*)
        echo 'ERROR: the disk is full'
        if [ -n "${REASON:-}" ]; then echo "2026-11-23 $REASON" >"${0%/bin/*}/bareconv-setup.log.full"; fi
        exit 1 ;;
    *'-m pip '*)
        printf '#!/usr/bin/env bash\\necho "in $PWD: $* [${PYTHONPATH:-}]"\\nexit 7\\n' >"${0%/*}/bareconv"
        chmod +x "${0%/*}/bareconv" ;;
    *"-m ${FAILING_CHECK:-%none%}"*) exit 3 ;;
    *fcntl*) exec REAL "$@" ;;
esac
"""


class Machine:
    """A checkout in a folder with a space in its name, and a PATH that holds only what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a checkout"
        self.bin = folder / "bin"
        self.home = folder / "home"
        self.calls_file = folder / "calls"
        for new in (self.root, self.bin, self.home):
            new.mkdir()
        for name in ("run.sh", "test.sh", "pyproject.toml", "constraints.txt"):
            shutil.copy(PROJECT / name, self.root)
        for name in ("scripts", ".ci"):
            shutil.copytree(PROJECT / name, self.root / name)
        for tool in [*TOOLS, "chmod"]:
            found = shutil.which(tool)
            assert found is not None
            (self.bin / tool).symlink_to(found)

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    def add_python(self, version: str, name: str = "python3", missing: str = "") -> Path:
        text = STAND_IN.replace("VERSION", version).replace("REAL", REAL_PYTHON).replace("MISSING", missing)
        return self.add_program(name, text)

    def add_program(self, name: str, text: str) -> Path:
        program = self.bin / name
        program.write_text(text)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return program

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        given = {"PATH": str(self.bin), "HOME": str(self.home), "CALLS": str(self.calls_file), **environment}
        script, *arguments = command
        return subprocess.Popen(
            [str(self.root / script), *arguments],
            env=given,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str, **environment: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error; ``calls`` is of this run only."""
        self.calls_file.write_text("")
        with self.start(*command, **environment) as process:
            out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    @property
    def calls(self) -> list[str]:
        """What a Python was asked to do, without the probing and locking."""
        return [line for line in self.calls_file.read_text().splitlines() if " -m " in line or line.startswith("-m")]

    @property
    def installs(self) -> list[str]:
        """What pip was asked to install, one call after the other."""
        return [line.split("constraints.txt ", 1)[1].split()[-1] for line in self.calls if "pip install" in line]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_first_start_sets_up_and_runs(machine):
    machine.add_python("3.12.4")
    code, out, err = machine.run("run.sh", "--data", "my digits.csv", PYTHONPATH="/elsewhere", PYTHONHOME="/elsewhere")
    assert (code, out) == (7, f"in {machine.home}: compare --data my digits.csv []\n")
    assert err.startswith("Setting up .venv with Python 3.12.4 (once, about a minute) ...\nReady after ")
    assert machine.calls[0] == f"-I -m venv {machine.venv}"
    assert machine.installs == ["setuptools", "."]


def test_second_start_sets_nothing_up(machine):
    machine.add_python("3.12.4")
    machine.run("run.sh")
    code, out, err = machine.run("run.sh", "--quick")
    assert (code, out, err) == (7, f"in {machine.home}: compare --quick []\n", "")
    assert machine.calls_file.read_text() == f"-I -S {machine.root}/scripts/probe.py\n"


def test_started_with_sh(machine):
    machine.add_python("3.12.4")
    (machine.bin / "sh").symlink_to(shutil.which("sh") or "/bin/sh")
    command = [str(machine.bin / "sh"), str(machine.root / "run.sh")]
    given = {"PATH": str(machine.bin), "CALLS": str(machine.calls_file)}
    assert subprocess.run(command, env=given, capture_output=True, check=False).returncode == 7


# ------------------------------------------------------------------------------------------------ choosing a Python


def test_newest_suitable_python_is_taken(machine):
    machine.add_python("3.11.2")
    machine.add_python("3.13.1", "python3.13", missing="ensurepip")
    machine.add_python("3.12.9", "python3.12")
    machine.add_program(
        "python3.14", "#!/usr/bin/env bash\necho 'pyenv: python3.14: command not found' >&2\nexit 127\n"
    )
    assert "with Python 3.12.9 " in machine.run("run.sh")[2]


def test_python_newer_than_the_pins_is_a_last_resort(machine):
    machine.add_python("3.15.0")
    assert "with Python 3.15.0 " in machine.run("run.sh")[2]
    shutil.rmtree(machine.venv)
    machine.add_python("3.11.0", "python3.11")
    assert "with Python 3.11.0 " in machine.run("run.sh")[2]


def test_python_named_by_the_user(machine):
    machine.add_python("3.13.1")
    other = machine.add_python("3.11.9", "my python")
    assert "with Python 3.13.1 (once" in machine.run("run.sh")[2]
    assert "with Python 3.11.9 (anew: it was made with another Python)" in machine.run("run.sh", PYTHON=str(other))[2]
    assert machine.run("run.sh")[2] == ""  # and stays


@pytest.mark.parametrize(
    ("version", "missing", "sentence"),
    [
        (None, "", "run.sh: found no Python that runs: install Python 3.11 or newer"),
        ("3.9.2", "", "run.sh: Python 3.9.2 ({python}) is too old: install Python 3.11 or newer"),
        ("3.11.2", "ensurepip", "run.sh: Python 3.11.2 ({python}) lacks the venv module: install it "),
        ("3.11.2", "venv", "apt install python3.11-venv"),
    ],
)
def test_no_suitable_python(machine, version, missing, sentence):
    python = machine.add_python(version, missing=missing) if version else None
    code, out, err = machine.run("run.sh")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert sentence.format(python=python) in err
    assert not machine.venv.exists()


def test_unsuitable_python_named_by_the_user(machine):
    machine.add_python("3.13.1")
    machine.run("run.sh")
    old = machine.add_python("3.8.1", "old")
    code, _, err = machine.run("run.sh", PYTHON=str(old))
    assert (code, err.split(":")[1]) == (2, f" PYTHON={old} is Python 3.8.1, too old")
    code, _, err = machine.run("run.sh", PYTHON="nosuch")
    assert (code, err.split(":")[1]) == (2, " PYTHON=nosuch is no Python that runs")
    assert machine.run("run.sh") == (7, f"in {machine.home}: compare []\n", "")  # what there was is as it was


# -------------------------------------------------------------------------------------------- when to set up again


def test_changed_pins_are_installed(machine):
    machine.add_python("3.12.4")
    machine.run("run.sh")
    with (machine.root / "constraints.txt").open("a") as pins:
        pins.write("# another\n")
    assert "Bringing .venv up to date" in machine.run("run.sh")[2]
    assert machine.installs == ["setuptools", "."]
    assert machine.run("run.sh")[2] == ""


def test_interrupted_setup_is_done_anew(machine):
    machine.add_python("3.12.4")
    with machine.start("run.sh", SLOWNESS="30") as process:
        while not (machine.venv / "bareconv-setup-unfinished").exists():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
    assert "anew: the last set-up was interrupted" in machine.run("run.sh")[2]
    assert machine.run("run.sh")[2] == ""


def test_moved_checkout_is_set_up_anew(machine):
    machine.add_python("3.12.4")
    machine.run("run.sh")
    old, machine.root = machine.root, machine.root.with_name("moved")
    old.rename(machine.root)
    assert f"anew: it was made for {old})" in machine.run("run.sh")[2]
    assert machine.run("run.sh")[2] == ""


def test_vanished_or_upgraded_python(machine):
    machine.add_python("3.12.4")
    machine.run("run.sh")
    (machine.venv / "bin/python").unlink()
    assert "anew: the Python in it does not run" in machine.run("run.sh")[2]
    shutil.copy(machine.add_python("3.13.0"), machine.venv / "bin/python")
    assert "anew: its Python was 3.12.4 and now is 3.13.0" in machine.run("run.sh")[2]
    shutil.copy(machine.add_python("3.13.1"), machine.venv / "bin/python")
    assert machine.run("run.sh")[2] == ""  # a patch release


def test_venv_of_the_users_own_is_kept(machine):
    python = machine.add_python("3.12.4")
    (machine.venv / "bin").mkdir(parents=True)
    shutil.copy(python, machine.venv / "bin/python")
    (machine.venv / "mine").touch()
    assert machine.run("run.sh")[0] == 7
    assert machine.installs == ["setuptools", "."]
    assert (machine.venv / "mine").exists()


def test_two_starts_at_once_set_up_once(machine):
    machine.add_python("3.12.4")
    with machine.start("run.sh", SLOWNESS="0.5") as one, machine.start("run.sh", SLOWNESS="0.5") as other:
        messages = [process.communicate(timeout=60)[1] for process in (one, other)]
    assert (one.returncode, other.returncode) == (7, 7)
    assert sum("-m venv" in line for line in machine.calls) == 1
    assert sum("Waiting for another set-up" in message for message in messages) == 1


# ------------------------------------------------------------------------------------------------------------- CuPy


@pytest.mark.parametrize(
    ("driver", "extra"),
    [
        ("none", None),
        ("11.8", None),
        ("12.0", ".[cuda12]"),
        ("12.9", ".[cuda12]"),
        ("13.0", ".[cuda13]"),
        ("14.1", ".[cuda13]"),
    ],
)
def test_driver_decides_on_cupy(machine, driver, extra):
    machine.add_python("3.12.4")
    err = machine.run("run.sh", DRIVER=driver)[2]
    assert machine.installs == ["setuptools", ".", *([extra] if extra else [])]
    assert ("too old for CuPy" in err) == (driver == "11.8")
    assert machine.run("run.sh", DRIVER=driver)[2] == ""


def test_driver_that_comes_goes_and_changes(machine):
    machine.add_python("3.12.4")
    machine.run("run.sh")
    machine.run("run.sh", DRIVER="12.4")
    assert machine.installs == [".[cuda12]"]
    assert machine.run("run.sh")[2] == ""
    assert "anew: for CUDA 13 instead of 12" in machine.run("run.sh", DRIVER="13.0")[2]
    assert machine.installs == ["setuptools", ".", ".[cuda13]"]


def test_user_decides_on_cupy(machine):
    machine.add_python("3.12.4")
    assert "CuPy" not in machine.run("run.sh", DRIVER="13.0", BARECONV_CUDA="none")[2]
    assert machine.installs == ["setuptools", "."]
    machine.run("run.sh", BARECONV_CUDA="12")
    assert machine.installs == [".[cuda12]"]
    code, _, err = machine.run("run.sh", BARECONV_CUDA="11")
    assert (code, err) == (2, "run.sh: BARECONV_CUDA=11: it can be none, 12 or 13\n")


def test_cupy_that_cannot_be_installed_does_not_stop_the_run(machine):
    machine.add_python("3.12.4")
    sentence = "On the CPU only: CuPy could not be installed. To try that again: BARECONV_CUDA=13 "
    code, _, err = machine.run("run.sh", DRIVER="13.0", FAILING_INSTALL="cuda13")
    assert code == 7
    assert "    ERROR: the disk is full\n" in err
    assert sentence in err
    assert sentence in machine.run("run.sh", DRIVER="13.0")[2]
    assert machine.installs == []  # not at every start again
    assert "CPU only" not in machine.run("run.sh", DRIVER="13.0", BARECONV_CUDA="13")[2]
    assert machine.run("run.sh", DRIVER="13.0")[2] == ""


def test_cupy_without_network(machine):
    machine.add_python("3.12.4")
    reason = "[Errno -3] Temporary failure in name resolution"
    code, _, err = machine.run("run.sh", DRIVER="13.0", FAILING_INSTALL="cuda13", REASON=reason)
    assert code == 7
    assert "pip could not reach its package index (name resolution).\nReady after " in err


# ------------------------------------------------------------------------------------------------- pip that fails


def test_pip_that_fails_leaves_nothing(machine):
    machine.add_python("3.12.4")
    code, _, err = machine.run("run.sh", FAILING_INSTALL="--editable")
    assert code == 2
    assert err.endswith(
        "    ERROR: the disk is full\nrun.sh: pip could not install the packages: see its words above.\n"
    )
    assert not machine.venv.exists()


def test_pip_that_fails_on_an_addition_leaves_what_there_was(machine):
    machine.add_python("3.12.4")
    machine.run("run.sh")
    assert machine.run("test.sh", FAILING_INSTALL="--editable")[0] == 2
    assert machine.run("run.sh")[2] == ""


def test_no_network_with_the_real_pip(machine):
    machine.add_program("python3", f'#!/usr/bin/env bash\nexec "{REAL_PYTHON}" "$@"\n')
    code, out, err = machine.run("run.sh", **NO_NETWORK)
    assert (code, out, err.count("\n")) == (2, "", 2)
    assert "run.sh: pip could not reach its package index (Connection refused): connect to the network" in err
    assert not machine.venv.exists()


# ------------------------------------------------------------------------------------------------ test.sh, .ci/run


def test_test_sh_runs_all_and_reports_the_first_failure(machine):
    machine.add_python("3.12.4")
    code, out, _ = machine.run("test.sh", FAILING_CHECK="mypy")
    assert code == 3
    assert out.splitlines() == ["== ruff check", "== ruff format --check", "== mypy", f"== {PYTEST}"]
    assert machine.installs == ["setuptools", ".[test]"]
    assert machine.calls[-4:] == ["-m ruff check", "-m ruff format --check", "-m mypy", f"-m {PYTEST}"]
    assert machine.run("run.sh")[2] == ""  # one .venv for both


def test_test_sh_with_arguments_is_pytest(machine):
    machine.add_python("3.12.4")
    assert machine.run("test.sh", "tests/ops", "-k", "conv")[0] == 0
    assert machine.calls[-1] == "-m pytest tests/ops -k conv"
    assert not any("ruff" in call for call in machine.calls)


def test_ci_adds_pytorch(machine):
    machine.add_python("3.12.4")
    assert machine.run(".ci/run", CI="true")[0] == 0
    assert machine.installs == ["setuptools", ".[test,peers]"]
    machine.run("test.sh")
    assert machine.installs == []


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    scripts = ["run.sh", "test.sh", ".ci/run", "scripts/setup.sh", "scripts/pin.sh"]
    check = subprocess.run(["shellcheck", "-x", *scripts], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (check.returncode, check.stdout) == (0, "")
