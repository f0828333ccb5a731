"""``bareconv compare``: tables, proof, page; both devices, where a second one may stand in for a GPU."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
from pathlib import Path

import pytest

from bareconv import files
from bareconv.bench import parity
from bareconv.bench.compare import Comparison
from bareconv.cli import tables
from bareconv.cli.screen import Screen
from bareconv.device import CpuDevice, get_device, why_no_cuda
from bareconv.errors import UnwrittenError
from bareconv.report import page
from bareconv.training import Trainer, checkpoint, make_engine, why_no_plan

compare = importlib.import_module("bareconv.cli.compare")
PLAIN = ("compare", "--model", "mlp", "--limit", "128", "--epochs", "2", "--parity-steps", "3")
QUICK = (*PLAIN, "--engine", "reference", "--device", "cpu")
COMPONENTS = ["parameters", "gradients", "optimizer", "activations", "data", "overhead"]


class StandIn(CpuDevice):
    """The CPU under a GPU's name: what two devices give to print and to write, where there is one."""

    def __init__(self):
        super().__init__()
        self.name, self.description = "cuda:0", "a GPU that is none"


@pytest.fixture
def no_page(monkeypatch):
    """The page takes a second or two to draw, which a test that looks elsewhere need not wait for."""
    monkeypatch.setattr(compare, "write_report", lambda result, gallery, folder: folder / "report.html")


@pytest.fixture
def two_devices(monkeypatch):
    monkeypatch.setattr(compare, "all_devices", lambda: [get_device("cpu"), StandIn()])
    monkeypatch.setattr(compare, "why_no_cuda", lambda: None)


def test_what_it_writes(run, here, listing):
    outcome = run(*QUICK, "--output", "out", "--json")
    assert outcome.code == 0
    result = outcome.result()
    assert json.loads(Path("out/result.json").read_text()) == result
    assert {"out/report.html", "out/convergence.png", "out/parity.png", "out/model.safetensors"} <= set(listing())
    assert not Path("results").exists()
    (record,) = result["runs"]
    assert (record["model"], record["iterations"], record["epochs"]) == ("mlp", 4, 2)
    assert all(record[key] > 0 for key in ("total_seconds", "train_seconds", "seconds_per_iteration"))
    assert all(record["phases"][key] > 0 for key in ("forward", "backward", "update"))
    assert [operation["name"] for operation in record["operations"]] == [
        "flatten1",
        "dense1",
        "relu1",
        "dense2",
        "loss",
    ]
    assert list(record["memory"]) == COMPONENTS
    assert sum(record["memory"].values()) == record["peak_memory_bytes"]
    weights = 784 * 10 + 10 + 10 * 10 + 10
    assert record["parameters"] == weights
    assert record["memory"]["parameters"] == record["memory"]["gradients"] == 4 * weights
    assert len(record["history"]["loss"]) == 4
    assert record["test_accuracy"] == sum(record["confusion"][c][c] for c in range(10)) / 10_000
    (proof,) = result["parity"]
    assert (proof["reference"], proof["candidate"]) == ("cpu float64", "cpu float32")
    assert len(proof["loss_difference"]) == len(proof["weight_difference"]) == proof["steps"] == 3
    assert max(proof["loss_difference"]) == proof["max_loss_difference"] < proof["tolerance"] == 1e-3
    assert proof["passed"]


def test_what_it_prints(run, here, listing):
    outcome = run(*QUICK)
    assert (outcome.code, outcome.err) == (0, "")
    out = outcome.out
    for name in ("total time", "training time", "  per iteration", "  batch", "  forward", "  backward", "  update"):
        assert re.search(rf"^{name} +[\d.]+ (s|ms|µs)$", out, re.MULTILINE), name
    assert re.search(r"^images/s +[\d,]+$", out, re.MULTILINE)
    assert re.search(r"^accuracy +[\d.]+%$", out, re.MULTILINE)
    for name in ("peak memory", *(f"  {part}" for part in COMPONENTS)):
        assert re.search(rf"^{name} +[\d.]+ .?i?B$", out, re.MULTILINE), name
    for name in ("flatten1", "dense1", "relu1", "dense2", "loss"):
        assert re.search(rf"^{name} +[\d.]+ \S+ +[\d.]+ \S+$", out, re.MULTILINE), name
    assert re.search(r"^Parity of cpu float32 with cpu float64 over 3 steps: .*; tolerance 10⁻³: passed$", out, re.M)
    assert "Comparing mlp: 2 epochs of batches of 64 on 128 images of MNIST (embedded), tested on 10,000\n" in out
    (page,) = re.findall(r"^Wrote (results/\S+/report.html) \(also results/latest/report.html\)$", out, re.MULTILINE)
    assert Path(page).is_file()
    assert Path("results/latest/report.html").samefile(page)


