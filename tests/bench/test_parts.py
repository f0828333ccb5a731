"""Programs beside a measurement: what they said, how they ended, and that they end."""

from __future__ import annotations

import functools
import re
import tempfile
import time
from pathlib import Path

from bareconv.bench import results
from bareconv.bench.parts import KEPT_LINES, SANITIZED, pytest_command, run_part, sanitizer_command, side_by_side


def part(code, seconds=20.0):
    return run_part("it", ["python", "-c", code], seconds, Path.cwd())


def test_how_it_ended():
    passed = part("print('fine')")
    assert (passed["status"], passed["said"], passed["name"]) == ("passed", ["fine"], "it")
    assert passed["command"] == "python -c 'print('\"'\"'fine'\"'\"')'"
    failed = part("import sys; print('so', file=sys.stderr); sys.exit(3)")
    assert (failed["status"], failed["said"]) == ("failed", ["so"])
    missing = run_part("it", ["no-such-program"], 1.0, Path.cwd())
    assert (missing["status"], missing["said"]) == ("missing", ["no-such-program is not installed"])
    results.validate(results.new("gpu", {}, parts=[passed, failed, missing]))


def test_it_runs_in_its_folder(tmp_path):
    part = run_part("it", ["python", "-c", "import os; print(os.getcwd())"], 20.0, tmp_path)
    assert part["said"] == [str(tmp_path.resolve())]


def test_only_the_last_lines_are_kept():
    said = part("print(*range(1000), sep='\\n')")["said"]
    assert said == [str(number) for number in range(1000 - KEPT_LINES, 1000)]


def test_one_that_hangs_is_ended_with_what_it_started(tmp_path):
    """Its child would write a file after a while."""
    file = tmp_path / "late"
    child = f"import time; time.sleep(2); open({str(file)!r}, 'w')"
    code = f"""
import subprocess, sys, time
print("begun", flush=True)
subprocess.Popen([sys.executable, "-c", {child!r}])
time.sleep(60)
"""
    begun = time.monotonic()
    ended = part(code, seconds=1.0)
    assert time.monotonic() - begun < 10
    assert (ended["status"], ended["said"]) == ("timed out", ["begun"])
    time.sleep(2.0)
    assert not file.exists()


def test_variables_reach_it_and_are_told():
    code = "import os; print(os.environ['BARECONV_TEST_MEMORY'])"
    told = run_part("it", ["python", "-c", code], 20.0, Path.cwd(), SANITIZED["memcheck"])
    assert told["said"] == ["exact"]
    assert told["command"].startswith("BARECONV_TEST_MEMORY=exact python -c ")


def test_several_side_by_side():
    """Each waits for the other's file; the worst of their ends is the end of all."""
    meet = (
        "import pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.01)\n"
        "print('met')"
    )

    def part(name, code, *words, wanted=0):
        return functools.partial(run_part, name, ["python", "-c", code, *words], 20.0, Path.cwd(), wanted=wanted)

    with tempfile.TemporaryDirectory() as folder:
        here, there = f"{folder}/a", f"{folder}/b"
        both = side_by_side("all", [part("one", meet, here, there), part("two", meet, there, here)], 2)
    assert both["status"] == "passed"
    assert [re.sub(r"\d+ s", "N s", line) for line in both["said"]] == [
        "one: passed after N s: met",
        "two: passed after N s: met",
    ]
    exits = "import sys; sys.exit(int(sys.argv[1]))"
    found = side_by_side("all", [part("fault", exits, "86", wanted=86), part("fine", exits, "0")], 1)
    assert found["status"] == "passed"
    missed = side_by_side("all", [part("fault", exits, "0", wanted=86), part("fine", exits, "0")], 1)
    assert missed["status"] == "failed"
    assert missed["said"][0].startswith("fault: failed after")


def test_a_sanitizer_in_the_toolkit_s_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("bareconv.bench.parts.TOOLKIT", str(tmp_path))
    assert sanitizer_command("memcheck", [])[0] == "compute-sanitizer"
    program = tmp_path / "compute-sanitizer"
    program.touch(mode=0o755)
    assert sanitizer_command("memcheck", [])[0] == str(program)


def test_commands(monkeypatch, tmp_path):
    monkeypatch.setattr("bareconv.bench.parts.TOOLKIT", str(tmp_path))
    assert sanitizer_command("racecheck", ["-m", "kernels"]) == [
        *("compute-sanitizer", "--tool", "racecheck", "--racecheck-indirect-barrier-dependency"),
        *("--error-exitcode", "86", "--target-processes", "all"),
        *("--report-api-errors", "no", "--launch-timeout", "0", "python", "-m", "kernels"),
    ]
    assert pytest_command()[:6] == ["python", "-m", "pytest", "-q", "-m", "cuda"]
