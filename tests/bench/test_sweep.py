"""Sweeps of stand-ins whose cost is known: curves, fits, crossings; what fails, what there is no time for."""

from __future__ import annotations

import sys
import tempfile
import threading
import time

import numpy as np
import pytest
from bench_stand_ins import QUICK
from growing_stand_in import growing as candidate

from bareconv import host
from bareconv.bench import interleave, results, synthetic
from bareconv.bench import sweep as sweeping
from bareconv.bench.axes import AXES
from bareconv.bench.deadline import Deadline
from bareconv.bench.interleave import Listener, our_candidate
from bareconv.bench.sweep import crossovers, is_of_time, measure_sweep, names, peer_candidate
from bareconv.bench.workload import Workload
from bareconv.errors import UsageError

CPU = candidate("2e-5 * batch", fixed=1e-5)
GPU = candidate("1e-6 * batch", fixed=2e-4, device="cuda:0")  # the same as the CPU at a batch size of 10
WORK = Workload("mlp", (6, 6, 1), batch_size=4)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert not list(tmp_path.iterdir())


def sweep(values, *candidates, axis="batch_size", work=WORK, seconds=60.0, listener=None, **more):
    deadline = Deadline.after(seconds)
    measured = measure_sweep(axis, values, work, candidates, deadline, listener or Listener(), QUICK, **more)
    document = results.new("bareconv bench sweep", {}, environment=ENVIRONMENT, sweeps=[measured])
    results.validate(document)
    return document["sweeps"][0]


ENVIRONMENT = results.new("x", {})["environment"]


def figures(curve):
    return {point["value"]: point["error"] or point["images_per_second"]["value"] for point in curve["points"]}


def test_the_gpu_overtakes_the_cpu():
    lines: list[str] = []
    begun = time.monotonic()
    found = sweep([1, 4, 16, 64], CPU, GPU, on_point=lines.append)
    assert time.monotonic() - begun < 20  # every median is known soon: the rest of the time is not spent
    cpu, gpu = found["curves"]
    for curve, fixed, each in ((cpu, 1e-5, 2e-5), (gpu, 2e-4, 1e-6)):
        for value, rate in figures(curve).items():
            assert rate == pytest.approx(value / (fixed + each * value), rel=0.02)
        for point in curve["points"]:
            samples = point["samples"]
            steps = np.divide(samples["seconds"], samples["steps"])
            assert point["step_seconds"]["value"] == pytest.approx(np.median(steps))
            assert len(steps) >= 10
            assert (point["stable"], point["peak_memory_bytes"]) == (True, 3000)
        fit = curve["fit"]
        assert fit["fixed_seconds"]["value"] == pytest.approx(fixed, rel=0.05)
        assert fit["each_seconds"]["value"] == pytest.approx(each, rel=0.05)
        assert fit["each_seconds"]["low"] <= fit["each_seconds"]["value"] <= fit["each_seconds"]["high"]
        assert fit["largest_error"] < 0.02
        assert fit["text"].endswith(" an image")
    assert (cpu["device"], cpu["threads"], gpu["device"], gpu["threads"]) == ("cpu", 1, "cuda:0", None)
    (crossing,) = found["crossovers"]
    assert (crossing["ahead_below"], crossing["ahead_above"]) == (0, 1)
    # Between the points at 4 and 16, straight in logarithms: where the line through these ratios passes through 1.
    at_4, at_16 = (np.log((1e-5 + 2e-5 * n) / (2e-4 + 1e-6 * n)) for n in (4, 16))
    assert crossing["value"] == pytest.approx(4 * 4 ** (-at_4 / (at_16 - at_4)), rel=0.05)
    assert crossing["low"] <= crossing["value"] <= crossing["high"]
    assert crossing["text"].startswith("the GPU overtakes the CPU at a batch size of ")
    assert (found["axis"], found["model"], found["batch_size"], found["image_shape"]) == (
        "batch_size",
        "mlp",
        4,
        [6, 6, 1],
    )
    assert [line.partition(":")[0] for line in lines] == [f"batch size {value}" for value in (1, 64, 4, 16)]
    assert "the CPU 3" in lines[0]


