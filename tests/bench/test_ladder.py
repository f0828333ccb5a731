"""The ladder: what it checks, what it times, and what it makes of it."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from bareconv import ops
from bareconv.bench import results
from bareconv.bench.ceilings import Peak, measured_peak
from bareconv.bench.ladder import climb, ladder, measure_peaks, relative_error
from bareconv.bench.problems import ConvProblem, StepProblem, Task
from bareconv.bench.rungs import CONV_RUNGS, Rung
from bareconv.bench.step_rungs import step_rungs
from bareconv.device import get_device
from bareconv.errors import BareconvError, UsageError
from bareconv.ops.windows import Window
from bareconv.training import ENGINES

SMALL = ConvProblem(4, (9, 8, 3), 5, Window((3, 3)), threads=2)
PEAKS = [Peak("cpu", 1, 1e9, "as if"), Peak("cpu", 2, 2e9, "as if")]


def rung(name, run, result=None, **more):
    return Rung(name, "what it does", lambda problem: Task(run, result or problem.reference, **more))


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize(
    "problem",
    [
        {},
        {"window": Window((3, 3), padding=(1, 1))},
        {"window": Window((5, 2), (2, 3), (2, 0), (1, 2)), "in_shape": (11, 10, 30)},
        {"batch_size": 1, "in_shape": (3, 3, 1)},
    ],
    ids=["plain", "padded", "odd", "one window"],
)
def test_every_rung_computes_the_convolution(problem, precision):
    usual = {"batch_size": 3, "in_shape": (9, 8, 4), "filters": 6, "window": Window((3, 3)), "threads": 2}
    found = climb(ConvProblem(**{**usual, **problem}, precision=precision), CONV_RUNGS, PEAKS, 0.01)
    status = {entry["name"]: entry["status"] for entry in found["rungs"] if entry["device"] == "cpu"}
    assert "wrong" not in status.values()
    for name in ("naive loops", "im2col", "shifted", "FFT", "tuned NumPy", "SIMD"):
        assert status[name] == "measured"
    assert status["Winograd"] == ("unavailable" if "stride" in found["description"] else "measured")


@pytest.mark.parametrize("name", ["lenet5", "small", "mlp"])
def test_every_engine_takes_the_same_step(name):
    found = climb(StepProblem(name, batch_size=5, threads=2), step_rungs(), PEAKS, 0.01)
    cpu = {entry["name"]: entry for entry in found["rungs"] if entry["device"] == "cpu"}
    measured = {name for name, entry in cpu.items() if entry["status"] == "measured"}
    assert measured >= {"shifted", *(f"{engine} engine" for engine in ENGINES)}
    assert ("Winograd" in measured) == (name != "lenet5")  # which has windows of 5 x 5
    assert all(cpu[name]["error"] < 1e-4 for name in measured)
    assert all(entry["status"] != "wrong" for entry in cpu.values())
    assert all(cpu[name]["reason"] for name in ("naive loops", "FFT"))


@pytest.mark.cuda
def test_rungs_on_the_gpu():
    peaks = measure_peaks("float32", 1, gpu=True)
    layer = climb(SMALL, [rung for rung in CONV_RUNGS if rung.device != "cpu"], peaks, 0.1)
    step = climb(StepProblem("lenet5", 5), [rung for rung in step_rungs() if rung.device != "cpu"], peaks, 0.1)
    for entry in (*layer["rungs"], *step["rungs"]):
        assert entry["status"] == "measured"
        assert entry["peak_share"] > 0


def test_reference_is_the_definition():
    x, w, b = (array.astype("float64") for array in SMALL.arrays)
    expected = ops.conv.conv2d_naive(x, w, b, SMALL.window)
    np.testing.assert_allclose(SMALL.reference(), expected, rtol=1e-12)
    assert SMALL.flops_per_image == 2 * (7 * 6 * 5) * (3 * 3 * 3)
    assert SMALL.arrays[0].dtype == "float32"


def test_figures():
    """A rung that sleeps 5 ms and does half of the work: 10 ms for the batch."""
    sleeper = rung("sleeper", lambda: time.sleep(5e-3), share=0.5, flops=7.0)
    (entry,) = climb(SMALL, [sleeper], PEAKS, 0.2)["rungs"]
    assert entry["status"] == "measured"
    assert len(entry["samples"]) == 7
    assert min(entry["samples"]) >= 5e-3
    assert entry["seconds"] == pytest.approx(2 * sorted(entry["samples"])[3])
    assert entry["images_per_second"] == pytest.approx(4 / entry["seconds"])
    assert entry["effective_flops_per_second"] == pytest.approx(4 * SMALL.flops_per_image / entry["seconds"])
    assert entry["executed_flops_per_second"] == pytest.approx(7 / entry["seconds"])
    assert entry["peak_share"] == pytest.approx(7 / entry["seconds"] / 2e9)  # of all threads


def test_rungs_take_turns():
    turns = []
    climb(SMALL, [rung(name, lambda name=name: turns.append(name)) for name in "ab"], PEAKS, 1e-9)
    assert turns[-6:] == ["a", "b"] * 3


def test_a_wrong_rung_is_not_timed():
    """Nor one whose result is no number, or has another shape; each says so."""
    runs = []
    broken = [
        rung("off", lambda: runs.append(1), lambda: SMALL.reference() * (1 + 2e-5)),
        rung("nan", lambda: runs.append(1), lambda: SMALL.reference() * math.nan),
        rung("shape", lambda: runs.append(1), lambda: SMALL.reference()[:1]),
    ]
    found = climb(SMALL, broken, PEAKS, 0.01)["rungs"]
    assert [entry["status"] for entry in found] == ["wrong"] * 3
    assert found[0]["error"] == pytest.approx(2e-5, rel=1e-3)
    assert [entry["error"] for entry in found[1:]] == [None, None]
    assert len(runs) == 3
    assert all("seconds" not in entry for entry in found)


def test_a_rung_that_cannot_run_says_why():
    def refuse(problem):
        raise UsageError("not today")

    absent = Rung("absent", "nothing", refuse, lambda problem: "there is none")
    found = climb(SMALL, [absent, Rung("refused", "nothing", refuse)], PEAKS, 0.01)["rungs"]
    assert [(entry["status"], entry["reason"]) for entry in found] == [
        ("unavailable", "there is none"),
        ("unavailable", "not today"),
    ]


def test_relative_error():
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 4.5])) == pytest.approx(0.5 / math.hypot(3, 4.5))
    assert relative_error(np.zeros(2), np.zeros(2)) == 0


def test_winograd_counts_fewer_operations_and_naive_a_share():
    found = {entry["name"]: entry for entry in climb(SMALL, CONV_RUNGS, PEAKS, 0.01)["rungs"]}
    winograd = found["Winograd"]
    assert winograd["executed_flops_per_second"] / winograd["effective_flops_per_second"] == pytest.approx(
        4 * 3 * 16 / (7 * 6 * 9)  # 4 x 3 tiles of 16 products; 7 x 6 outputs of 9
    )
    assert found["naive loops"]["share"] == pytest.approx(1 / (4 * 7))  # one row of one image


def test_what_a_step_executes_where_it_is_not_the_direct_method():
    """The plan leaves out dead gradients, Winograd products: neither has executed what the effective rate counts."""
    problem = StepProblem("basic", batch_size=2, threads=1)
    rungs = [one for one in step_rungs() if one.name in ("reference engine", "Winograd", "plan engine")]
    found = {entry["name"]: entry for entry in climb(problem, rungs, PEAKS, 0.01)["rungs"]}

    def share(name):
        return found[name]["executed_flops_per_second"] / found[name]["effective_flops_per_second"]

    assert share("reference engine") == 1
    assert "counted" not in found["reference engine"]
    spared = 2 * (26 * 26 * 32 * 1 + 24 * 24 * 64 * 32) * (9 - 4)  # multiply-adds of two convolutions, 4 of 9 left
    assert share("Winograd") == pytest.approx(1 - spared / problem.flops_per_image)
    assert found["Winograd"]["counted"]
    if found["plan engine"]["status"] == "measured":
        assert 0.1 < share("plan engine") < 0.7
        assert found["plan engine"]["counted"]


def test_peak_is_a_plausible_number():
    peak = measured_peak(get_device("cpu"), "float32", 1, seconds=0.05)
    assert 1e8 < peak.flops_per_second < 1e13
    assert (peak.device, peak.threads) == ("cpu", 1)


def test_more_images_than_there_are():
    with pytest.raises(BareconvError, match="MNIST has"):
        StepProblem("mlp", batch_size=70_000).reference()


def test_section_fits_the_schema():
    problems = [climb(SMALL, CONV_RUNGS, PEAKS, 0.01)]
    results.validate(results.new("ladder", {}, ladder=ladder(problems, PEAKS)))
    problems[0]["rungs"][0]["status"] = "fine"
    with pytest.raises(BareconvError, match=r"ladder.problems\[0\].rungs\[0\].status: expected one of"):
        results.validate(results.new("ladder", {}, ladder=ladder(problems, PEAKS)))
