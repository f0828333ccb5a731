"""``bareconv bench clocks``: one document, a table of phases, what fails, and an interruption."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bareconv.bench.process import WorkerError
from bareconv.cli.screen import Screen

verb = importlib.import_module("bareconv.cli.bench.clocks")
ENGINE = "reference"
MLP = ("--model", "mlp", "--image-shape", "6x6x1", "--batch-size", "256", "--threads", "1", "--engine", ENGINE)


def test_one_document(run, here):
    """A real one, with its steady rate: three processes."""
    begun = time.monotonic()
    outcome = run("bench", "clocks", *MLP, "--epochs", "1", "--budget", "10", "--json", "--output", "clocks.json")
    assert time.monotonic() - begun < 12
    assert outcome.code == 0
    result = outcome.result()
    assert json.loads(Path("clocks.json").read_text()) == result
    (record,) = result["clocks"]
    assert (record["model"], record["engine"], record["device"], record["precision"]) == (
        "mlp",
        ENGINE,
        "cpu",
        "float32",
    )
    assert (record["epochs"], record["train_images"], record["test_accuracy"]) == (1, 2048, None)
    assert 0 < record["steady_seconds"] < record["warm"]["whole_seconds"]
    assert (result["settings"]["epochs"], result["settings"]["budget"]) == (1, 10.0)
    assert result["runs"] == result["notes"] == []
    for name in ("start", "import", "compile", "first step", "training", "whole", "unexplained"):
        assert re.search(rf"^{name} +\S", outcome.err, re.MULTILINE)
    assert "reference on cpu, float32: 1 epoch of 2,048 images" in outcome.err
    assert "█" not in outcome.err  # bars only where there are colours to tell their parts by


@pytest.fixture
def record():
    phases = {"start": 0.05, "import": 0.45, "compile": 1.5, "first step": 0.1, "training": 1.8, "end": 0.1}

    def journey(**changes):
        found = phases | changes
        parts = [{"name": name, "seconds": seconds} for name, seconds in found.items()]
        return {"whole_seconds": sum(found.values()), "phases": parts, "compiled": 0, "unexplained": 0.0}

    return {
        "device": "cpu",
        "engine": "plan",
        "model": "basic",
        "precision": "float32",
        "batch_size": 64,
        "epochs": 3,
        "train_images": 60_000,
        "threads": 2,
        "cold": journey(),
        "warm": journey(compile=0.1),
        "steady_seconds": 2.0,
        "test_accuracy": 0.9876,
        "notes": ["Something to know."],
    }


def test_bars(record, monkeypatch):
    """Each phase in its colour, as long as its share of the longest; the ends of the bars say the sums."""
    screen = Screen({}, False)
    text = io.StringIO()
    screen.console = Console(file=text, force_terminal=True, width=120, color_system=None, highlight=False)
    screen.interactive = True
    verb._show(screen, record)
    lines = text.getvalue().splitlines()
    bars = {line.split()[0]: line for line in lines if "█" in line}
    assert {name: bar.count("█") for name, bar in bars.items()} == {"cold": 60, "warm": 39, "steady": 30}
    assert bars["warm"].endswith("2.60 s")
    styles = [span.style for span in verb._bar("cold", {"import": 1.0, "compile": 3.0}, 4.0).spans]
    assert styles == [verb.COLOURS["import"], verb.COLOURS["compile"]]
    assert re.search(r"compile +1\.50 s +37\.5% +100 ms +3\.8%", text.getvalue())
    assert "The same steps at their steady rate: 2.00 s; accuracy 98.76%" in text.getvalue()
    assert lines[-1].strip() == "Something to know."


def test_what_fails_is_said_and_the_rest_is_reported(run, here, monkeypatch, record):
    shares = []

    def measure(workload, device, engine, deadline, listener, epochs):
        shares.append(deadline.left)
        if workload.batch_size == 16:
            raise WorkerError("the cold training was not ready when the time was up")
        return record

    monkeypatch.setattr(verb, "measure_clocks", measure)
    outcome = run("bench", "clocks", "--model", "basic", "--batch-size", "16", "--batch-size", "64", "--json")
    assert outcome.code == 1
    assert outcome.result()["clocks"] == [record]
    note = "basic, batch 16, plan: the cold training was not ready when the time was up."
    assert outcome.result()["notes"] == ["basic, batch 64, plan: Something to know.", note]
    assert f"Warning: {note}" in outcome.err
    assert shares == [pytest.approx(30, abs=1), pytest.approx(60, abs=1)]  # what one leaves, the next has


def test_an_interruption(run, here, monkeypatch, record):
    def measure(*arguments):
        if done:
            os.kill(os.getpid(), signal.SIGINT)
            return None
        done.append(record)
        return record

    monkeypatch.setattr(verb, "measure_clocks", measure)
    done: list[Any] = []
    outcome = run("bench", "clocks", *MLP, "--batch-size", "64", "--json")
    assert (outcome.code, outcome.result()["clocks"]) == (130, [record])
    assert outcome.result()["notes"][1].startswith("Stopped early by request")
    outcome = run("bench", "clocks", *MLP, "--json")
    assert (outcome.code, outcome.result()["notes"]) == (130, ["Interrupted."])


def test_help_has_examples(run):
    outcome = run("bench", "clocks", "--help")
    assert "bareconv bench clocks --device cuda" in outcome.out
    assert "clocks" in run("bench", "--help").out
