"""The verbs where there is a GPU, a stand-in for one: who computes in what, and how it is said."""

from __future__ import annotations

import re
from pathlib import Path

import gpu_stand_in
import pytest

from bareconv.bench import engines as bench_engines
from bareconv.bench import gradients
from bareconv.device import get_device
from bareconv.training import why_no_plan

pytestmark = pytest.mark.skipif(why_no_plan() is not None, reason="there is no plan on this machine")

SMALL = ("--model", "mlp", "--limit", "128", "--epochs", "2")
COMPARE = ("compare", *SMALL, "--parity-steps", "3")


@pytest.fixture
def gpu(monkeypatch):
    """What "cuda", "auto" and "all" mean to the verbs."""
    device = gpu_stand_in.install(monkeypatch)

    def get(spec="auto"):
        return device if spec in ("auto", "cuda", "cuda:0") else get_device(spec)

    for verb in ("compare", "check", "explain", "train", "info"):
        monkeypatch.setattr(f"bareconv.cli.{verb}.get_device", get)
    for verb in ("compare", "check"):
        monkeypatch.setattr(f"bareconv.cli.{verb}.all_devices", lambda: [get_device("cpu"), device])
        monkeypatch.setattr(f"bareconv.cli.{verb}.why_no_cuda", lambda: None)
    monkeypatch.setattr("bareconv.bench.compare.why_no_cuda", lambda: None)
    return device


def proved(result):
    return [(proof["reference"], proof["candidate"]) for proof in result["parity"]]


ON_CPU = [("cpu float64 reference", "cpu float64 plan"), ("cpu float32 reference", "cpu float32 plan")]


def test_tuned_is_compared_with_tuned(run, here, gpu):
    outcome = run(*COMPARE, "--json")
    assert outcome.code == 0
    result = outcome.result()
    assert [(one["device"], one["engine"], one["precision"]) for one in result["runs"]] == [
        ("cpu", "plan", "float32"),
        ("cuda:0", "plan", "float32"),
    ]
    assert re.search(r"^cpu \(.*\), float32, engine plan \(.*\):$", outcome.err, re.M)
    assert re.search(r"^cuda:0 \(a stand-in for a GPU\), float32, engine plan \(CUDA, sm_90\):$", outcome.err, re.M)
    assert proved(result) == [
        ("cpu float32 plan", "cuda:0 float32 plan"),
        ("cpu float64 plan", "cuda:0 float64 reference"),
        *ON_CPU,
        ("cuda:0 float32 reference", "cuda:0 float32 plan"),
    ]
    assert not any("two programs" in note for note in result["notes"])
    ours = result["runs"][1]
    assert ours["threads"] is None
    assert [operation["name"] for operation in ours["operations"]] == ["dense1 + relu1", "dense2", "loss"]
    phases = ours["phases"]
    assert set(phases) == {"batch", "forward", "backward", "update", "other", "profiled_steps"}
    assert all(phases[name] > 0 for name in ("batch", "forward", "backward", "update"))
    page = Path("results/latest/report.html").read_text(encoding="utf-8")
    assert "Both ran the engine plan" in page


def test_the_reference_on_both(run, here, gpu):
    result = run(*COMPARE, "--engine", "reference", "--json").result()
    assert [one["engine"] for one in result["runs"]] == ["reference", "reference"]
    assert proved(result) == [("cpu float32", "cuda:0 float32"), ("cpu float64", "cuda:0 float64")]
    assert "Both ran the engine reference" in Path("results/latest/report.html").read_text(encoding="utf-8")


def test_bfloat16_is_compared_with_the_cpu_in_float32(run, here, gpu):
    words = [word for name in ("float32", "tf32", "bfloat16", "bfloat16") for word in ("--precision", name)]
    outcome = run(*COMPARE, *words, "--json")
    assert outcome.code == 0
    result = outcome.result()
    assert [(one["device"], one["precision"]) for one in result["runs"]] == [
        ("cpu", "float32"),
        ("cuda:0", "float32"),
        ("cuda:0", "tf32"),
        ("cuda:0", "bfloat16"),
    ]
    assert proved(result)[4:] == [
        ("cuda:0 float32 reference", "cuda:0 float32 plan"),
        ("cuda:0 float32 reference", "cuda:0 tf32 plan"),
        ("cuda:0 float32 reference", "cuda:0 bfloat16 plan"),
    ]
    assert [proof["tolerance"] for proof in result["parity"][4:]] == [1e-3, 5e-2, 1e-1]
    assert re.search(r"^Speed-up of cuda:0 bfloat16 over cpu float32: ", outcome.err, re.M)