def test_what_fails_at_a_point_goes_on_at_the_others():
    found = sweep([1, 2, 8, 32], CPU, candidate("1e-6 * batch", 2e-4, "cuda:0", trouble="batch in (2, 32)"))
    cpu, gpu = map(figures, found["curves"])
    assert [value for value, figure in gpu.items() if isinstance(figure, str)] == [2, 32]
    assert gpu[2] == "OutOfMemoryError: no room for it"
    assert not is_of_time(gpu[2])
    assert not any(isinstance(figure, str) for figure in cpu.values())
    assert found["curves"][0]["fit"] is not None
    assert found["curves"][1]["fit"] is None  # of two points
    assert len(found["crossovers"]) == 1


def test_what_does_not_fit_the_model_is_said_at_its_point():
    work = Workload("lenet5", (12, 12, 1), batch_size=4)
    found = sweep([4, 12, 16], candidate("1e-6 * side**2", 1e-5), axis="image_size", work=work)
    (curve,) = found["curves"]
    by_value = figures(curve)
    assert "does not fit" in by_value[4]
    assert by_value[12] == pytest.approx(4 / (1e-5 + 1e-6 * 144), rel=0.02)
    assert found["crossovers"] == []


def test_image_size_and_width():
    found = sweep([6, 8, 10, 12], candidate("1e-6 * side**2", 1e-5), axis="image_size")
    fit = found["curves"][0]["fit"]
    assert (fit["power"], fit["each_seconds"]["value"]) == (2, pytest.approx(1e-6, rel=0.05))
    assert fit["text"].endswith("a pixel of each image")
    found = sweep([0.5, 1, 2.5], candidate("1e-5"), axis="width")
    assert [point["value"] for point in found["curves"][0]["points"]] == [0.5, 1, 2.5]


def test_threads_are_in_the_environment():
    found = sweep([1, 2, 4], candidate("8e-4 / threads", 1e-4), axis="threads")
    (curve,) = found["curves"]
    assert curve["threads"] is None
    assert curve["fit"]["power"] == -1
    assert curve["fit"]["fixed_seconds"]["value"] == pytest.approx(1e-4, rel=0.05)
    assert curve["fit"]["each_seconds"]["value"] == pytest.approx(8e-4, rel=0.05)


def test_a_deadline_leaves_a_coarse_curve_and_not_a_half_one(monkeypatch):
    """The clock is one of which getting ready takes ten seconds, and all else nothing."""
    now, prepare = [0.0], interleave.prepare

    def slow(*arguments):
        now[0] += 10
        return prepare(*arguments)

    monkeypatch.setattr(interleave, "prepare", slow)
    monkeypatch.setattr(sweeping, "at_once", lambda *_: 1)
    deadline = Deadline.after(45, lambda: now[0])
    found = measure_sweep("batch_size", [1, 2, 4, 8, 16, 32, 64], WORK, [CPU], deadline, Listener(), QUICK)
    by_value = figures(found["curves"][0])
    assert [value for value, figure in by_value.items() if not isinstance(figure, str)] == [1, 2, 8, 64]
    assert all(is_of_time(figure) for figure in by_value.values() if isinstance(figure, str))
    assert found["curves"][0]["fit"] is not None


def test_points_get_ready_side_by_side(monkeypatch):
    """Two points of two candidates wait for each other: one after another, none would get ready."""
    monkeypatch.setattr(sweeping, "at_once", lambda *_: 5)
    together, prepare = threading.Barrier(4, timeout=10), interleave.prepare

    def meeting(*arguments):
        together.wait()
        return prepare(*arguments)

    monkeypatch.setattr(interleave, "prepare", meeting)
    found = sweep([1, 4, 16, 64], CPU, GPU)
    for curve, fixed, each in zip(found["curves"], (1e-5, 2e-4), (2e-5, 1e-6), strict=True):
        for value, rate in figures(curve).items():
            assert rate == pytest.approx(value / (fixed + each * value), rel=0.02)


def test_of_several_points_each_has_its_own_trouble(monkeypatch):
    monkeypatch.setattr(sweeping, "at_once", lambda *_: 6)
    work = Workload("lenet5", (12, 12, 1), batch_size=4)
    growing = [candidate("1e-6 * side**2", 1e-5, trouble=trouble) for trouble in ("False", "True")]
    plain, troubled = sweep([4, 12, 16], *growing, axis="image_size", work=work)["curves"]
    assert "does not fit" in figures(plain)[4]
    assert [not isinstance(figures(plain)[side], str) for side in (12, 16)] == [True, True]
    assert "does not fit" in figures(troubled)[4]
    assert [figures(troubled)[side] for side in (12, 16)] == ["OutOfMemoryError: no room for it"] * 2


