"""The whole benchmark: its parts in order, each with its share of the time; what fails, and what ends it early."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bareconv.bench import suite as module
from bareconv.bench.deadline import Deadline
from bareconv.bench.interleave import Limits, Side, our_candidate
from bareconv.bench.peers import Compared, Found
from bareconv.bench.process import StoppedError, TimeUpError
from bareconv.bench.suite import PARTS, SHARES, Place, Suite, Watching
from bareconv.bench.workload import Workload
from bareconv.device import get_device
from bareconv.errors import BareconvError

WORK = Workload("mlp", (6, 6, 1), batch_size=4)


class Heard(Watching):
    """Remembers the parts with their times; stops when told to."""

    def __init__(self):
        self.parts, self.stop = {}, False

    def begins_part(self, name, deadline):
        self.parts[name] = deadline.left

    def should_stop(self):
        return self.stop


@pytest.fixture
def made(monkeypatch):
    """A suite of stand-ins: every part takes ``takes`` of a clock's seconds and says what it was asked for."""
    clock: list[float] = [0.0]
    takes: dict[str, float] = {}
    asked: list[Any] = []
    trouble: dict[str, Exception] = {}

    def part(name, answer):
        def measure(*arguments, **_):
            asked.append((name, arguments))
            clock[0] += takes.get(name, 0.0)
            if name in trouble:
                raise trouble[name]
            return answer(*arguments) if callable(answer) else dict(answer)

        return measure

    def compared(workload, engines, *_):
        return Compared(workload, "data", 8)

    for function, name, answer in (
        ("measure_depth", "layers", {"device": "cpu", "notes": ["A note of the layers."]}),
        ("measure", "throughput", compared),
        ("compare", "peers", lambda questions, *_: [compared(one.workload, one.engines) for one in questions]),
        ("measure_sweep", "sweep", {"axis": "batch_size"}),
        ("measure_clocks", "clocks", {"device": "cpu", "notes": ["Less."]}),
        ("measure_learning", "learning", {"device": "cpu"}),
        ("measure_energies", "energy", lambda *_: [{"device": "cpu"}]),
    ):
        monkeypatch.setattr(module, function, part(name, answer))

    def measured(seconds=100.0, listener=None, places=None, **options):
        cpu = Place(get_device("cpu"), ("float32",), {"float32": Found({}, {})})
        suite = Suite([WORK], places or [cpu], ["plan", "reference"], **options)
        listener, kept = listener or Heard(), []
        result = suite.run(Deadline.after(seconds, lambda: clock[0]), listener, lambda made: kept.append(dict(made)))
        return suite, listener, result, kept

    run: Any = measured
    run.clock, run.takes, run.asked, run.trouble = clock, takes, asked, trouble
    return run


def test_every_part_in_order_with_its_share(made):
    suite, heard, result, kept = made()
    wanted = [name for name in PARTS if name != "throughput"]  # our engines are measured beside the peers
    assert list(heard.parts) == list(dict.fromkeys(name for name, _ in made.asked)) == wanted
    left = 100.0
    for place, name in enumerate(wanted):
        assert heard.parts[name] == pytest.approx(left * SHARES[name] / sum(SHARES[one] for one in wanted[place:]))
    assert set(result) == {"runs", "rooflines", "peers", "sweeps", "clocks", "learning", "energy"}
    assert [len(one) for one in kept] == [2, 3, 4, 5, 6, 7]
    assert wanted.index("learning") < wanted.index("layers")  # the peers' processes have ended by then
    assert (suite.notes, suite.failed) == (["A note of the layers.", f"Clocks of {WORK.title}, cpu: Less."], False)


def test_what_one_part_does_not_need_the_others_have(made):
    made.takes.update(layers=1.0, peers=2.0)
    _, heard, _, _ = made()
    assert heard.parts[PARTS[-1]] == pytest.approx(97.0)
    assert made.clock[0] == 3.0


def test_parts_can_be_chosen(made):
    _, heard, result, _ = made(parts=("sweep", "throughput"))
    assert list(heard.parts) == ["throughput", "sweep"]
    assert set(result) == {"runs", "sweeps"}


def test_sweeps_have_time_by_their_values(made):
    made(parts=("sweep",), sweeps=("width", "batch_size"))
    assert [(arguments[0], arguments[-2].left) for _, arguments in made.asked] == [
        ("width", pytest.approx(100 * 5 / 18)),
        ("batch_size", pytest.approx(100.0)),
    ]


def test_a_gpu_has_more_of_a_parts_time(made):
    gpu: Any = SimpleNamespace(name="cuda:0", description="a GPU")
    places = [Place(device, ("float32",), {"float32": Found({}, {})}) for device in (get_device("cpu"), gpu)]
    made(places=places, parts=("layers",))
    assert [arguments[4].left for _, arguments in made.asked] == [pytest.approx(40.0), pytest.approx(100.0)]