def test_one_precision_that_the_cpu_has_not(run, here, gpu):
    result = run(*COMPARE, "--precision", "bfloat16", "--parity-steps", "0", "--json").result()
    assert [one["precision"] for one in result["runs"]] == ["float32", "bfloat16"]
    page = Path("results/latest/report.html").read_text(encoding="utf-8")
    assert "the GPU in bfloat16, the CPU in float32" in page


def test_what_is_tuned_on_one_side_only_is_said(run, here, gpu):
    """In float64 there is no plan on a GPU."""
    outcome = run(*COMPARE, "--precision", "float64", "--parity-steps", "0", "--json")
    result = outcome.result()
    assert [one["engine"] for one in result["runs"]] == ["plan", "reference"]
    (note,) = [note for note in result["notes"] if "two programs" in note]
    assert note.startswith("cpu float64 ran the tuned engine plan, cuda:0 float64 the reference: ")
    assert re.search(r"^Warning: no plan on cuda:0 \(not in float64\): the engine is reference$", outcome.err, re.M)
    page = Path("results/latest/report.html").read_text(encoding="utf-8")
    assert "a tuned program beside one that is not" in page


def test_a_precision_that_nobody_has(run, here):
    outcome = run(*COMPARE, "--precision", "tf32", "--device", "cpu")
    assert outcome.code == 2
    assert outcome.complaint().startswith("precision tf32: only the plan on a CUDA GPU computes in it, and this is cpu")
    outcome = run("train", *SMALL, "--precision", "tf32", "--device", "cpu")
    assert outcome.code == 2
    assert outcome.complaint().startswith("precision tf32: only the plan on a CUDA GPU")


def test_train(run, here, gpu):
    outcome = run("train", *SMALL, "--precision", "bfloat16", "--json")
    assert outcome.code == 0
    (one,) = outcome.result()["runs"]
    assert (one["engine"], one["precision"], one["iterations"]) == ("plan", "bfloat16", 4)
    assert "; bfloat16, engine plan (CUDA, sm_90)\n" in outcome.err
    assert "compiled 3 kernels" in outcome.err


def test_explain(run, here, gpu):
    outcome = run("explain", "--model", "mlp", "--device", "cuda", "--precision", "tf32", "--batch-size", "8", "--json")
    assert outcome.code == 0
    plan = outcome.result()["plan"]
    assert (plan["device"], plan["precision"], plan["threads"]) == ("cuda:0", "tf32", None)
    assert [row["bytes"] for row in plan["rows"]][:2] == [784, 800]
    assert all(row["seconds"] == 1e-6 for row in plan["rows"])
    lines = outcome.err.splitlines()
    assert lines[0] == "mlp: sm_90, tf32"
    assert re.fullmatch(r"phase +layers +kernel +how +FLOPs/image +bytes/image +time +FLOP/s +bytes/s", lines[1])
    assert "waiting" not in outcome.err
    assert re.search(r"^20 steps, 7.00 µs each; 4,710 FLOPs an image, ", outcome.err, re.M)


def test_explain_in_a_precision_that_is_not_there(run, here, gpu):
    outcome = run("explain", "--model", "mlp", "--device", "cuda", "--precision", "float64")
    assert (outcome.code, outcome.complaint()) == (2, "there is no plan on cuda:0: not in float64")


def test_check(run, here, gpu, monkeypatch):
    monkeypatch.setattr("bareconv.cli.check.check_all", lambda *_: [gradients.Check("conv", "cuda:0", 0.0, 3)])
    monkeypatch.setattr(bench_engines, "FURTHER", {})
    outcome = run("check", "--model", "mlp", "--device", "cuda", "--json")
    assert outcome.code == 0
    assert proved(outcome.result()) == [
        ("cuda:0 float32 reference", f"cuda:0 {precision} plan") for precision in ("float32", "tf32", "bfloat16")
    ]
    assert "In lockstep with the reference on cuda:0:" in outcome.err
    assert "3 of 3 within the tolerance of 10⁻³ in float32, 5.0×10⁻² in tf32, 10⁻¹ in bfloat16" in outcome.err


def test_info(run, here, gpu):
    assert "Engine on the GPU: plan (CUDA graphs; float32, tf32 or bfloat16)" in run("info").out