def test_nobody_waits_for_what_is_never_ready():
    slow = candidate("1e-6 * batch", trouble="__import__('time').sleep(60)")
    begun = time.monotonic()
    found = sweep([1, 2], slow, CPU, seconds=1.5)
    assert time.monotonic() - begun < 4
    errors = list(figures(found["curves"][0]).values())
    assert all(is_of_time(error) for error in errors)
    assert found["crossovers"] == []


class Stopping(Listener):
    """Asks to stop after so many blocks."""

    def __init__(self, most):
        self.blocks, self.most, self.told = 0, most, []

    def block(self, side, left):
        self.blocks += 1

    def stage(self, text):
        self.told.append(text)

    def measuring(self, text, seconds):
        self.told.append(text)

    def should_stop(self):
        return self.blocks >= self.most


def test_a_request_to_stop_keeps_what_was_measured():
    listener = Stopping(most=26)  # ten blocks of each at the first point, three at the second
    found = sweep([1, 2, 4], CPU, GPU, listener=listener)
    for curve in found["curves"]:
        by_value = figures(curve)
        assert by_value[2] == "not measured: stopped by request"
        assert not any(isinstance(by_value[value], str) for value in (1, 4))
    assert "Starting plan, batch size 1" in listener.told
    assert "Measuring batch size 4" in listener.told


def test_stopped_before_there_is_anything():
    found = sweep([1, 2, 4], CPU, GPU, listener=Stopping(most=0))
    assert {figure for curve in found["curves"] for figure in figures(curve).values()} == {
        "not measured: stopped by request"
    }


def test_a_library_that_computes_something_else_is_not_shown():
    other = candidate("1e-6 * batch", name="abacus", losses=[9.0] * 5, ours=False)
    same = candidate("1e-6 * batch", name="slate", ours=False)
    found = sweep([1, 2, 4], CPU, other, same)
    ours, wrong, right = found["curves"]
    assert all("it computes something else" in figure for figure in figures(wrong).values())
    assert not any(isinstance(figure, str) for figure in figures(right).values())
    assert (ours["ours"], right["ours"], right["name"]) == (True, False, "slate")
    assert [(one["ahead_below"], one["ahead_above"]) for one in found["crossovers"]] == [(2, 2)]
    assert "slate is ahead of plan" in found["crossovers"][0]["text"]


def test_images_are_written_once_and_removed(monkeypatch):
    written, grow = [], synthetic.ImageFile.grow

    def growing(self, images, *more):
        before = self.pieces
        done = grow(self, images, *more)
        written.append((images, self.pieces - before))
        return done

    monkeypatch.setattr(synthetic.ImageFile, "grow", growing)
    monkeypatch.setattr(synthetic, "PIECE_BYTES", 36 * 64)
    listener = Stopping(most=10**6)
    found = sweep([100, 200, 1000], candidate("1e-5"), axis="images", listener=listener)
    assert not any(isinstance(figure, str) for figure in figures(found["curves"][0]).values())
    # Told of twice: while they are written, and again when the job is, by when all are there.
    assert [one for one in written if one[1]] == [(100, 2), (1000, 14)]
    assert "Writing image 64 of 100, number of images 100" in listener.told


def test_too_little_room_is_said_at_its_point(monkeypatch):
    monkeypatch.setattr(synthetic, "MARGIN_BYTES", 1 << 60)
    found = sweep([100, 200], candidate("1e-5"), axis="images")
    for figure in figures(found["curves"][0]).values():
        assert "are free: give a folder with more room" in figure


def test_no_time_to_write_the_images(monkeypatch):
    monkeypatch.setattr(synthetic.ImageFile, "grow", lambda self, images, tell, should_stop: False)
    found = sweep([100, 200], candidate("1e-5"), axis="images")
    assert all(is_of_time(figure) for figure in figures(found["curves"][0]).values())


