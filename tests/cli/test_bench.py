"""``bareconv bench``: documents, tables, notes, exit codes; a measurement that fails or is interrupted."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

import bareconv
from bareconv.bench import interleave, peers, process
from bareconv.bench.peers import Found
from bareconv.bench.process import REMOVED, WorkerError
from bareconv.training import ENGINES

ON_CPU = ("--device", "cpu", "--part", "throughput")
MLP = ("--model", "mlp", "--image-shape", "6x6x1", "--batch-size", "16", "--threads", "1", "--engine", ENGINES[0])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Medians count as known after a few short blocks, so that a budget need not be spent."""
    for name, value in (("ENOUGH", 4), ("NARROW", 10.0), ("LONGEST", 0.05)):
        monkeypatch.setattr(interleave, name, value)


@pytest.fixture(autouse=True)
def no_page(request, monkeypatch):
    """Drawing takes seconds; one test does it."""

    def write(result, gallery, folder):
        page = Path(folder) / "report.html"
        page.write_text("a page")
        return page

    if request.node.name != "test_one_document":
        monkeypatch.setattr(run_verb, "write_report", write)


run_verb = importlib.import_module("bareconv.cli.bench.run")
peers_verb = importlib.import_module("bareconv.cli.bench.peers")


def test_one_document(run, here, monkeypatch):
    monkeypatch.setenv(REMOVED[0], "Haswell")
    begun = time.monotonic()
    outcome = run("bench", "run", *ON_CPU, *MLP, "--budget", "60", "--json", "--output", "out")
    assert time.monotonic() - begun < 30
    assert outcome.code == 0
    result = outcome.result()
    assert json.loads(Path("out/result.json").read_text()) == result
    (record,) = result["runs"]
    assert (record["model"], record["batch_size"], record["engine"], record["device"]) == ("mlp", 16, ENGINES[0], "cpu")
    assert (record["data"], record["train_images"]) == ("uniform random images and labels", 2048)
    found = record["throughput"]
    samples = found["samples"]
    rates = sorted(images / seconds for images, seconds in zip(samples["images"], samples["seconds"], strict=True))
    assert rates[0] <= found["interval"]["low"] <= record["images_per_second"] <= found["interval"]["high"] <= rates[-1]
    assert found["images_per_second"] == record["images_per_second"]
    assert sum(samples["seconds"]) == record["train_seconds"] < 3.0
    assert (found["stopped"], found["flags"]["precision"], found["flags"]["threads"]) == ("narrow", "float32", "1")
    assert sum(samples["steps"]) == record["iterations"] == sum(samples["images"]) / 16
    assert 0 < found["memory_growth_bytes"] < found["peak_memory_bytes"] == record["peak_memory_bytes"]
    assert found["warm_up_seconds"] > 0
    assert found["compile_seconds"] >= 0
    assert found["threads"] == 1
    assert found["variables"]["OMP_NUM_THREADS"] == "1"
    assert REMOVED[0] not in found["variables"]
    notes = [f"{REMOVED[0]} is set, and was removed from the environment of what is measured."]
    assert result["notes"] == notes  # what is unstable is marked where it stands
    assert (result["settings"]["model"], result["settings"]["budget"]) == (["mlp"], 60.0)
    assert result["conditions"]["seconds"] > 0
    assert "mlp" in Path("out/report.html").read_text()
    assert "MNIST" not in outcome.err


def test_several_workloads_share_the_budget(run, here, listing):
    outcome = run("bench", "run", *ON_CPU, *MLP, "--batch-size", "32", "--model", "mlp", "--budget", "60")
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(r"^Throughput: 5\d(\.\d+)? s at most, 5\d(\.\d+)? s left in all$", outcome.out, re.MULTILINE)
    folder = Path("results/latest")
    assert [run["batch_size"] for run in json.loads((folder / "result.json").read_text())["runs"]] == [16, 32]


def test_what_fails_is_said_and_the_rest_is_reported(run, here, monkeypatch):
    measured = interleave.Side.run

    def failing(self, block, lead=0.0):
        if "32" in self.folder.joinpath("job.json").read_text().partition("batch_size")[2][:8]:
            self.fail(WorkerError("gave up"))
        else:
            measured(self, block, lead)

    monkeypatch.setattr(interleave.Side, "run", failing)
    outcome = run("bench", "run", *ON_CPU, *MLP, "--batch-size", "32", "--budget", "60", "--json")
    assert outcome.code == 1
    result = outcome.result()
    assert [record["batch_size"] for record in result["runs"]] == [16]
    assert f"mlp, batch 32, {ENGINES[0]} cpu float32: gave up." in result["notes"]


def test_an_interruption_keeps_what_was_measured(run, here, monkeypatch):
    block = run_verb.Story.block

    def interrupted(self, side, left):
        block(self, side, left)
        if len(side.samples.seconds) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(run_verb.Story, "block", interrupted)
    begun = time.monotonic()
    outcome = run("bench", "run", *ON_CPU, *MLP, "--batch-size", "32", "--budget", "60", "--json")
    assert time.monotonic() - begun < 20
    assert outcome.code == 130
    (record,) = outcome.result()["runs"]
    assert record["stopped"]
    assert len(record["throughput"]["samples"]["seconds"]) == 3
    assert "Interrupted: finishing this block" in outcome.err