def test_each_precision_of_a_gpu_has_more_of_the_peers_time(made):
    gpu: Any = SimpleNamespace(name="cuda:0", description="a GPU")
    both = ("float32", "bfloat16")
    places = [
        Place(get_device("cpu"), both[:1], {"float32": Found({}, {})}),
        Place(gpu, both, dict.fromkeys(both, Found({}, {}))),
    ]
    made(places=places, parts=("peers",))
    assert [arguments[1].left for _, arguments in made.asked] == [pytest.approx(25.0), pytest.approx(100.0)]


def test_several_precisions_are_measured_by_turns(made):
    place = Place(get_device("cpu"), ("float32", "float64"), dict.fromkeys(("float32", "float64"), Found({}, {})))
    made(places=[place], parts=("throughput",))
    (candidates,) = [arguments[1] for name, arguments in made.asked if name == "throughput"]
    assert [(one.name, one.options["precision"]) for one in candidates] == [
        ("plan", "float32"),
        ("reference", "float32"),
        ("plan", "float64"),
        ("reference", "float64"),
    ]
    made(places=[place], parts=("throughput", "peers"))
    assert [name for name, _ in made.asked] == ["throughput", "peers"]  # beside the peers by turns, too
    (questions,) = [arguments[0] for name, arguments in made.asked if name == "peers"]
    assert [(one.workload.precision, [each.name for each in one.engines]) for one in questions] == [
        ("float32", ["plan", "reference"]),
        ("float64", ["plan", "reference"]),
    ]


def test_a_part_that_fails_is_named_and_the_others_go_on(made):
    made.trouble["sweep"] = BareconvError("no room")
    suite, _, result, _ = made()
    assert suite.failed
    assert "sweep: no room." in suite.notes
    assert result["sweeps"] == []
    assert result["learning"] == [{"device": "cpu"}]


def test_time_that_is_up_is_no_failure(made):
    made.trouble["clocks"] = TimeUpError("the cold training was not ready")
    suite, _, result, _ = made()
    assert not suite.failed
    assert "clocks: the cold training was not ready." in suite.notes
    assert result["clocks"] == []
    assert result["learning"] == [{"device": "cpu"}]


def test_a_request_to_stop_ends_it_with_what_there_is(made):
    heard = Heard()
    made.trouble["energy"] = StoppedError()
    kept = []

    class Stops(Heard):
        def begins_part(self, name, deadline):
            super().begins_part(name, deadline)
            self.stop = name == "energy"

    suite, heard, result, kept = made(listener=Stops())
    assert list(heard.parts) == ["peers", "energy"]
    assert len(result["peers"]) == 1
    assert not suite.failed
    assert len(kept) == 2


def test_the_fastest_of_every_peer_learns(tmp_path):
    def side(name, variant, seconds, ours=False):
        candidate = our_candidate(name, "cpu", 1)
        one = Side(type(candidate)(name, candidate.command, {}, {}, ours, variant), tmp_path, Limits())
        if seconds:
            one.samples.add({"seconds": seconds, "steps": 1, "images": 10})
        return one

    sides = [
        side("plan", "", 0.1, ours=True),
        side("slow", "", 9.0),
        side("quick", "tuned", 1.0),
        side("quick", "default", 2.0),
        side("none", "", None),
    ]
    ended = []
    for one in sides:
        one.close = lambda one=one: ended.append(one)
    found = module._fastest(Compared(WORK, "data", 8, sides))
    assert [(one.candidate.name, one.candidate.variant) for one in found] == [
        ("plan", ""),
        ("quick", "tuned"),
        ("slow", ""),
    ]
    assert ended == [sides[3], sides[4]]


def test_what_is_ready_is_measured_on_and_ends_before_the_sweeps(made, monkeypatch):
    """Energy and learning get the sides of the peers; then these end, and whatever they hold is free."""
    ended: list[Side] = []
    given: dict[str, Any] = {}

    def compared(questions, *_, kept, **__):
        (question,) = questions
        side = Side(question.engines[0], Path(), Limits())
        side.samples.add({"seconds": 1.0, "steps": 1, "images": 10})
        side.memory = {"baseline": 1, "peak": 2}
        kept.callback(lambda: ended.append(side))
        return [Compared(question.workload, "data", 8, [side])]

    def part(name, answer):
        def measure(*arguments, **named):
            given[name] = (list(ended), named.get("ready"))
            return answer

        return measure

    monkeypatch.setattr(module, "compare", compared)
    monkeypatch.setattr(module, "measure_energies", part("energy", []))
    monkeypatch.setattr(module, "measure_learning", part("learning", {}))
    monkeypatch.setattr(module, "measure_sweep", part("sweep", {}))
    made()
    for name in ("energy", "learning"):
        gone, (side,) = given[name]
        assert (gone, side.candidate.name) == ([], "plan")
    assert len(given["sweep"][0]) == 1