def test_what_a_reader_should_know_of_the_images(monkeypatch):
    monkeypatch.setattr(sweeping, "lies_in_memory", lambda folder: True)
    monkeypatch.setattr(host, "memory_bytes", lambda: 36 * 150)
    found = sweep([100, 200], candidate("1e-5"), axis="images")
    tmpfs, large = found["notes"]
    assert "lies in memory" in tmpfs
    assert large.startswith("200 images take 7.03 KiB, more than the memory of 5.27 KiB")


def test_a_folder_may_be_given(tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    seen = []
    sweep([1, 2], CPU, folder=given, on_point=lambda text: seen.append(len(list(given.iterdir()))))
    assert seen == [1, 1]
    assert not list(given.iterdir())
    given.rmdir()


def test_what_is_no_value():
    with pytest.raises(UsageError, match="batch size 1.5: expected a whole number"):
        sweep([1, 1.5], CPU)


@pytest.mark.parametrize(
    ("curves", "called"),
    [
        ([("plan", "cpu", "float32"), ("plan", "cuda:0", "float32")], ["the CPU", "the GPU"]),
        ([("plan", "cpu", "float32"), ("plan", "cuda:0", "bfloat16")], ["the CPU", "the GPU"]),
        (
            [("plan", "cpu", "float32"), ("plan", "cuda:0", "float32"), ("plan", "cuda:0", "bfloat16")],
            ["the CPU", "the GPU in float32", "the GPU in bfloat16"],
        ),
        ([("plan", "cpu", "float32"), ("tuned", "cpu", "float32")], ["plan", "tuned"]),
        (
            [("plan", "cpu", "float32"), ("pytorch", "cpu", "float32"), ("plan", "cuda:1", "float32")],
            ["plan on the CPU", "pytorch on the CPU", "plan on the GPU"],
        ),
        ([("plan", "cuda:0", "float32"), ("plan", "cuda:1", "float32")], ["cuda:0", "cuda:1"]),
        ([("plan", "cpu", "float32")], ["plan"]),
        ([("plan", "cpu", "float32"), ("plan", "cpu", "float64")], ["plan in float32", "plan in float64"]),
    ],
)
def test_curves_are_called_by_what_tells_them_apart(curves, called):
    keys = ("name", "device", "precision")
    assert names([{**dict(zip(keys, one, strict=True)), "variant": ""} for one in curves]) == called


def test_crossovers_are_of_points_that_both_have():
    def curve(name, rates):
        points = [
            {"value": value, "error": None, "samples": {"images": [rate] * 9, "seconds": [1.0] * 9}}
            for value, rate in rates.items()
        ]
        return {"name": name, "variant": "", "device": "cpu", "precision": "float32", "points": points}

    curves = [curve("a", {1: 10, 4: 10}), curve("b", {1: 5, 4: 20}), curve("c", {9: 3})]
    (found,) = crossovers(AXES["batch_size"], curves)
    assert (found["ahead_below"], found["ahead_above"], found["value"]) == (0, 1, pytest.approx(2))
    assert found["text"] == "b overtakes a at a batch size of 2"


def test_a_peer_is_the_variant_that_is_fast_and_takes_no_compiling():
    for device, precision, variant in (
        ("cpu", "float32", "channels_last eager"),
        ("cuda:0", "float32", "channels_last graph"),
        ("cuda:0", "bfloat16", "channels_last graph autocast"),
    ):
        work = Workload("mlp", (6, 6, 1), precision=precision)
        found = peer_candidate("pytorch", sys.executable, device, work)
        assert (found.name, found.variant, found.ours) == ("pytorch", variant, False)
        assert found.options.get("device", "cpu") == device
    assert peer_candidate("dezero", sys.executable, "cpu", WORK).variant == ""


def test_our_engine_trains_from_a_mapped_file(monkeypatch):
    """The whole way, with a real process."""
    for name, value in (("ENOUGH", 4), ("NARROW", 10.0), ("LONGEST", 0.05)):
        monkeypatch.setattr(interleave, name, value)
    found = sweep([64, 500], our_candidate("reference", "cpu", 1), axis="images", seconds=20)
    for point in found["curves"][0]["points"]:
        assert point["error"] is None
        assert point["images_per_second"]["value"] > 100
    assert found["curves"][0]["name"] == "reference"