@pytest.mark.parametrize("engine", ["plan", "tuned"])
def test_another_engine(run, here, engine):
    """Its name where it runs, its operations as it runs them, and proofs that it computes what the reference does."""
    ours = engine if why_no_plan() is None else "tuned"
    outcome = run(*PLAIN, "--engine", engine, "--threads", "1", "--device", "cpu", "--json")
    assert outcome.code == 0
    result = outcome.result()
    (record,) = result["runs"]
    assert (record["engine"], record["threads"]) == (ours, 1)
    assert re.search(rf"^cpu \(.*\), float32, engine {ours} \(.*1 thread\):$", outcome.err, re.MULTILINE)
    names = [operation["name"] for operation in record["operations"]]
    assert names == (["dense1 + relu1", "dense2", "loss"] if ours == "plan" else [])
    for name in names:
        assert re.search(rf"^{re.escape(name)} +[\d.]+ \S+ +[\d.]+ \S+$", outcome.err, re.MULTILINE), name
    phase = "other" if ours == "plan" else "forward and backward"
    assert re.search(rf"^  {phase} +[\d.]+ (s|ms|µs)$", outcome.err, re.MULTILINE)
    assert [(proof["reference"], proof["candidate"]) for proof in result["parity"]] == [
        (f"cpu float64 {ours}", f"cpu float32 {ours}"),
        ("cpu float64 reference", f"cpu float64 {ours}"),
        ("cpu float32 reference", f"cpu float32 {ours}"),
    ]
    assert Path("results/latest/report.html").is_file()


@pytest.mark.skipif(why_no_plan() is not None, reason="there is no plan on this machine")
def test_two_engines_are_told_apart(run, here, two_devices, monkeypatch):
    """The plan on the CPU beside the reference on a GPU: named in headings, speed-up and proofs; operations that one of
    them runs as one are compared as one."""

    def no_plan_there(name, model, optimizer, settings=None, device=None):
        return make_engine("reference" if device.name == "cuda:0" else name, model, optimizer, settings, device)

    monkeypatch.setattr("bareconv.training.loop.make_engine", no_plan_there)
    outcome = run(*PLAIN, "--json")
    assert outcome.code == 0
    result = outcome.result()
    assert [record["engine"] for record in result["runs"]] == ["plan", "reference"]
    assert re.search(r"^Speed-up of cuda:0 float32 reference over cpu float32 plan: ", outcome.err, re.MULTILINE)
    assert re.search(r"^ +plan +reference\b", outcome.err, re.MULTILINE)
    time = r"[\d.]+ \S+"
    assert re.search(
        rf"^dense1 \+ relu1 +{time} +{time} +[\d.]+× +{time} +{time} +[\d.]+× *$", outcome.err, re.MULTILINE
    )
    assert not re.search("^(flatten1|relu1|dense1 )  ", outcome.err, re.MULTILINE)
    assert ("cpu float64 plan", "cuda:0 float64 reference") in [
        (proof["reference"], proof["candidate"]) for proof in result["parity"]
    ]
    page = Path("results/latest/report.html").read_text(encoding="utf-8")
    assert "The GPU ran the engine reference, the CPU the engine plan" in page


def test_no_gpu_is_said_with_the_reason(run, here):
    reason = why_no_cuda()
    if reason is None:
        pytest.skip("there is a GPU")
    outcome = run("compare", "--quick", "--model", "mlp", "--json")
    assert outcome.code == 0
    assert outcome.err.count(reason) == 1
    result = outcome.result()
    assert f"No GPU run: {reason}." in result["notes"]
    assert result["environment"]["cuda_missing"] == reason
    assert [record["device"] for record in result["runs"]] == ["cpu"]
    assert reason in Path("results/latest/report.html").read_text(encoding="utf-8")


def test_quick_is_one_short_epoch(run, here, no_page):
    (record,) = (result := run("compare", "--quick", "--model", "mlp", "--device", "cpu", "--json").result())["runs"]
    assert (record["epochs"], record["train_images"], record["test_images"]) == (1, 10_000, 2_000)
    assert result["parity"][0]["steps"] == 20
    words = ("--quick", "--epochs", "2", "--limit", "100", "--parity-steps", "1")
    (record,) = (result := run("compare", *words, "--model", "mlp", "--device", "cpu", "--json").result())["runs"]
    assert (record["epochs"], record["train_images"], result["parity"][0]["steps"]) == (2, 100, 1)


