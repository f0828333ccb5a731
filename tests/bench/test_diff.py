"""Results laid side by side: what is matched with what, when it is refused, what the machine's own pace does to it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import bench_samples
import numpy as np
import pytest

from bareconv.bench import results
from bareconv.bench.alike import differences
from bareconv.bench.diff import Source, diff, is_refused, is_regression, listed
from bareconv.bench.measurements import measurements
from bareconv.bench.pace import paces
from bareconv.errors import UsageError

KEPT = Path(__file__).parents[2] / "benchmarks/results"


def side_by_side(before, after, **options):
    sources = [
        [Source(Path(name), one) for one in (side if isinstance(side, list) else [side])]
        for name, side in (("before.json", before), ("after.json", after))
    ]
    made = diff(*sources, **options)
    results.validate(results.new("bench diff", {}, environment=bench_samples.environment(gpu=False), diff=made))
    return made


def slowed(result, times, *, only=lambda steady: True, seed=1):
    """The same machine once more, another process: every block takes so many times as long."""
    rng = np.random.default_rng(seed)
    copied = copy.deepcopy(result)
    for holder in _throughputs(copied):
        if only(holder):
            samples = holder["throughput"]["samples"] if "throughput" in holder else holder["samples"]
            wobble = times * np.exp(0.004 * rng.normal(size=len(samples["seconds"])))
            samples["seconds"] = [float(s * w) for s, w in zip(samples["seconds"], wobble, strict=True)]
    return copied


def _throughputs(result):
    yield from (run for run in result["runs"] if "throughput" in run)
    yield from (c for part in result.get("peers", []) for c in part["candidates"] if "throughput" in c)
    yield from (
        point
        for sweep in result.get("sweeps", [])
        for curve in sweep["curves"]
        for point in curve["points"]
        if "samples" in point
    )


def verdicts(made, **wanted):
    chosen = [one for one in made["measurements"] if all(one.get(name) == value for name, value in wanted.items())]
    assert chosen
    return {one["verdict"] for one in chosen}


# --- What is matched ------------------------------------------------------------------------------------------------


def test_measurements_of_a_result():
    result = bench_samples.with_gpu()
    found = measurements(result)
    keys = [one.key for one in found]
    for run in result["runs"]:
        threads = run["throughput"]["threads"] if run["device"] == "cpu" else None
        matching = [
            k
            for k in keys
            if (k.part, k.name, k.precision, k.threads) == ("throughput", "plan", run["precision"], threads)
            and k.device == run["device"].partition(":")[0]
        ]
        assert matching
    points = [p for s in result["sweeps"] for c in s["curves"] for p in c["points"] if "images_per_second" in p]
    assert sum(key.part == "sweep" for key in keys) == len(points)
    wide = next(key for key in keys if key.axis == "image_size")
    assert (wide.batch_size, wide.part) == (64, "sweep")
    assert all(key.batch_size == key.value for key in keys if key.axis == "batch_size")
    one = next(one for one in found if one.key.part == "throughput")
    samples = result["runs"][0]["throughput"]["samples"]
    assert one.rates == pytest.approx([i / s for i, s in zip(samples["images"], samples["seconds"], strict=True)])


def test_measurements_of_a_result_that_was_kept():
    """Of version 1: ours among the runs and beside the peers are the same blocks, and count once."""
    result = results.read(KEPT / "peers-2-cores.json")
    found = measurements(result)
    assert len([one for one in found if one.ours]) == len(result["runs"])
    assert len(found) == sum("throughput" in c for part in result["peers"] for c in part["candidates"])
    ladder = measurements(results.read(KEPT / "ladder-2-cores.json"))
    assert {one.key.part for one in ladder} == {"ladder"}
    assert len({one.key for one in ladder}) == len(ladder) > 10


def test_a_gpu_by_its_kind_where_there_is_one():
    result = bench_samples.throughput_only()
    assert {one.key.device for one in measurements(bench_samples.with_gpu())} == {"cpu", "cuda"}
    for number, run in enumerate(result["runs"]):
        run["device"] = f"cuda:{number}"
    assert {one.key.device for one in measurements(result)} == {"cuda:0", "cuda:1"}


# --- Verdicts -------------------------------------------------------------------------------------------------------


def test_the_same_machine_once_more():
    result = bench_samples.throughput_only()
    made = side_by_side(result, slowed(result, 1.0))
    assert verdicts(made) == {"same"}
    assert not is_regression(made)
    assert not is_refused(made)
    assert made["differences"] == made["machine"] == made["only_baseline"] == made["only_results"] == []
    mean = made["geometric_mean"]
    assert mean["low"] < 1 < mean["high"]
    assert mean["value"] == pytest.approx(1, abs=0.01)


def test_one_that_became_slower():
    result = bench_samples.throughput_only()
    made = side_by_side(result, slowed(result, 1.3, only=lambda one: one["batch_size"] == 256))
    assert is_regression(made)
    slow, same = (next(m for m in made["measurements"] if m["batch_size"] == size) for size in (256, 64))
    assert (slow["verdict"], same["verdict"]) == ("slower", "same")
    assert slow["ratio"]["value"] == pytest.approx(1 / 1.3, rel=0.01)
    assert slow["ratio"]["low"] < 1 / 1.3 < slow["ratio"]["high"] < 0.95
    assert slow["result"]["value"] == pytest.approx(slow["baseline"]["value"] / 1.3, rel=0.01)
    assert made["geometric_mean"]["value"] == pytest.approx(1.3**-0.5, rel=0.01)
    assert verdicts(side_by_side(slowed(result, 1.3), result)) == {"faster"}
    assert side_by_side(result, slowed(result, 1.3), margin=0.4)["measurements"][0]["verdict"] == "same"


def test_several_results_of_each_side():
    result = bench_samples.throughput_only()
    single = side_by_side(result, slowed(result, 1.08))
    several = side_by_side(
        [slowed(result, 1.0, seed=s) for s in range(5)], [slowed(result, 1.08, seed=s) for s in range(5, 10)]
    )
    assert verdicts(several) == {"slower"}
    assert len(several["baseline"]) == len(several["results"]) == 5
    widths = [
        one["measurements"][0]["ratio"]["high"] - one["measurements"][0]["ratio"]["low"] for one in (single, several)
    ]
    assert widths[1] < 0.7 * widths[0]


def test_what_one_side_has_alone():
    result = bench_samples.throughput_only()
    fewer = copy.deepcopy(result)
    fewer["runs"] = fewer["runs"][:1]
    made = side_by_side(result, fewer)
    assert len(made["measurements"]) == 1
    assert made["only_baseline"] == ["basic, batch 256, float32, cpu, 2 threads: plan"]
    assert side_by_side(fewer, result)["only_results"] == made["only_baseline"]
    other = copy.deepcopy(fewer)
    other["runs"][0]["model"] = "small"
    with pytest.raises(UsageError, match="no measurement in common: basic, batch 64, .* against small, batch 64"):
        side_by_side(fewer, other)
    with pytest.raises(UsageError, match="margin 1"):
        side_by_side(fewer, fewer, margin=1)


# --- What must not be compared --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("environment", "cpu", "model"), "another CPU", "CPU: Intel.* against another CPU"),
        (("environment", "cpu", "cores_allowed"), 8, "cores: 2 against 8"),
        (("environment", "blas", "library"), "MKL", "BLAS: OpenBLAS against MKL"),
        (("environment", "blas", "architecture"), "Haswell", "BLAS kernels: SkylakeX against Haswell"),
        (("environment", "python"), "3.14.1", "Python: 3.11.7 against 3.14.1"),
        (("environment", "packages", "numpy"), "1.26.0", "numpy: 2.4.6 against 1.26.0"),
        (("settings", "lr"), 0.5, "--lr: 0.01 against 0.5"),
        (("runs", 0, "precision"), "float64", "precision: float32 against float64"),
        (("runs", 0, "throughput", "threads"), 1, "threads: 2 against 1"),
        (("runs", 0, "data"), "something else", "data: MNIST .* against something else"),
        (("runs", 0, "throughput", "versions", "python"), "3.14.1", "python: 3.11.7 against 3.14.1"),
        (("runs", 0, "throughput", "variables", "KMP_AFFINITY"), "none", "KMP_AFFINITY: not set against none"),
        (("runs", 0, "throughput", "flags"), {"determinism": "on"}, "determinism: off against on"),
    ],
)
def test_differences(place, value, said):
    result = bench_samples.throughput_only()
    result["runs"][0]["throughput"]["flags"] = {"determinism": "off"}
    result["settings"]["lr"] = 0.01
    other = inner = copy.deepcopy(result)
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    made = side_by_side(result, other)
    assert is_refused(made)
    assert not is_regression(made)
    assert (made["measurements"], made["geometric_mean"]) == ([], None)
    assert len(made["differences"]) == 1
    with pytest.raises(UsageError, match=said):
        raise UsageError(listed(made["differences"]))
    forced = side_by_side(result, other, force=True)
    assert forced["forced"]
    assert not is_refused(forced)
    assert forced["differences"] == made["differences"]
    assert len(forced["measurements"]) == 2


def test_what_makes_no_difference():
    """Another version of bareconv, a patch of Python, a longer budget, a GPU that nobody computed on."""
    result = bench_samples.throughput_only()
    other = copy.deepcopy(result)
    result["environment"]["python"], other["environment"]["python"] = "CPython 3.11.7", "CPython 3.11.9"
    other["bareconv"] = "9.0"
    other["settings"]["budget"] = 10**6
    other["environment"]["gpus"] = [{"name": "a GPU"}]
    other["runs"][0]["throughput"]["versions"]["bareconv"] = "9.0"
    assert side_by_side(result, other)["differences"] == []


def test_another_gpu():
    result = bench_samples.with_gpu()
    other = copy.deepcopy(result)
    other["environment"]["gpus"][0] |= {"name": "NVIDIA H200", "driver": "999.1"}
    made = side_by_side(result, other)
    assert {one["what"] for one in made["differences"]} == {"GPU", "driver"}
    keys = [one.key for one in measurements(result) if one.key.device == "cpu"]
    assert differences([result, other], keys) == []


# --- The machine's own pace -----------------------------------------------------------------------------------------


def test_a_machine_whose_ceilings_fell_is_not_blamed_on_us():
    result = bench_samples.with_gpu()
    del result["conditions"], result["peers"], result["sweeps"]
    other = slowed(result, 1.2)
    assert verdicts(side_by_side(result, other)) == {"slower"}
    for ceiling in other["rooflines"][0]["ceilings"]:
        ceiling["per_second"] *= 0.8
    made = side_by_side(result, other)
    assert verdicts(made, device="cpu") == {"ambiguous"}
    assert verdicts(made, device="cuda") == {"slower"}  # of the GPU's ceilings none fell
    assert {pace["device"] for pace in made["machine"]} == {"cpu"}
    assert all(pace["times"] == pytest.approx(0.8) for pace in made["machine"])
    cpu = next(one for one in made["measurements"] if one["device"] == "cpu")
    assert "machine itself was not equally fast" in cpu["settle"]


def test_another_machine_is_not_blamed_on_its_pace():
    """What it does otherwise is what the comparison is to tell."""
    result = bench_samples.with_peers()
    other = slowed(result, 0.5)
    for ceiling in other["rooflines"][0]["ceilings"]:
        ceiling["per_second"] *= 2
    blamed = side_by_side(result, other)
    assert blamed["machine"]
    assert "ambiguous" in verdicts(blamed)
    other["environment"]["cpu"]["cores_allowed"] = 16
    made = side_by_side(result, other, force=True)
    assert made["machine"] == []
    assert verdicts(made, ours=True, part="throughput") == {"faster"}


def test_what_was_not_alike_is_named():
    result = bench_samples.throughput_only()
    other = copy.deepcopy(result)
    for run in other["runs"]:
        run["throughput"]["threads"] = 16
    labels = {one["label"] for one in side_by_side(result, other, force=True)["measurements"]}
    assert "basic, batch 64, float32, cpu, 2 against 16 threads: plan" in labels


@pytest.mark.parametrize(
    ("place", "value", "times"),
    [
        (("cpu", "others_share"), 0.5, 0.485 / 0.985),
        (("cpu", "throttled_share"), 0.3, 0.7),
        (("cpu", "frequency_hz"), [1.35e9] * 60, None),
        (("gpus", 0, "sm_clock_hz"), [0.795e9] * 60, 0.5),
    ],
)
def test_conditions(place, value, times):
    before, after = bench_samples.with_gpu(), bench_samples.with_gpu()
    before["conditions"]["cpu"]["steal_share"], before["conditions"]["cpu"]["others_share"] = 0.0, 0.015
    inner = after["conditions"]
    inner["cpu"]["steal_share"], inner["cpu"]["others_share"] = 0.015, 0.0
    assert paces([before], [after]) == []  # who took it is no matter
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    (pace,) = paces([before], [after])
    assert pace.device == ("cuda" if place[0] == "gpus" else "cpu")
    assert pace.times == pytest.approx(0.5 if times is None else times, rel=0.02)
    assert paces([before], [bench_samples.throughput_only()]) == []
    assert paces([before, before], [before, after])[0].times == pytest.approx(pace.times**0.5)


def test_a_peer_of_the_same_version_shows_that_it_was_the_machine():
    result = bench_samples.with_peers()
    for name in ("rooflines", "conditions", "sweeps"):
        result.pop(name)
    made = side_by_side(result, slowed(result, 1.25))
    assert verdicts(made) == {"ambiguous"}
    assert made["machine"]
    assert all("of the same version, at least" in pace["what"] for pace in made["machine"])
    assert all(1 / 1.25 < pace["times"] < 0.86 for pace in made["machine"])
    ours = side_by_side(result, slowed(result, 1.25, only=lambda one: one.get("ours", "engine" in one)))
    assert verdicts(ours, ours=True) == {"slower"}
    assert verdicts(ours, ours=False) <= {"same", "ambiguous"}
    assert ours["machine"] == []


def test_a_regression_survives_the_file(tmp_path):
    """Through files, as a user has them."""
    result = bench_samples.throughput_only()
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, one in zip(paths, (result, slowed(result, 1.3)), strict=True):
        results.write(one, path)
    made = diff(*([Source(path, results.read(path))] for path in paths))
    assert is_regression(made)
    assert made["baseline"][0]["file"] == str(paths[0])
    assert json.loads(json.dumps(made, allow_nan=False)) == made
