"""``bareconv bench layers`` and ``bareconv bench ceilings``: tables, documents, notes, exit codes."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
from pathlib import Path

import pytest

from bareconv.bench.roofline import Ceiling, record
from bareconv.bench.roofline.records import Part
from bareconv.device import get_device

layers_verb = importlib.import_module("bareconv.cli.bench.layers")
ceilings_verb = importlib.import_module("bareconv.cli.bench.ceilings")

CEILINGS = [
    Ceiling("FMA float32", 2e11, "FLOP", "multiply-adds", 2),
    Ceiling("L2 cache", 4e11, "byte", "reading 1.00 MiB", 2),
    Ceiling("launch", 1e5, "launch", "an empty step", 2),
    Ceiling("FMA float32", 1e11, "FLOP", "multiply-adds", 1),
]
PARTS = [
    (Part("conv1", "forward", "forward", "Correlate", "direct", 2e-4, 1e7, 1e6), ("FMA float32", 5e-5)),
    (Part("conv1", "backward", "dW", "ColumnSums", "", 1e-4, 0, 4e6), ("L2 cache", 1e-5)),
    (Part("conv1", "backward", "dW", "WeightGradient", "", 1e-4, 6e7, 4e6), ("FMA float32", 3e-4)),
    (Part("step", "other", "other", "starting", "", 1e-4), ("none", 0.0)),
]


def step(engine="plan", cost=0.02):
    memory = {"predicted": {"parameters": 4096}, "measured": {"parameters": 4096, "overhead": 1 << 20}}
    return {
        "model": "lenet5",
        "batch_size": 8,
        "precision": "float32",
        "engine": engine,
        "step_seconds": 4.9e-4,
        "marked_seconds": 5e-4,
        "marks_cost": cost,
        "memory": memory,
        "launches": [part.to_json(bound) for part, bound in PARTS],
    }


@pytest.fixture
def measured(monkeypatch):
    """What is measured is made up; returns what was asked for."""
    asked = []

    def use(steps=(), ceilings=CEILINGS, notes=(), interrupt=False):
        def measure_depth(workloads, device_name, engines, threads, deadline, listener):
            asked.append((list(workloads), device_name, list(engines), threads, deadline.left))
            listener.stage("Ceilings")
            if interrupt:
                os.kill(os.getpid(), signal.SIGINT)
                while not listener.should_stop():
                    pass
            return record(get_device("cpu"), ceilings, steps, threads=threads, notes=notes)

        monkeypatch.setattr(layers_verb, "measure_depth", measure_depth)
        monkeypatch.setattr(ceilings_verb, "measure_depth", measure_depth)
        return asked

    return use


def test_a_table_of_operations(run, here, listing, measured):
    asked = measured([step()])
    outcome = run("bench", "layers", "--model", "lenet5", "--batch-size", "8", "--threads", "2", "--budget", "7")
    assert (outcome.code, outcome.err) == (0, "")
    ((workload,), device, engines, threads, left) = asked[0]
    assert (workload.model, workload.batch_size, device, engines, threads) == ("lenet5", 8, "cpu", ["plan"], 2)
    assert 0 < left <= 7
    assert "lenet5, batch 8, float32\n" in outcome.out
    assert (
        "490 µs a step; its parts 500 µs, of which at least 360 µs are needed: 72% of the roofline; timing them cost "
        "2.0%." in outcome.out
    )
    lines = outcome.out.splitlines()
    (forward,) = [line for line in lines if re.match(r"conv1 +forward", line)]
    assert re.search(r"200 µs +40.0% +10.0 M +977 KiB +10.0 +50.0 GFLOP/s +25% +███ +FMA float32$", forward)
    # Two launches: 310 µs at least, by the ceiling under which most of it is, of 200 µs.
    (weights,) = [line for line in lines if re.match(r"conv1 +dW", line)]
    assert re.search(r"200 µs +40.0% +60.0 M +7.63 MiB +7.50 +300 GFLOP/s +155% +█{12}▸ +FMA float32$", weights)
    (other,) = [line for line in lines if re.match(r"step +other", line)]
    assert re.search(r"100 µs +20.0% +–$", other)
    assert "Ceilings: FMA float32 200 GFLOP/s." in outcome.out
    assert re.search(r"^parameters +4.00 KiB +4.00 KiB$", outcome.out, re.MULTILINE)
    assert re.search(r"^overhead +1.00 MiB$", outcome.out, re.MULTILINE)
    assert listing() == []


def test_a_document_of_layers(run, here, measured):
    measured([step(), step("reference", 0.4)], notes=["Something is missing."])
    engines = ("--engine", "plan", "--engine", "reference")
    outcome = run("bench", "layers", "--model", "lenet5", *engines, "--json", "--output", "layers.json")
    assert outcome.code == 0
    result = outcome.result()
    assert json.loads(Path("layers.json").read_text()) == result
    (found,) = result["rooflines"]
    assert [one["engine"] for one in found["steps"]] == ["plan", "reference"]
    assert result["notes"][0] == "Something is missing."
    assert (
        "lenet5, batch 8, float32, reference, on cpu: to time its parts made the step 40% slower" in result["notes"][1]
    )


def test_what_is_missing_is_a_failure(run, here, measured):
    measured([step()], notes=["lenet5, batch 8, float32, reference: it broke."])
    outcome = run("bench", "layers", "--model", "lenet5", "--engine", "plan", "--engine", "reference")
    assert outcome.code == 1
    assert "lenet5, batch 8, float32, reference: it broke.\n" in outcome.out


@pytest.mark.parametrize(("steps", "notes"), [([], ["Interrupted."]), ([step()], [])])
def test_an_interruption(run, here, measured, steps, notes):
    measured(steps, interrupt=True)
    outcome = run("bench", "layers", "--json")
    assert outcome.code == 130
    assert outcome.result()["notes"] == notes
    assert len(outcome.result().get("rooflines", [])) == len(steps)


def test_a_table_of_ceilings(run, here, measured):
    asked = measured()
    outcome = run("bench", "ceilings", "--threads", "2", "--budget", "3")
    assert (outcome.code, outcome.err) == (0, "")
    assert asked[0][:4] == ([], "cpu", [], 2)
    assert re.search(r"^ceiling +1 thread +2 threads$", outcome.out, re.MULTILINE)
    assert re.search(r"^FMA float32 +100 GFLOP/s +200 GFLOP/s$", outcome.out, re.MULTILINE)
    assert re.search(r"^L2 cache +– +400 GB/s$", outcome.out, re.MULTILINE)
    assert re.search(r"^launch +– +10.0 µs$", outcome.out, re.MULTILINE)
    assert "L2 cache: reading 1.00 MiB.\n" in outcome.out


def test_ceilings_of_a_gpu_have_no_threads(run, here, measured):
    measured(ceilings=[Ceiling("FFMA", 5.82e13, "FLOP", "264 blocks")])
    outcome = run("bench", "ceilings")
    assert re.search(r"^ceiling +at best\nFFMA +58.2 TFLOP/s\n", outcome.out, re.MULTILINE)


def test_no_ceilings_are_a_failure(run, here, measured):
    measured(ceilings=[], notes=["Ceilings of 2 threads: was not ready when the time was up."])
    outcome = run("bench", "ceilings", "--json")
    assert outcome.code == 1
    assert outcome.result()["notes"] == ["Ceilings of 2 threads: was not ready when the time was up."]


def test_ceilings_for_real(run, here):
    """In a process of its own."""
    outcome = run("bench", "ceilings", "--threads", "1", "--budget", "15", "--json")
    assert outcome.code == 0
    (found,) = outcome.result()["rooflines"]
    assert "memory" in [one["name"] for one in found["ceilings"]]
    assert found["steps"] == []
