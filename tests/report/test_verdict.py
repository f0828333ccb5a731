"""The sentence at the top of a benchmark's page: what is said, what is not, and how carefully."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import bench_samples as bench
import pytest

from bareconv.report import ratios
from bareconv.report.candidates import pretty
from bareconv.report.headline import Headline
from bareconv.report.ratios import Ratio, along, over, times
from bareconv.report.verdict import DOUBTS, verdict


def curve(
    device: str,
    rates: Mapping[int, float] | Mapping[float, float],
    *,
    precision: str = "float32",
    wide: float = 0.01,
    stable: bool = True,
) -> dict[str, Any]:
    """Ours, with these rates, each with an interval of so much to both sides."""
    points = [
        {
            "value": size,
            "error": None,
            "stable": stable,
            "images_per_second": {"value": rate, "low": rate * (1 - wide), "high": rate * (1 + wide)},
        }
        for size, rate in rates.items()
    ]
    who = {"name": "plan", "variant": "", "ours": True, "device": device, "precision": precision, "threads": 2}
    return {**who, "points": points, "fit": None}


def swept(*curves: dict[str, Any], crossovers: list[dict[str, Any]] | None = None) -> Headline:
    """The verdict of a sweep of these curves alone."""
    sweep = {"axis": "batch_size", "model": "basic", "batch_size": 1, "curves": list(curves)}
    found = verdict(bench.result(gpu=True, sweeps=[{**sweep, "crossovers": crossovers or []}]))
    assert found is not None
    return found


CPU = {1: 100.0, 8: 100.0, 64: 100.0, 512: 100.0}


def test_where_the_advantage_settles_and_below_what_the_cpu_wins() -> None:
    crossing = {"ahead_below": 0, "ahead_above": 1, "value": 7.6, "low": 6.9, "high": 8.4}
    gpu = curve("cuda:0", {1: 10.0, 8: 110.0, 64: 6000.0, 512: 6100.0})
    found = swept(curve("cpu", CPU), gpu, crossovers=[crossing])
    assert found.title == (
        "On this machine the GPU trains `basic` 60 to 61 times as fast as two tuned CPU cores from batch 64 on; "
        "up to batch 7 the CPU wins"
    )
    # 61 with 1% to both sides, over 1 with 1%: (61 * 0.99 / 1.01) to (61 * 1.01 / 0.99)
    assert "At batch 512 the GPU is 61.0 (59.8 to 62.2) times as fast" in found.lead[0]
    assert "at batch 1 the CPU is 10.0 (9.80 to 10.2) times as fast" in found.lead[0]
    assert "as fast as each other at batch 7.60 (6.90 to 8.40)" in found.lead[0]
    assert "NVIDIA T4" in found.lead[1]
    assert [(bar.name, bar.gpu, bar.length) for bar in found.bars] == [("CPU", False, 100 / 6100), ("GPU", True, 1.0)]
    assert found.basis[0].anchor == "sweep-0"


def test_an_advantage_everywhere() -> None:
    found = swept(curve("cpu", CPU), curve("cuda:0", dict.fromkeys(CPU, 2000.0)))
    assert found.title.endswith(
        "trains `basic` 20 times as fast as two tuned CPU cores at every batch size from 1 to 512"
    )
    assert "ahead at every batch size that was measured" in found.lead[0]


def test_an_advantage_that_falls_again() -> None:
    found = swept(curve("cpu", CPU), curve("cuda:0", {1: 200.0, 8: 900.0, 64: 3000.0, 512: 500.0}))
    assert "up to 30 times as fast as two tuned CPU cores, at batch 64" in found.title


def test_the_largest_batch_alone() -> None:
    found = swept(curve("cpu", CPU), curve("cuda:0", {1: 110.0, 8: 300.0, 64: 1000.0, 512: 4000.0}))
    assert found.title.endswith("40 times as fast as two tuned CPU cores, at batch 512")


def test_an_interval_that_holds_one_is_no_advantage() -> None:
    found = swept(curve("cpu", CPU, wide=0.05), curve("cuda:0", dict.fromkeys(CPU, 104.0), wide=0.05))
    assert found.title == "On this machine the GPU trains `basic` about as fast as two tuned CPU cores, at batch 512"


def test_a_slower_gpu_is_said_to_be_slower() -> None:
    found = swept(curve("cpu", CPU), curve("cuda:0", dict.fromkeys(CPU, 25.0)))
    assert found.title == "On this machine two tuned CPU cores train `basic` 4.0 times as fast as the GPU, at batch 512"


def test_unstable_figures_make_it_rough() -> None:
    found = swept(curve("cpu", CPU), curve("cuda:0", dict.fromkeys(CPU, 2000.0), stable=False))
    assert "roughly 20 times as fast as" in found.title
    assert DOUBTS in found.lead
    steady = swept(curve("cpu", CPU), curve("cuda:0", dict.fromkeys(CPU, 2000.0)))
    assert "roughly" not in steady.title
    assert DOUBTS not in steady.lead


def test_like_is_compared_with_like_and_other_precisions_follow() -> None:
    slow, quick = curve("cuda:0", {512: 1000.0}), curve("cuda:0", {512: 9000.0}, precision="bfloat16")
    found = swept(curve("cpu", {512: 100.0}), quick, slow)
    assert "the GPU trains `basic` 10 times as fast" in found.title
    assert found.also[0].startswith("In bfloat16 the GPU is 90.0 (")
    only = swept(curve("cpu", {512: 100.0}), quick)
    assert "the GPU in bfloat16 trains `basic` 90 times as fast" in only.title
    assert "in bfloat16 and float32" in only.lead[1]


def along_another(
    axis: str, gpu: Mapping[int, float] | Mapping[float, float], crossover: dict[str, Any] | None = None, **parts: Any
) -> Headline:
    """The verdict where a GPU has these rates along an axis, on which the CPU has 100 everywhere."""
    curves = [curve("cpu", dict.fromkeys(gpu, 100.0)), curve("cuda:0", gpu)]
    sweep = {"axis": axis, "model": "basic", "batch_size": 64, "curves": curves}
    sweep["crossovers"] = [crossover] if crossover else []
    found = verdict(bench.result(gpu=True, sweeps=[*parts.pop("before", []), sweep], **parts))
    assert found is not None
    return found


def test_a_sweep_along_another_axis_alone() -> None:
    found = along_another("image_size", {12: 700.0, 28: 2000.0, 96: 3200.0})
    assert found.title == (
        "On this machine the GPU trains `basic` 7.0 to 32 times as fast as two tuned CPU cores, at an image size of 12 "
        "to 96"
    )
    assert found.lead[0].startswith("At an image size of 96 the GPU is 32.0 (31.4 to 32.6) times as fast, at an image")
    assert found.lead[0].endswith("The GPU is ahead at every image size that was measured.")
    assert found.measure == "Images a second, at an image size of 96"
    assert [bar.length for bar in found.bars] == [100 / 3200, 1.0]
    assert found.basis[0].text.startswith("the sweep over the image size of `basic`: 2 curves, 6 points")
    assert along_another("threads", {1: 500.0, 2: 500.0}).title.endswith(
        "5.0 times as fast as the CPU, at 1 to 2 threads"
    )


def test_a_gpu_that_is_behind_along_another_axis() -> None:
    found = along_another("width", {0.25: 10.0, 1: 50.0})
    assert found.title == (
        "On this machine two tuned CPU cores train `basic` 2.0 to 10 times as fast as the GPU, at a width of 0.25 to 1"
    )
    crossing = {"ahead_below": 0, "ahead_above": 1, "value": 0.62, "low": 0.6, "high": 0.64}
    found = along_another("width", {0.25: 50.0, 1: 200.0}, crossing)
    assert "the GPU trains `basic` 0.50 to 2.0 times as fast as two tuned CPU cores" in found.title
    assert "The two are as fast as each other at a width of 0.62 (0.600 to 0.640)" in found.lead[0]


def test_other_axes_are_beside_the_batch_size() -> None:
    curves = [curve("cpu", CPU), curve("cuda:0", dict.fromkeys(CPU, 2000.0))]
    batches = {"axis": "batch_size", "model": "basic", "batch_size": 1, "curves": curves, "crossovers": []}
    found = along_another("width", {0.25: 500.0, 4: 2400.0}, before=[batches])
    assert found.title.endswith("20 times as fast as two tuned CPU cores at every batch size from 1 to 512")
    assert found.also == ["At a width of 0.25 to 4 the GPU is 5.0 to 24 times as fast as the CPU (`basic`, float32)."]
    found = along_another("width", {0.25: 10.0, 4: 50.0}, before=[batches])
    assert found.also[0].startswith("At a width of 0.25 to 4 the CPU is 2.0 to 10 times as fast as the GPU")


def test_without_a_sweep_the_runs_are_compared() -> None:
    found = verdict(bench.with_gpu(sweeps=[], peers=[], learning=[]))
    assert found is not None
    (a, b), (c, d) = bench.COSTS["plan", "", "cpu", "float32"], bench.COSTS["plan", "", "cuda:0", "float32"]
    expected = (a + 64 * b) / (c + 64 * d)
    assert f"{expected:.2f} times as fast as two tuned CPU cores, at batch 64" in found.title
    assert found.basis[0].anchor == "throughput"


def test_a_cpu_with_peers() -> None:
    found = verdict(bench.with_peers())
    assert found is not None
    assert found.title.startswith(
        "On these two cores bareconv trains `basic` 3.08 times as fast as PyTorch at its best without torch.compile ("
    )
    ratio = bench.with_peers()["peers"][0]["candidates"][1]["ratio"]
    assert f"({ratio['low']:.2f} to {ratio['high']:.2f})" in found.title
    assert "No GPU was measured: no NVIDIA driver was found" in found.lead[-1]
    assert any("roughly" in sentence and "batch 256" in sentence for sentence in found.also)
    assert [bar.name for bar in found.bars] == ["bareconv", "PyTorch tuned", "PyTorch default", "DeZero"]


@pytest.mark.parametrize(
    ("slower", "words"),
    [
        (1.0, "bareconv trains `basic` 3.08 times as fast as PyTorch at its best without torch.compile (3.0"),
        (0.1, "PyTorch at its best without torch.compile trains `basic` 3.25 times as fast as bareconv (3.25"),
    ],
)
def test_peers_as_fast_as_they_are(slower: float, words: str) -> None:
    group = bench.peer_group(bench.CPU_KEYS[:2], slower=slower)
    found = verdict(bench.result(gpu=False, peers=[group]))
    assert found is not None
    assert words in found.title


def test_a_peer_that_is_as_fast() -> None:
    group = bench.peer_group(bench.CPU_KEYS[:2])
    group["candidates"][1]["ratio"] = {"value": 1.01, "low": 0.97, "high": 1.04}
    found = verdict(bench.result(gpu=False, peers=[group]))
    assert found is not None
    assert "bareconv trains `basic` about as fast as PyTorch at its best without torch.compile (0.97 " in found.title


def test_ours_alone() -> None:
    found = verdict(bench.throughput_only())
    assert found is not None
    assert found.title.startswith("On these two cores bareconv trains `basic` at 8,3")
    sweep = bench.batch_sweep(bench.CPU_KEYS[:1])
    found = verdict(bench.result(gpu=False, sweeps=[sweep]))
    assert found is not None
    assert "at batch size 1,024" in found.lead[0] or "at batch size 512" in found.lead[0]


def test_ours_alone_and_unstable() -> None:
    run = bench.run(bench.CPU_KEYS[0], stable=False)
    found = verdict(bench.result(gpu=False, runs=[run]))
    assert found is not None
    assert "bareconv trains `basic` at roughly " in found.title
    assert DOUBTS in found.lead


def test_no_figure_no_sentence() -> None:
    assert verdict(bench.result(gpu=False)) is None
    broken = {**bench.batch_sweep(bench.CPU_KEYS[:1]), "curves": [], "crossovers": []}
    assert verdict(bench.result(gpu=False, sweeps=[broken], conditions=bench.conditions(gpu=False))) is None


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (Ratio(61.4, 60.0, 62.0), "61 times as fast as"),
        (Ratio(3.31, 3.25, 3.44), "3.3 times as fast as"),
        (Ratio(3.257, 3.253, 3.26), "3.26 times as fast as"),
        (Ratio(1.07, 1.05, 1.09), "1.07 times as fast as"),
        (Ratio(1.07, 0.99, 1.15), "about as fast as"),
        (Ratio(1.002, 1.001, 1.003), "about as fast as"),
        (Ratio(0.5, 0.4, 0.6), "0.50 times as fast as"),
        (Ratio(3.31, 3.25, 3.44, stable=False), "roughly 3.3 times as fast as"),
    ],
)
def test_ratios_in_words(ratio: Ratio, words: str) -> None:
    assert times(ratio) == words


def test_ratios_of_blocks_are_paired() -> None:
    """A disturbance that hits both sides alike widens neither the ratio nor its interval."""
    drift = [1.0, 0.5, 2.0, 1.5, 0.7, 1.1, 0.9, 1.3]
    above = ratios.Measured(30.0, 1.0, 99.0, [30 * x for x in drift])
    below = ratios.Measured(10.0, 1.0, 99.0, [10 * x for x in drift])
    found = over(above, below)
    assert (found.value, found.low, found.high) == pytest.approx((3.0, 3.0, 3.0))
    without = over(ratios.Measured(30.0, 29.0, 31.0), ratios.Measured(10.0, 9.5, 10.5))
    assert (without.low, without.high) == pytest.approx((29 / 10.5, 31 / 9.5))


def test_curves_without_a_common_value_have_no_ratio() -> None:
    assert along(curve("cpu", {1: 5.0}), curve("cuda:0", {2: 5.0})) is None


def test_who_was_not_measured_at_its_best_is_named() -> None:
    result = bench.with_peers()
    group = result["peers"][0]
    rivals = [one for one in group["candidates"] if not one["ours"] and one["variant"] != "default"]
    slowest = min(rivals, key=lambda one: one.get("throughput", {}).get("images_per_second", float("inf")))
    assert not any("not measured" in sentence for sentence in all_words(result))
    slowest |= {"status": "interrupted", "error": "was not ready"}
    del slowest["throughput"], slowest["ratio"]
    name = pretty(slowest["name"])
    assert f"{name} at its best was not measured." in all_words(result)


@pytest.mark.parametrize(
    ("modes", "said"),
    [
        ({"graph": "measured", "compile": "measured"}, "PyTorch at its best ("),
        ({"graph": "measured", "compile": "interrupted"}, "PyTorch at its best without torch.compile ("),
        ({"graph": "measured", "eager": "measured"}, "PyTorch at its best without torch.compile ("),
    ],
)
def test_a_best_without_what_there_was_no_time_for_says_so(modes: dict[str, str], said: str) -> None:
    result = bench.with_peers()
    (peer,) = [
        one for one in result["peers"][0]["candidates"] if one["name"] == "pytorch" and one["variant"] != "default"
    ]
    peer["tries"] = [{"variant": mode, "options": {"mode": mode}, "status": status} for mode, status in modes.items()]
    found = verdict(result)
    assert found is not None
    assert said in found.title


def all_words(result: dict[str, Any]) -> list[str]:
    found = verdict(result)
    assert found is not None
    return [*found.lead, *found.also]
