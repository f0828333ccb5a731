"""benchmarks/gpu.py: its cases, its table, and a whole run with the CPU for a GPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bareconv.bench import results
from bareconv.bench.peers import Found
from bareconv.bench.roofline import CASES, Ceiling, record
from bareconv.device import get_device
from bareconv.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_benchmark", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "find", lambda *asked: Found({}, {"pytorch": "torch is not installed"}))
    return module


def test_cases(script):
    assert script.cases(("basic:64,256:bfloat16,tf32", "basic:64:tf32")) == [
        ("basic", 64, "bfloat16"),
        ("basic", 256, "bfloat16"),
        ("basic", 64, "tf32"),
        ("basic", 256, "tf32"),
    ]
    assert len(script.cases(script.CASES)) == 13
    assert len(script.cases(CASES)) == 6
    with pytest.raises(UsageError, match="case 'basic': expected MODEL:BATCHES:PRECISIONS"):
        script.cases(("basic",))
    with pytest.raises(UsageError, match="precision 'float8': expected one of float32"):
        script.cases(("basic:64:float8",))


def test_a_whole_run(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "pytest_command", lambda: ["python", "-c", "print('3 passed')"])
    output = tmp_path / "cpu.json"
    words = ["--device", "cpu", "--case", "mlp:16:float32,float64", "--case", "nothing:16:float32"]
    words += ["--budget", "20", "--second", "0.3", "--threads", "1", "--output", str(output), "--commit", 40 * "a"]
    outcome = CliRunner().invoke(
        script.main, [*words, "--tests", "--sanitize", "tests/no_such_file.py"], catch_exceptions=False
    )
    assert outcome.exit_code == 0
    result = results.read(output)
    assert result["commit"] == 40 * "a"
    assert [(run["model"], run["precision"], run["engine"]) for run in result["runs"]] == [
        ("mlp", "float32", "plan"),
        ("mlp", "float64", "plan"),
    ]
    assert all(run["throughput"]["samples"]["seconds"] for run in result["runs"])
    assert [entry["absent"] for entry in result["peers"]] == 2 * [{"pytorch": "torch is not installed"}]
    assert [part["status"] for part in result["parts"]] in (
        ["passed", "missing", "missing"],
        ["passed", "failed", "failed"],
    )
    assert any("nothing" in note for note in result["notes"])
    assert "mlp, batch 16, float32" in outcome.output
    assert json.loads(output.read_text())["settings"]["budget"] == 20


def test_every_file_that_launches_kernels_is_sanitized(script):
    found = script.kernel_tests()
    assert "tests/kernels/cuda/test_cuda_stem.py" in found
    assert "tests/kernels/cuda/test_cuda_nvrtc.py" not in found  # under a sanitizer it would have no test to run
    assert all((script.ROOT / file).is_file() for file in found)
    assert set(script.PLANTED) == set(script.SANITIZERS)


def test_adds_to_a_file(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "pytest_command", lambda: ["python", "-c", "print('3 passed')"])
    output = tmp_path / "cpu.json"
    words = ["--device", "cpu", "--no-sanitize", "--budget", "10", "--second", "0.2", "--threads", "1"]
    words += ["--output", str(output), "--add", "--case", "mlp:32:float32", "--commit"]

    def run(*more):
        return CliRunner().invoke(script.main, [*words, *more])

    words[words.index("mlp:32:float32")] = "mlp:16:float32"
    assert run(40 * "a", "--tests", "--case", "nothing:16:float32").exit_code == 0
    words[words.index("mlp:16:float32")] = "mlp:32:float32"
    first = results.read(output)
    monkeypatch.setattr(script, "pytest_command", lambda: ["python", "-c", "print('4 passed')"])
    assert run(40 * "a", "--tests").exit_code == 0
    both = results.read(output)
    assert [entry["batch_size"] for entry in both["peers"]] == [16, 32]
    assert both["peers"][0] == first["peers"][0]
    assert both["runs"][0] == first["runs"][0]
    assert len(both["runs"]) == 2
    assert [part["said"] for part in both["parts"]] == [["4 passed"]]
    assert both["settings"]["earlier"] == first["settings"]
    assert run(40 * "a", "--no-timing").exit_code == 0
    assert results.read(output)["peers"] == both["peers"]
    assert [note.partition(":")[0] for note in results.read(output)["notes"]] == ["nothing, batch 16"]
    outcome = run(40 * "b", "--no-timing")
    assert outcome.exit_code == 1
    assert "its commit: aaaa" in outcome.output
    assert results.read(output)["commit"] == 40 * "a"


def report_of(script, path):
    return script.Report({}, get_device("cpu"), path, 40 * "a")


def test_rooflines_are_taken_over(script, tmp_path, monkeypatch):
    ceilings = {"memory": Ceiling("memory", 4e12, "byte", "a copy of 512 MiB, read and written")}
    rooflines = [record(get_device("cpu"), ceilings, [])]
    asked = []

    def run_part(name, command, seconds, folder):
        asked.append(command)
        output = Path(command[command.index("--output") + 1])
        results.write(results.new("it", {}, rooflines=rooflines), output)
        return {"name": name, "command": "it", "status": "failed", "seconds": 1.0, "said": ["broke later"]}

    monkeypatch.setattr(script, "run_part", run_part)
    report = report_of(script, tmp_path / "gpu.json")
    options = {"device_name": "cuda", "rooflines": ("basic:64:tf32", "mlp:8:float32"), "part_seconds": 1.0}
    script.draw_rooflines(report, options)
    assert asked[0][-4:] == ["--case", "basic:64:tf32", "--case", "mlp:8:float32"]
    written = results.read(tmp_path / "gpu.json")
    assert written["rooflines"] == rooflines
    assert [(part["name"], part["status"]) for part in written["parts"]] == [("roofline", "failed")]


def test_a_roofline_needs_a_gpu(script, tmp_path):
    report = report_of(script, tmp_path / "cpu.json")
    script.draw_rooflines(report, {"device_name": "cpu", "rooflines": ("mlp:8:float32",), "part_seconds": 60.0})
    (part,) = results.read(tmp_path / "cpu.json")["parts"]
    assert part["status"] == "failed"
    assert "--device cpu: the roofline is of the plan on a GPU" in part["said"][-1]
    assert report.rooflines is None


def test_what_a_gpu_is_needed_for(script):
    outcome = CliRunner().invoke(script.main, ["--device", "cpu", "--case", "mlp:16:tf32"])
    assert outcome.exit_code == 1
    assert "--device cpu: tf32 and bfloat16 need a GPU" in outcome.output
    for words in (["--case", "x"], ["--device", "gpu"]):
        outcome = CliRunner().invoke(script.main, words)
        assert outcome.exit_code == 1
        assert outcome.output.startswith("Error: ")
