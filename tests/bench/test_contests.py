"""Contests: everybody gets ready at once, two rounds, the best of each mode, and what fails or comes too late."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import pytest
from bench_stand_ins import LOSSES, QUICK, stand_in

from bareconv.bench import contests, peers, results
from bareconv.bench.contests import Contest, Times, compete, contest
from bareconv.bench.environment import describe
from bareconv.bench.interleave import Side
from bareconv.bench.peers import Found, cuda_variants, record
from bareconv.bench.steady import run_record
from bareconv.bench.workers.lock import LOCK
from bareconv.bench.workload import Workload
from bareconv.errors import BareconvError, UsageError

WORK = Workload("mlp", (6, 6, 1), batch_size=4)
TIMES = Times(budget=12.0, first=0.4, second=0.8)


@pytest.fixture(scope="module")
def machine():
    return describe()


@pytest.fixture
def make(tmp_path):
    """A contest of stand-ins: (variant, mode, what it does) each; ``ours`` is the trouble of our engine."""

    def make(*rivals, ours="", name="one"):
        folder = tmp_path / name
        folder.mkdir()
        dataset = WORK.write(folder)

        def side(candidate, variant="", mode=None):
            return Side(dataclasses.replace(candidate, variant=variant, options={"mode": mode}), folder, QUICK)

        sides = [side(stand_in("pytorch", **acts), f"{variant} {mode}", mode) for variant, mode, acts in rivals]
        return Contest(
            *(WORK, dataset.name, len(dataset.train)),
            engines=[side(stand_in("plan", ours, ours=True))],
            rivals=[one for one in sides if one.candidate.options["mode"] != "compile"],
            late=[one for one in sides if one.candidate.options["mode"] == "compile"],
        )

    return make


@pytest.fixture
def valid(machine):
    """What is recorded of a contest, within a result that fits the schema: its runs and its ``peers`` entry."""

    def valid(one):
        runs = [run_record(one, side) for side in one.engines]
        result = results.new("gpu", {}, runs=filter(None, runs), peers=[record(one, {})], environment=machine)
        results.validate(result)
        return result["runs"], result["peers"][0]

    return valid


def everyone_gone(*contests):
    return not any(side.alive for one in contests for side in one.everyone)


def test_two_rounds(make, valid):
    rivals = [
        ("nchw", "eager", {"step": 0.016}),
        ("channels_last", "eager", {"step": 0.008}),
        ("nchw", "graph", {"step": 0.006}),
        ("channels_last", "graph", {"step": 0.004}),
        ("nchw", "compile", {"step": 0.003}),
        ("channels_last", "compile", {"step": 0.001}),
    ]
    both = [make(*rivals), make(*rivals[2:3], name="two")]
    seen: list[Any] = []
    said: list[str] = []
    compete(both, TIMES, 4, lambda one: seen.append((one, *valid(one))), said.append)
    assert everyone_gone(*both)
    assert [both.index(one) for one, *_ in seen] == [0, 1, 0]

    _, runs, first = seen[0]
    assert [run["engine"] for run in runs] == ["plan"]
    assert [one["variant"] for one in first["candidates"]] == ["", "channels_last eager", "channels_last graph"]

    _, runs, entry = seen[2]
    ours, eager, graph, compiled = entry["candidates"]
    assert runs[0]["images_per_second"] == pytest.approx(2000) == ours["throughput"]["images_per_second"]
    assert [one["variant"] for one in (eager, graph, compiled)] == [
        "channels_last eager",
        "channels_last graph",
        "channels_last compile",
    ]
    for one, ratio in ((eager, 4.0), (graph, 2.0), (compiled, 0.5)):
        assert (one["status"], one["error"]) == ("measured", None)
        assert one["ratio"]["value"] == pytest.approx(ratio, rel=1e-6)
        assert len(one["tries"]) == 2
        assert one["throughput"]["images_per_second"] == max(each["images_per_second"] for each in one["tries"])
    # eager was measured in the first round alone, graph again in the second
    assert eager["throughput"]["samples"] == first["candidates"][1]["throughput"]["samples"]
    assert graph["throughput"]["samples"] != first["candidates"][2]["throughput"]["samples"]
    assert any("7 candidates get ready" in text for text in said)
    assert not any(side.samples.seconds for side in both[0].rivals if side not in both[0].sides)  # only tried


def test_who_is_slow_is_tried_too(make, valid):
    """Or the slowest could be the only one that was."""
    one = make(*((f"{name}", "graph", {"step": step}) for name, step in (("a", 0.3), ("b", 0.25), ("c", 0.2))))
    compete([one], Times(budget=20.0, first=0.4, second=0.4), 3, lambda one: None)
    _, entry = valid(one)
    graph = entry["candidates"][1]
    assert graph["variant"] == "c graph"
    assert all(each["images_per_second"] for each in graph["tries"])


def test_who_fails_while_it_is_measured_leaves_its_place(make, valid):
    one = make(("quick", "graph", {"step": 0.002, "trouble": "die after 120"}), ("slow", "graph", {"step": 0.004}))
    compete([one], TIMES, 2, lambda one: None)
    _, entry = valid(one)
    graph = entry["candidates"][1]
    assert (graph["variant"], graph["status"]) == ("slow graph", "measured")
    assert graph["ratio"]["value"] == pytest.approx(2.0)
    assert {each["variant"]: each["status"] for each in graph["tries"]} == {
        "quick graph": "failed",
        "slow graph": "measured",
    }


def test_who_was_only_tried_has_no_figure_and_says_so(make, valid):
    """Where the one that was chosen fails at last, and the others of its mode have ended."""
    one = make(("quick", "graph", {}), ("slow", "graph", {}))
    quick, slow = one.rivals
    for side, seconds in ((quick, 0.1), (slow, 0.2)):
        side.tried.add({"seconds": seconds, "steps": 1, "images": 4})
    one.settle()
    assert one.sides[1:] == [quick]
    quick.fail(BareconvError("it broke"))
    one.settle(late=True)
    contests._name_unmeasured(one)
    assert one.sides[1:] == [slow]
    entry = valid(one)[1]["candidates"][1]
    assert (entry["variant"], entry["status"]) == ("slow graph", "interrupted")
    assert "throughput" not in entry


def test_what_compiles_too_long_is_named(make, valid):
    one = make(
        ("nchw", "graph", {"step": 0.004}),
        ("nchw", "compile", {"trouble": "hang at prepare"}),
        ("channels_last", "compile", {"step": 0.001}),
        ("other", "compile", {"trouble": "die at prepare"}),
    )
    compete([one], Times(budget=5.0, first=0.3, second=0.4), 1, lambda one: None)
    _, entry = valid(one)
    ours, graph, compiled = entry["candidates"]
    assert ours["status"] == graph["status"] == "measured"
    assert graph["ratio"]["value"] == pytest.approx(2.0)
    tries = {each["variant"]: (each["status"], each["error"]) for each in compiled["tries"]}
    assert tries["nchw compile"][0] == "interrupted"
    assert "when the time was up" in tries["nchw compile"][1] or "gave no answer" in tries["nchw compile"][1]
    # one at a time: those after it may have come too late
    assert all(error for variant, (_, error) in tries.items() if variant == "other compile")
    assert everyone_gone(one)


def test_too_late_to_begin(make, valid):
    one = make(("nchw", "graph", {"step": 0.004}), ("nchw", "compile", {}))
    compete([one], Times(budget=2.0, first=0.3, second=30.0), 2, lambda one: None)
    _, entry = valid(one)
    assert [each["status"] for each in entry["candidates"]] == ["measured", "measured", "interrupted"]
    assert entry["candidates"][2]["error"] == "the time was up before it could get ready"


def test_other_losses_mean_no_figures(make, valid):
    one = make(("nchw", "graph", {"losses": [*LOSSES[:-1], 3.0]}), ("channels_last", "graph", {"step": 0.004}))
    compete([one], TIMES, 2, lambda one: None)
    _, entry = valid(one)
    assert entry["candidates"][1]["variant"] == "channels_last graph"
    assert [each["status"] for each in entry["candidates"][1]["tries"]] == ["disagrees", "measured"]


def test_where_ours_fails_the_others_are_measured_alone(make, valid):
    one = make(("nchw", "graph", {"step": 0.004}), ours="die at prepare")
    compete([one], TIMES, 2, lambda one: None)
    runs, entry = valid(one)
    assert runs == []
    assert entry["ours"] is None
    failed, graph = entry["candidates"]
    assert (failed["status"], graph["status"]) == ("failed", "measured")
    assert "ratio" not in graph
    assert graph["throughput"]["images_per_second"] == pytest.approx(1000)


def test_an_error_on_the_way_ends_everybody(make):
    one = make(("nchw", "graph", {}))

    def broken(one):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        compete([one], TIMES, 2, broken)
    assert everyone_gone(one)


def test_times_are_positive():
    with pytest.raises(UsageError, match="second 0: expected more than 0 seconds"):
        Times(budget=1.0, second=0)


def test_who_takes_part(tmp_path, monkeypatch):
    """The variants by pattern, the compiled ones apart; all share a lock, and their compilers the cores."""
    monkeypatch.setattr(peers, "_has", lambda python, package: True)
    found = Found({"pytorch": sys.executable}, {})
    one = contest(
        *(Workload("mlp", (6, 6, 1), 4, "bfloat16"), "cuda:0", ["plan", "plan"], found, tmp_path / "mlp"),
        ["* eager autocast", "channels_last *"],
        compile_threads=3,
    )
    assert [side.candidate.name for side in one.engines] == ["plan"]
    assert one.engines[0].candidate.options == {"engine": "plan", "device": "cuda:0"}
    assert [side.candidate.variant for side in one.rivals] == [
        "channels_last graph autocast",
        "channels_last graph copy",
        "nchw eager autocast",
        "channels_last eager autocast",
        "channels_last eager copy",
    ]
    assert [side.candidate.variant for side in one.late] == [
        "channels_last compile autocast",
        "channels_last compile copy",
    ]
    environment = one.late[0].candidate.environment
    assert environment["TORCHINDUCTOR_COMPILE_THREADS"] == "3"
    assert environment[LOCK] == str(tmp_path / "alone")
    without = contest(*(WORK, "cuda:0", ["plan"], found, tmp_path / "again"), compiled=False)
    assert without.late == []
    assert [side.candidate.variant for side in without.rivals] == [
        "nchw graph",
        "channels_last graph",
        "nchw eager",
        "channels_last eager",
    ]


def test_variants_on_a_gpu():
    for precision, count in (("float32", 6), ("tf32", 6), ("bfloat16", 12)):
        variants = cuda_variants("cuda:1", precision)
        assert len(variants) == count
        assert {options["device"] for options in variants.values()} == {"cuda:1"}
    assert variants["nchw compile copy"] == {"device": "cuda:1", "layout": "nchw", "mode": "compile", "mixed": "copy"}