def test_two_devices(run, here, two_devices):
    """The same initial weights and the same batches: on the same processor, to the last bit."""
    outcome = run(*QUICK[:-2], *("--precision", "float32", "--precision", "float64") * 2, "--json")
    assert outcome.code == 0
    result = outcome.result()
    runs = {(record["device"], record["precision"]): record for record in result["runs"]}
    assert list(runs) == [("cpu", "float32"), ("cuda:0", "float32"), ("cpu", "float64"), ("cuda:0", "float64")]
    for precision in ("float32", "float64"):
        cpu, gpu = runs["cpu", precision], runs["cuda:0", precision]
        assert cpu["history"]["loss"] == gpu["history"]["loss"]
        assert cpu["confusion"] == gpu["confusion"]
        speedup = rf"Speed-up of cuda:0 {precision} over cpu {precision}: [\d.]+× in training, [\d.]+× in total"
        assert re.search(speedup, outcome.err)
    assert runs["cpu", "float32"]["history"]["loss"] != runs["cpu", "float64"]["history"]["loss"]
    assert [(proof["reference"], proof["candidate"]) for proof in result["parity"]] == [
        ("cpu float32", "cuda:0 float32"),
        ("cpu float64", "cuda:0 float64"),
    ]
    assert all(proof["max_loss_difference"] == proof["final_weight_difference"] == 0 for proof in result["parity"])
    assert "No GPU" not in outcome.err
    assert len(re.findall(r"^ +cpu +cuda:0 *$", outcome.err, re.MULTILINE)) == 2
    assert len(re.findall(r"^dense1( +[\d.]+ \S+ +[\d.]+ \S+ +[\d.]+×){2}$", outcome.err, re.MULTILINE)) == 2


@pytest.mark.cuda
def test_on_a_gpu(run, here):
    outcome = run("compare", "--model", "lenet5", "--limit", "256", "--epochs", "1", "--parity-steps", "10", "--json")
    assert outcome.code == 0
    result = outcome.result()
    assert [record["device"] for record in result["runs"]] == ["cpu", "cuda:0"]
    assert all(proof["passed"] and proof["steps"] == 4 for proof in result["parity"])


def test_a_parity_that_fails(run, here, no_page, monkeypatch):
    monkeypatch.setitem(parity.TOLERANCE, "float32", 1e-30)
    outcome = run(*QUICK, "--json")
    assert outcome.code == 1
    assert not outcome.result()["parity"][0]["passed"]
    assert "FAILED" in outcome.err


def test_without_a_proof(run, here, no_page):
    outcome = run(*QUICK[:-4], "--device", "cpu", "--parity-steps", "0", "--json")
    assert (outcome.code, outcome.result()["parity"]) == (0, [])


def test_the_original_workload(run, here, no_page, train_csv, monkeypatch):
    outcome = run("compare", "--preset", "original", "--data", train_csv, "--validation", "5")
    assert outcome.code == 2
    assert "--validation is set by --preset original" in outcome.complaint()
    assert (compare.ORIGINAL_ROWS, compare.ORIGINAL_HELD_OUT) == (42_000, 1_000)
    monkeypatch.setattr(compare, "ORIGINAL_HELD_OUT", 100)
    words = ("compare", "--preset", "original", "--quick", "--data", train_csv, "--device", "cpu", "--json")
    result = run(*words, "--precision", "float64", "--parity-steps", "2").result()
    (record,) = result["runs"]
    assert (record["model"], record["batch_size"], record["iterations"]) == ("mlp", 200, 50)
    assert (record["optimizer"].partition(",")[0], record["schedule"].partition("(")[0]) == ("SGD(lr=0.1", "Constant")
    assert (record["test_split"], record["test_images"]) == ("validation", 100)
    assert result["parity"][0]["steps"] == 2


def interrupt_at(monkeypatch, step):
    original = Trainer.train_step

    def interrupt(self, number):
        if number == step and self.total_steps > 4:  # not in the warm-up
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, number)

    monkeypatch.setattr(Trainer, "train_step", interrupt)


def test_interrupted_it_reports_what_there_is(run, here, monkeypatch):
    interrupt_at(monkeypatch, 7)
    outcome = run("compare", "--quick", "--model", "mlp", "--device", "cpu", "--json")
    assert outcome.code == 130
    assert "Interrupted: finishing this step, then reporting what there is." in outcome.err
    result = outcome.result()
    (record,) = result["runs"]
    assert (record["iterations"], record["stopped"]) == (8, True)
    assert any("Stopped early" in note for note in result["notes"])
    assert Path("results/latest/report.html").is_file()


