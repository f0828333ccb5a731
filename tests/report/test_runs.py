"""What runs are to each other."""

from __future__ import annotations

from typing import Any

import pytest
import report_samples as samples

from bareconv.report.runs import (
    Pair,
    engines_differ,
    images_tested,
    labels,
    main_pair,
    main_ratio,
    operation_seconds,
    operations,
    over,
    pairs,
    per_iteration,
    same_accuracy,
    speedups,
)


def test_labels_say_no_more_than_is_needed() -> None:
    assert labels([samples.run(), samples.run("cuda:0")]) == ["CPU", "GPU"]
    assert labels([samples.run(), samples.run("cuda:0"), samples.run("cuda:1")]) == ["CPU", "GPU 0", "GPU 1"]
    assert labels(samples.four()["runs"]) == ["CPU float32", "CPU float64", "GPU float32", "GPU tf32"]
    assert labels([samples.run(model="a"), samples.run(model="b")]) == ["CPU a", "CPU b"]
    assert labels([samples.run(batch_size=8), samples.run(batch_size=64)]) == ["CPU batch 8", "CPU batch 64"]


def test_labels_are_distinct_whatever_the_runs_are() -> None:
    same = [samples.run() for _ in range(3)]
    assert labels(same) == ["CPU #1", "CPU #2", "CPU #3"]
    mixed = [samples.run(engine="a"), samples.run(engine="a"), samples.run(engine="b", precision="float64")]
    assert len(set(labels(mixed))) == 3


def test_a_gpu_run_belongs_to_the_cpu_run_most_like_it() -> None:
    runs = [
        samples.run(precision="float64"),
        samples.run(),
        samples.run("cuda:0"),
        samples.run("cuda:0", precision="float64"),
    ]
    assert pairs(runs) == [Pair(2, 1), Pair(3, 0)]


def test_of_equal_cpu_runs_the_fastest_is_the_rival() -> None:
    runs = [samples.run(engine="slow"), samples.run(engine="fast", speed=3.0), samples.run("cuda:0", speed=30.0)]
    assert pairs(runs) == [Pair(2, 1)]


def test_other_models_and_batches_do_not_compare() -> None:
    assert pairs([samples.run(model="mlp"), samples.run("cuda:0")]) == []
    assert pairs([samples.run(batch_size=32), samples.run("cuda:0")]) == []
    assert pairs([samples.run("cuda:0")]) == []
    assert main_pair([samples.run()]) is None


def test_the_headline_prefers_like_with_like_to_the_larger_figure() -> None:
    runs = samples.four()["runs"]
    assert main_pair(runs) == Pair(2, 0)  # float32 with float32, although tf32 is faster


def test_the_ratio_is_of_times_only_where_the_work_was_the_same() -> None:
    cpu, gpu = samples.run(), samples.run("cuda:0", speed=10.0)
    assert main_ratio([cpu, gpu], Pair(1, 0)) == pytest.approx(10)
    short = samples.run(epochs=1)  # a fifth of the work in a fifth of the time
    assert main_ratio([short, gpu], Pair(1, 0)) == pytest.approx(10)
    names = [s.name for s in speedups([short, gpu], Pair(1, 0))]
    assert "Training" not in names
    assert "Total" not in names
    assert names[0] == "Images per second"


def test_speedups_by_hand() -> None:
    def operation(name: str, forward: float, backward: float) -> dict[str, object]:
        return {"name": name, "type": "x", "forward_seconds": forward, "backward_seconds": backward}

    cpu = samples.run(operations=[operation("a", 0.3, 0.5), operation("b", 0.1, 0.0), operation("c", 1.0, 1.0)])
    gpu = samples.run("cuda:0", speed=4.0, operations=[operation("b", 0.2, 0.0), operation("a", 0.1, 0.1)])
    found = {s.name: s.ratio for s in speedups([cpu, gpu], Pair(1, 0)) if s.group == "operation"}
    assert found == {"a": pytest.approx(4.0), "b": pytest.approx(0.5)}
    run = {s.name: s.ratio for s in speedups([cpu, gpu], Pair(1, 0)) if s.group == "run"}
    assert run["Forward"] == pytest.approx(4.0)
    assert run["Total"] < 4.0  # its fixed part is the same on both


def test_operations_of_one_name_are_added_up() -> None:
    twice = [{"name": "relu", "type": "ReLU", "forward_seconds": 0.25, "backward_seconds": 0.5}] * 2
    assert operation_seconds(samples.run(operations=twice)) == {"relu": (0.5, 1.0)}


