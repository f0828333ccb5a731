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
        script.main, [*words, "--tests", "--sanitize", "-m no_such_module"], catch_exceptions=False
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


def test_what_a_gpu_is_needed_for(script):
    outcome = CliRunner().invoke(script.main, ["--device", "cpu", "--case", "mlp:16:tf32"])
    assert outcome.exit_code == 1
    assert "--device cpu: tf32 and bfloat16 need a GPU" in outcome.output
    for words in (["--case", "x"], ["--device", "gpu"]):
        outcome = CliRunner().invoke(script.main, words)
        assert outcome.exit_code == 1
        assert outcome.output.startswith("Error: ")