def test_an_interruption_before_there_is_anything(run, here, monkeypatch):
    prepare = interleave.Side.prepare

    def interrupted(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        prepare(self, *arguments)

    monkeypatch.setattr(interleave.Side, "prepare", interrupted)
    outcome = run("bench", "run", *ON_CPU, *MLP, "--json")
    assert (outcome.code, outcome.result()["runs"], outcome.result()["notes"]) == (130, [], ["Interrupted."])


def test_too_little_time_to_measure_anything(run, here):
    """That is said, with what to do, and leaves no page without a figure."""
    outcome = run("bench", "run", *ON_CPU, "--part", "sweep", *MLP, "--budget", "0.001", "--output", "out", "--json")
    assert outcome.code == 1
    said = "nothing could be measured in 1.00 ms: give more time, such as --budget 30, or measure less"
    assert f"bareconv: {said}" in outcome.err
    assert said in outcome.result()["notes"][0]
    assert not Path("out").exists()


def test_batches_too_large_for_the_data_are_said(run, here):
    outcome = run("bench", "layers", "--model", "mlp", "--batch-size", "40000", "--budget", "0.01", "--threads", "1")
    said = "mlp, batch 40000: MNIST has too few images for two such batches: the images are drawn at random."
    assert said in outcome.out


def test_absent_peers_are_named(run, here, monkeypatch):
    absent = {"pytorch": "torch is not installed for python3", "dezero": "dezero is not installed for python3"}
    monkeypatch.setattr(peers_verb, "find", lambda *asked: Found({}, absent))
    outcome = run("bench", "peers", *MLP, "--budget", "60", "--json")
    assert outcome.code == 0
    result = outcome.result()
    (comparison,) = result["peers"]
    assert comparison["absent"] == absent
    assert (comparison["ours"], [one["status"] for one in comparison["candidates"]]) == (ENGINES[0], ["measured"])
    assert [record["engine"] for record in result["runs"]] == [ENGINES[0]]
    for name, reason in absent.items():
        assert f"{name} is absent: {reason}.\n" in outcome.err
        assert f"{name} is absent: {reason}." in result["notes"]


def test_a_peer_beside_ours(run, here, monkeypatch):
    """Our own engine stands in for the peer: the same losses, and a ratio near one."""
    monkeypatch.setenv("PYTHONPATH", str(Path(bareconv.__file__).parents[1]))
    monkeypatch.delenv("BARECONV_TORCH_PYTHON", raising=False)  # another NumPy would round otherwise
    stand_in = peers.Peer("sys", "bareconv.bench.workers.ours", {"": {"engine": ENGINES[0], "device": "cpu"}})
    monkeypatch.setitem(peers.PEERS, "dezero", stand_in)
    monkeypatch.setattr(process, "foreign_command", lambda python, module: [python, "-m", module])
    outcome = run("bench", "peers", *MLP, "--peer", "dezero", "--budget", "60", "--json", "--output", "peers.json")
    assert outcome.code == 0
    ours_entry, peer = outcome.result()["peers"][0]["candidates"]
    assert peer["loss_difference"] == 0
    assert peer["first_losses"] == ours_entry["first_losses"]
    assert len(peer["first_losses"]) == 5
    assert 0.3 < peer["ratio"]["value"] < 3
    assert re.search(rf"{ENGINES[0]} / it", outcome.err)
    assert re.search(r"^dezero +[\d,]+ +[\d,]+ to [\d,]+ +[\d.]+× +[\d.]+× to [\d.]+×", outcome.err, re.MULTILINE)


def test_a_peer_that_fails_ends_in_an_error(run, here, monkeypatch):
    monkeypatch.setitem(peers.PEERS, "dezero", peers.Peer("sys", "bareconv.bench.workers.nothing", {"": {}}))
    outcome = run("bench", "peers", *MLP, "--peer", "dezero", "--budget", "60", "--json")
    assert outcome.code == 1
    assert any(
        note.startswith("mlp, batch 16, dezero: its process ended (exit code 1): ")
        for note in outcome.result()["notes"]
    )
    assert "Warning: dezero: its process ended" in outcome.err


def test_precisions_of_a_gpu_are_refused_on_a_cpu(run, here):
    for verb in ("run", "peers"):
        outcome = run("bench", verb, *MLP, "--precision", "tf32")
        assert outcome.code == 2
        assert "--precision tf32: the CPU computes in float32 or float64; give --device cuda" in outcome.err


def test_peers_of_a_gpu(run, here, monkeypatch):
    """What is compared depends on where, and in which precision; the CPU stands in for the GPU."""
    asked = []

    def find(*words):
        asked.append(words)
        return Found({}, {})

    monkeypatch.setattr(peers_verb, "find", find)
    outcome = run("bench", "peers", *MLP, "--precision", "float64", "--budget", "60", "--json")
    assert outcome.code == 0
    assert [words[2:] for words in asked] == [("cpu", "float64")]
    (comparison,) = outcome.result()["peers"]
    assert (comparison["device"], comparison["precision"]) == ("cpu", "float64")