def test_equal_accuracy_is_what_chance_explains() -> None:
    # Two standard errors at 99% of 10,000: 2 sqrt(2 * 0.99 * 0.01 / 10000) = 0.0028.
    one = samples.run(test_accuracy=0.9900)
    assert same_accuracy(one, samples.run(test_accuracy=0.9875)) is True
    assert same_accuracy(one, samples.run(test_accuracy=0.9868)) is False
    few = samples.run(test_accuracy=0.9868, test_images=100)
    assert same_accuracy(one, few) is True
    assert same_accuracy(one, samples.run(test_accuracy=None)) is None
    assert same_accuracy(one, samples.run(test_split="validation")) is None
    perfect = samples.run(test_accuracy=1.0)
    assert same_accuracy(perfect, perfect) is True


def test_the_number_of_images_comes_from_the_matrix_where_it_is_not_said() -> None:
    assert images_tested(samples.run(test_images=...)) == 10_000
    assert images_tested(samples.run(test_images=..., confusion=...)) is None


def test_quotients_that_say_nothing_are_none() -> None:
    assert over(6, 3) == 2
    for a, b in [(None, 1), (1, None), (0, 1), (1, 0), (float("nan"), 1), (1, float("inf"))]:
        assert over(a, b) is None
    assert per_iteration(samples.minimal()["runs"][0]) is None
    assert per_iteration(samples.run(seconds_per_iteration=..., train_seconds=10.0, iterations=4)) == 2.5


def operation(name: str, forward: float, backward: float) -> dict[str, Any]:
    return {"name": name, "type": "", "forward_seconds": forward, "backward_seconds": backward}


APART = [
    operation(n, f, 2 * f) for n, f in (("conv1", 1.0), ("relu1", 2.0), ("pool1", 4.0), ("flat", 8.0), ("loss", 16.0))
]
FUSED = [operation("conv1 + relu1 + pool1", 0.5, 0.25), operation("loss", 0.125, 0.0)]


def test_operations_that_one_run_fuses_are_added_up_for_the_other() -> None:
    """In either order of the runs; what one of them does not have at all, such as a view, is the other's alone."""
    fused, apart = samples.run(operations=FUSED), samples.run("cuda:0", operations=APART)
    expected = {"conv1 + relu1 + pool1": [(0.5, 0.25), (7.0, 14.0)], "loss": [(0.125, 0.0), (16.0, 32.0)]}
    assert operations([fused, apart]) == {**expected, "flat": [None, (8.0, 16.0)]}
    turned = operations([apart, fused])
    assert list(turned) == ["conv1 + relu1 + pool1", "flat", "loss"]
    assert turned["conv1 + relu1 + pool1"] == [(7.0, 14.0), (0.5, 0.25)]


def test_operations_of_one_engine_stay_as_they_are() -> None:
    found = operations([samples.run(operations=APART), samples.run("cuda:0", operations=APART)])
    assert list(found) == [o["name"] for o in APART]
    assert found["relu1"] == [(2.0, 4.0), (2.0, 4.0)]


def test_operations_that_overlap_or_are_incomplete_are_not_compared() -> None:
    """Two ways to fuse: the smallest whole that both have. A run that lacks a layer of it has no time."""
    left = samples.run(operations=[operation("a + b", 1.0, 1.0), operation("c", 2.0, 2.0), operation("d", 4.0, 4.0)])
    right = samples.run("cuda:0", operations=[operation("a", 1.0, 0.0), operation("b + c", 1.0, 0.0)])
    assert operations([left, right]) == {"a + b + c": [(3.0, 3.0), (2.0, 0.0)], "d": [(4.0, 4.0), None]}
    lacking = samples.run("cuda:0", operations=[operation("a", 1.0, 1.0)])
    assert operations([left, lacking])["a + b"] == [(1.0, 1.0), None]


def test_operations_of_several_models_do_not_join() -> None:
    one = samples.run(model="one", operations=FUSED)
    other = samples.run(model="other", operations=APART)
    found = operations([one, other])
    assert found["conv1 + relu1 + pool1"] == [(0.5, 0.25), None]
    assert found["conv1"] == [None, (1.0, 2.0)]


def test_speedups_of_operations_across_engines() -> None:
    cpu, gpu = samples.run(operations=APART, engine="reference"), samples.run("cuda:0", operations=FUSED, engine="plan")
    found = {s.name: s.ratio for s in speedups([cpu, gpu], pairs([cpu, gpu])[0]) if s.group == "operation"}
    assert found == {"conv1 + relu1 + pool1": 21.0 / 0.75, "loss": 48.0 / 0.125}
    assert engines_differ([cpu, gpu])
    assert not engines_differ([cpu, cpu])