def test_interrupted_before_the_first_step(run, here, listing, monkeypatch):
    monkeypatch.setattr(compare, "run_comparison", lambda *_: Comparison([], [], [], None))
    outcome = run(*QUICK, "--json")
    assert outcome.code == 130
    assert (outcome.result()["runs"], outcome.result()["notes"]) == ([], ["Interrupted."])
    assert listing() == []


@pytest.mark.parametrize("output", [[], ["--output", "new/folder"]])
def test_a_loss_that_explodes_leaves_nothing(output, run, here, listing, train_csv):
    words = ("compare", "--model", "lenet5", "--lr", "1e6", "--data", train_csv, "--device", "cpu")
    outcome = run(*words, *output)
    assert outcome.code == 1
    assert re.search(r"became (nan|inf) .*step \d+ .* layer \w+\d;", outcome.complaint())
    assert listing() == ["digits.csv"]


def test_what_was_there_stays(run, here, listing, train_csv):
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("keep me")
    words = ("compare", "--model", "lenet5", "--lr", "1e6", "--data", train_csv, "--device", "cpu", "--output", "mine")
    assert run(*words).code == 1
    assert listing() == ["digits.csv", "mine", "mine/notes.txt"]


@pytest.mark.parametrize("what", ["os.fsync", "bareconv.report.page.write_whole"])
def test_a_full_disk(what, run, here, listing, monkeypatch):
    """Where the result itself could be written, it stays: hours may be in it."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(what, full)
    outcome = run(*QUICK)
    assert outcome.code == 1
    assert re.search(r"results/\S+: could not be written: No space left on device", outcome.complaint())
    assert re.search(r"^training time +\d", outcome.out, re.MULTILINE)  # what was measured is told all the same
    kept = [path for path in listing() if path.endswith("result.json")]
    assert bool(kept) is (what != "os.fsync")
    assert not [path for path in listing() if "tmp" in path or "report.html" in path]
    if not kept:
        assert listing() == []


def test_a_disk_that_is_full_for_large_files(run, here, listing, monkeypatch):
    """Each file is tried, and those that could not be written are named: here the model and the page."""
    small = files.write_whole

    def full(path, content, **options):
        if len(content) > 25_000:
            raise UnwrittenError({path: "No space left on device"})
        return small(path, content, **options)

    for module in (checkpoint, page):
        monkeypatch.setattr(module, "write_whole", full)
    outcome = run(*QUICK, "--output", "out", "--json")
    assert outcome.code == 1
    assert len(outcome.result()["runs"]) == 1
    complaint = outcome.err.splitlines()[-1]
    assert re.fullmatch(
        r"bareconv: out/model.safetensors, out/report.html, .*: could not be written: No space left on device",
        complaint,
    )
    assert "out/result.json" in listing()
    written = [path for path in listing() if path.endswith(".png")]
    assert written
    assert not [path for path in written if path in complaint]
    assert "Wrote" not in outcome.err


@pytest.mark.parametrize(
    ("path", "message"),
    [("file", "'file' is a file"), ("file/below", "--output file/below: cannot write there: Not a directory")],
)
def test_an_output_that_cannot_be(path, message, run, here, listing):
    Path("file").write_text("")
    outcome = run(*QUICK, "--output", path)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.complaint()
    assert listing() == ["file"]


def test_a_latest_that_is_not_ours(run, here, no_page):
    """A folder in the way of results/latest stays, and is told of; the comparison is none the worse for it."""
    Path("results/latest").mkdir(parents=True)
    outcome = run(*QUICK, "--json")
    assert outcome.code == 0
    assert len(outcome.result()["runs"]) == 1
    assert re.search(r"^Warning: results/latest: not made by bareconv", outcome.err, re.MULTILINE)


def test_results_that_cannot_be(run, here, listing):
    Path("results").write_text("")
    outcome = run(*QUICK)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.complaint().startswith("results: no folder for results can be made there")
    assert listing() == ["results"]


def test_names_too_long_for_one_table(capsys):
    """A residual network's operations: forward and backward go below each other where both are too wide."""
    names = [f"residual{i}.body.residual1.conv2" for i in range(3)]
    operations = [{"name": name, "forward_seconds": 1e-3, "backward_seconds": 2e-3} for name in names]
    common = {"precision": "float32", "model": "m", "engine": "e", "batch_size": 1}
    common |= {"images_per_second": 1.0, "iterations": 1}
    runs = [{**common, "device": device, "operations": operations} for device in ("cpu", "cuda:0")]
    screen = Screen({}, False)
    for width, number in ((80, 2), (140, 1)):
        screen.console.width = width
        (group,) = tables.groups(runs)
        made = tables.operations(screen, group)
        assert len(made) == number
        for table in made:
            screen.show(table)
        assert max(map(len, capsys.readouterr().out.splitlines())) <= width
