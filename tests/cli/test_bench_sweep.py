"""``bareconv bench sweep``: the document, the table, fits and crossings; what fails, interruptions."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import gpu_stand_in
import pytest
from growing_stand_in import growing

from bareconv.bench import interleave
from bareconv.bench.peers import Found
from bareconv.device import get_device
from bareconv.errors import UsageError

verb = importlib.import_module("bareconv.cli.bench.sweep")

MLP = ("bench", "sweep", "--model", "mlp", "--image-shape", "6x6x1", "--threads", "1", "--budget", "60")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Medians count as known after a few short blocks, so that a budget need not be spent."""
    for name, value in (("ENOUGH", 4), ("NARROW", 10.0), ("LONGEST", 0.05)):
        monkeypatch.setattr(interleave, name, value)


@pytest.fixture
def both(monkeypatch):
    """A CPU and a GPU, whose engines are stand-ins; those that were asked for."""
    asked, gpu = [], gpu_stand_in.StandInGpu()

    def candidate(engine, device, threads, precision):
        asked.append((engine, device, threads, precision))
        if device == "cpu":
            return growing("2e-5 * batch", 1e-5, precision=precision)
        return growing("1e-6 * batch", 2e-4, device, precision=precision, trouble="batch > 100")

    monkeypatch.setattr(verb, "all_devices", lambda: [get_device("cpu"), gpu])
    monkeypatch.setattr(verb, "get_device", lambda name: gpu if name.startswith("cuda") else get_device(name))
    monkeypatch.setattr(verb, "why_no_cuda", lambda: None)
    monkeypatch.setattr(verb, "our_candidate", candidate)
    return asked


def test_our_engine_as_it_is(run, here, listing):
    outcome = run(
        *MLP, "--engine", "reference", "--device", "cpu", "--values", "4,8,16", "--json", "--output", "s.json"
    )
    assert outcome.code == 0
    result = outcome.result()
    assert json.loads(Path("s.json").read_text()) == result
    (found,) = result["sweeps"]
    (curve,) = found["curves"]
    assert [point["value"] for point in curve["points"]] == [4, 8, 16]
    assert all(point["images_per_second"]["value"] > 0 for point in curve["points"])
    assert (curve["name"], curve["device"], curve["precision"]) == ("reference", "cpu", "float32")
    assert curve["fit"]["largest_error"] >= 0
    assert result["settings"]["axis"] == "batch-size"
    assert "batch size 16: reference " in outcome.err
    assert listing() == ["s.json"]


def test_the_gpu_overtakes_the_cpu(run, here, both):
    outcome = run(*MLP, "--values", "1,4,...,64")
    assert (outcome.code, outcome.err) == (0, "")
    assert both == [("plan", "cpu", 1, "float32"), ("plan", "cuda:0", 1, "float32")]
    lines = outcome.out.splitlines()
    head = next(place for place, line in enumerate(lines) if line.startswith("batch size  "))
    assert lines[head].split("  ")[-1].strip() == "second / first"
    for line, value in zip(lines[head + 1 :], (1, 4, 16, 64), strict=False):
        assert re.search(rf"^{value} +[\d,.]+ ± [\d.]+%( \?)? +[\d,.]+ ± [\d.]+%( \?)? +[\d.]+×$", line), line
    ratios = [float(line.split()[-1].rstrip("×")) for line in lines[head + 1 : head + 5]]
    expected = [(1e-5 + 2e-5 * n) / (2e-4 + 1e-6 * n) for n in (1, 4, 16, 64)]
    assert ratios == pytest.approx(expected, rel=0.1)
    assert re.search(
        r"^  the CPU  [▁▂▃▄▅▆▇█]{4}  \d\d\.\d µs \+ \d\d\.\d µs an image \(no point further off", outcome.out, re.M
    )
    assert re.search(r"^  the GPU  ▁[▁▂▃▄▅▆▇]{2}█  ", outcome.out, re.M)
    assert re.search(r"^  the GPU overtakes the CPU at a batch size of \d+( \(\d+ to \d+\))?$", outcome.out, re.M)


def test_what_fails_at_a_value_is_said(run, here, both):
    outcome = run(*MLP, "--values", "1,16,128,256", "--json")
    assert outcome.code == 1
    gpu = outcome.result()["sweeps"][0]["curves"][1]
    assert [point["error"] for point in gpu["points"]] == [None, None, *["OutOfMemoryError: no room for it"] * 2]
    assert "Warning: the GPU at a batch size of 128, 256: OutOfMemoryError: no room for it\n" in outcome.err
    assert re.search(r"^256 +[\d,]+ ± [\d.]+%( \?)? +– +–$", outcome.err, re.MULTILINE)
    assert "too few points for a fit" in outcome.err


def test_each_precision_where_it_is_computed_in(run, here, both):
    words = ("--precision", "bfloat16", "--precision", "float32", "--engine", "plan", "--engine", "reference")
    outcome = run(*MLP, *words, "--values", "4", "--json")
    assert outcome.code == 0
    assert [(engine, device, precision) for engine, device, _, precision in both] == [
        ("plan", "cpu", "float32"),
        ("reference", "cpu", "float32"),
        ("plan", "cuda:0", "bfloat16"),
        ("plan", "cuda:0", "float32"),
        ("reference", "cuda:0", "float32"),
    ]
    both.clear()
    run(*MLP, "--precision", "tf32", "--values", "4", "--json")
    assert [one[1:4:2] for one in both] == [("cpu", "float32"), ("cuda:0", "tf32")]
    both.clear()
    outcome = run(*MLP, "--precision", "tf32", "--engine", "reference", "--device", "cuda", "--values", "4")
    assert (outcome.code, both) == (2, [])
    assert outcome.complaint() == "--precision tf32: only the engine plan computes in it; leave --engine out"


def test_devices_are_those_that_were_asked_for(run, here, both):
    run(*MLP, "--device", "cuda", "--device", "cuda:0", "--values", "4")
    assert [one[1] for one in both] == ["cuda:0"]
    both.clear()
    run(*MLP, "--axis", "threads", "--values", "1")
    assert [one[1] for one in both] == ["cpu"]
    outcome = run(*MLP, "--axis", "threads", "--device", "cuda", "--values", "1")
    assert outcome.complaint() == "--axis threads: only the CPU has a number of threads to choose; leave --device out"


def test_no_gpu_is_said_with_the_reason(run, here, both, monkeypatch):
    monkeypatch.setattr(verb, "all_devices", lambda: [get_device("cpu")])
    monkeypatch.setattr(verb, "why_no_cuda", lambda: "there is none")
    outcome = run(*MLP, "--values", "4", "--json")
    assert outcome.code == 0
    assert outcome.result()["notes"] == ["No GPU: there is none."]
    assert "No GPU: there is none.\n" in outcome.err


def test_what_there_was_no_time_for_is_no_failure(run, here, both):
    outcome = run(*MLP[:-1], "0.01", "--values", "1,2,4", "--json")
    errors = [point["error"] for curve in outcome.result()["sweeps"][0]["curves"] for point in curve["points"]]
    assert outcome.code == 1  # no curve has a point
    assert all("the time was up" in error for error in errors)


def test_an_interruption_keeps_what_was_measured(run, here, both, monkeypatch):
    block, blocks = verb.Story.block, []

    def interrupted(self, side, left):
        block(self, side, left)
        blocks.append(side)
        if len(blocks) == 9:  # four of each at the first point, and one at the second
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(verb.Story, "block", interrupted)
    outcome = run(*MLP, "--values", "1,4,16", "--json")
    assert outcome.code == 130
    result = outcome.result()
    cpu, gpu = result["sweeps"][0]["curves"]
    assert [point["error"] is None for point in cpu["points"]] == [True, False, False]
    assert [point["error"] is None for point in gpu["points"]] == [True, False, False]
    assert result["notes"] == ["Stopped early by request: the curves are of what was done by then."]
    assert "Interrupted: finishing this block" in outcome.err


def test_an_interruption_before_there_is_anything(run, here, both, monkeypatch):
    prepare = interleave.Side.prepare

    def interrupted(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        prepare(self, *arguments)

    monkeypatch.setattr(interleave.Side, "prepare", interrupted)
    outcome = run(*MLP, "--axis", "images", "--values", "100,200", "--json")
    assert (outcome.code, outcome.result()["notes"]) == (130, ["Interrupted."])


def test_peers_are_measured_where_they_are(run, here, both, monkeypatch):
    asked = []

    def find(names, python, device, precision):
        asked.append((names, python, device, precision))
        return (
            Found({"pytorch": "python3"}, {}) if device == "cpu" else Found({}, {"pytorch": "torch is not installed"})
        )

    monkeypatch.setattr(verb, "find", find)
    monkeypatch.setattr(
        verb, "peer_candidate", lambda name, *_: growing("1e-5 * batch", name=name, ours=False, losses=[2.5] * 5)
    )
    outcome = run(*MLP, "--peer", "pytorch", "--values", "4", "--json")
    assert outcome.code == 1  # its losses are others
    result = outcome.result()
    assert [curve["name"] for curve in result["sweeps"][0]["curves"]] == ["plan", "plan", "pytorch"]
    assert result["notes"] == ["pytorch is absent on cuda:0: torch is not installed."]
    assert [one[2] for one in asked] == ["cpu", "cuda:0"]
    assert "Warning: pytorch on the CPU at a batch size of 4: its first 5 losses differ from ours" in outcome.err


def test_devices_that_are_not_there_are_refused():
    with pytest.raises(UsageError, match="device tpu|device 'tpu'"):
        verb._devices(["tpu"], verb.AXES["batch_size"])


def test_a_folder_that_cannot_be_written_to(run, here, monkeypatch):
    def refused(**options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(verb.tempfile, "TemporaryFile", refused)
    outcome = run(*MLP, "--axis", "images", "--values", "16,32", "--folder", ".")
    assert outcome.code == 2
    said = "--folder .: cannot write there: Read-only file system; give a folder that can be written to"
    assert outcome.complaint() == said


def test_a_folder_that_is_full(run, here, both, monkeypatch):
    """It is named as the user named it, not by what was made within it."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    outcome = run(*MLP, "--axis", "images", "--values", "16,32", "--folder", ".")
    assert outcome.code == 1
    assert "and in . 0 B are free: give a folder with more room (--folder), or fewer images" in outcome.out
