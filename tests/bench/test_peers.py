"""Peers: found or absent, tried, chosen, held to our losses; PyTorch and DeZero where they are installed."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib import util
from types import SimpleNamespace

import pytest
from bench_stand_ins import LOSSES, QUICK, averaged, stand_in, tiny

from bareconv.bench import interleave, peers, results
from bareconv.bench.deadline import Deadline
from bareconv.bench.environment import describe
from bareconv.bench.interleave import Listener, our_candidate
from bareconv.bench.peers import PEERS, Found, Peer, Question, compare, find, record
from bareconv.bench.steady import run_record
from bareconv.bench.workers.lock import LOCK
from bareconv.bench.workload import Workload
from bareconv.errors import UsageError
from bareconv.nn import Dropout, Flatten, models
from bareconv.nn.layers import Dense
from bareconv.nn.model import Model

WORK = Workload("mlp", (6, 6, 1), batch_size=4)


def torch_python():
    """An interpreter that has PyTorch; skips where there is none."""
    found = find(["pytorch"], os.environ.get("BARECONV_TORCH_PYTHON"))
    if found.absent:
        pytest.skip(f"PyTorch is not installed: {found.absent['pytorch']}")
    return found


@pytest.fixture(scope="module")
def machine():
    return describe()


@pytest.fixture
def valid(machine):
    """The record of a comparison, within a result that fits the schema."""

    def valid(compared, absent=None):
        runs = [run_record(compared, side) for side in compared.sides if side.candidate.ours]
        entry = record(compared, absent or {})
        result = results.new("bench peers", {}, runs=filter(None, runs), peers=[entry], environment=machine)
        results.validate(result)
        return result["peers"][0]

    return valid


@pytest.fixture
def stand_ins(monkeypatch):
    """Peers that are stand-ins: each variant's options are its trouble, its losses and its step."""

    def make(name, command, options, environment, ours, variant):
        made = stand_in(name, **options.get("acts", {}))
        return type(made)(name, made.command, options, made.environment, ours, variant)

    monkeypatch.setattr(peers, "Candidate", make)

    def register(**catalog):
        for name, (variants, default) in catalog.items():
            monkeypatch.setitem(PEERS, name, Peer(name, "", variants, default))
        return Found(dict.fromkeys(catalog, sys.executable), {})

    return register


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Medians count as known after a few short blocks, so that the time need not be spent."""
    for name, value in (("ENOUGH", 4), ("NARROW", 10.0), ("LONGEST", 0.05)):
        monkeypatch.setattr(interleave, name, value)


def acting(mode="eager", **acts):
    return {"mode": mode, "acts": acts}


def compare_one(workload, engines, found, deadline, listener, **options):
    """``compare`` of a single question."""
    (compared,) = compare([Question(workload, engines, found)], deadline, listener, **options)
    return compared


def test_absent_and_unknown_peers():
    found = find(["pytorch", "dezero"], None)
    assert set(found.pythons) | set(found.absent) == {"pytorch", "dezero"}
    for name, package in (("pytorch", "torch"), ("dezero", "dezero")):
        if util.find_spec(package) is None:
            assert found.absent[name] == f"{package} is not installed for {sys.executable}"
    with pytest.raises(UsageError, match="peer 'abacus': expected one of pytorch, jax, tinygrad, dezero, numpy"):
        find(["abacus"], None)
    with pytest.raises(UsageError, match="--python /nowhere: there is no program of that name; expected a Python"):
        find(["pytorch"], "/nowhere")
    with pytest.raises(UsageError, match="--python true: that program is no Python; expected one"):
        find(["pytorch"], "true")  # which ends well, whatever it is asked


def test_the_best_variant_and_the_default_are_measured(stand_ins, valid):
    variants = {"slow": acting(step=0.004), "quick": acting(step=0.001), "broken": acting(trouble="die at run")}
    found = stand_ins(rival=(variants, acting(step=0.008)))
    compared = compare_one(WORK, [stand_in("plan", ours=True)], found, Deadline.after(60), Listener(), limits=QUICK)
    entry = valid(compared)
    assert [(one["name"], one["variant"]) for one in entry["candidates"]] == [
        ("plan", ""),
        ("rival", "quick"),
        ("rival", "default"),
    ]
    assert entry["ours"] == "plan"
    ours, quick, default = entry["candidates"]
    assert "ratio" not in ours
    for one, ratio in ((quick, 0.5), (default, 4.0)):
        assert one["ratio"]["value"] == pytest.approx(ratio, rel=1e-6)
        assert one["ratio"]["low"] <= one["ratio"]["value"] <= one["ratio"]["high"]
        assert one["throughput"]["memory_growth_bytes"] == 2000
        assert len(one["throughput"]["samples"]["seconds"]) >= 2
    tries = {one["variant"]: one for one in quick["tries"]}
    assert list(tries) == ["slow", "quick", "broken"]
    assert tries["quick"]["images_per_second"] == pytest.approx(4000)
    assert "something broke" in tries["broken"]["error"]
    assert quick["first_losses"] == list(LOSSES)


def test_variants_that_compile_can_be_left_out(stand_ins, valid):
    variants = {"compiled": acting("compile"), "eager": acting()}
    found = stand_ins(rival=(variants, None))
    compared = compare_one(
        WORK, [stand_in("plan", ours=True)], found, Deadline.after(60), Listener(), compiled=False, limits=QUICK
    )
    _, rival = valid(compared)["candidates"]
    assert (rival["variant"], [one["variant"] for one in rival["tries"]]) == ("eager", ["eager"])


@pytest.mark.parametrize("together", [1, 3])
def test_who_is_never_ready_takes_the_time_of_its_own_library(together, stand_ins, valid, monkeypatch):
    monkeypatch.setattr(peers, "at_once", lambda *_: together)
    monkeypatch.setattr(peers, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(peers, "COMPILING", {"cpu": 0.0})
    variants = {"eager": acting(), "compiled": acting("compile", trouble="hang at prepare")}
    found = stand_ins(rival=(variants, acting()), other=({"": acting()}, None))
    compared = compare_one(WORK, [stand_in("plan", ours=True)], found, Deadline.after(12), Listener())
    _, rival, default, other = valid(compared)["candidates"]
    assert (rival["variant"], rival["status"]) == ("eager", "measured")
    assert re.fullmatch(r"was not ready after \d s, when the time was up", rival["tries"][1]["error"])
    assert default["status"] == other["status"] == "measured"


def test_what_compiles_for_long_is_not_begun_without_the_time_for_it(stand_ins, valid, monkeypatch):
    monkeypatch.setattr(peers, "COMPILING", {"cpu": 100.0})
    found = stand_ins(rival=({"eager": acting(), "compiled": acting("compile")}, None))
    compared = compare_one(WORK, [stand_in("plan", ours=True)], found, Deadline.after(12), Listener())
    _, rival = valid(compared)["candidates"]
    assert (rival["variant"], rival["status"]) == ("eager", "measured")
    assert rival["tries"][1]["status"] == "interrupted"
    assert re.fullmatch(
        r"there was no time to compile it: 100 s are wanted, and \d s were left", rival["tries"][1]["error"]
    )


@pytest.mark.parametrize(("wanted", "seconds"), [(100.0, 4), (0.0, 2)])
def test_no_time_is_kept_for_what_would_not_be_begun(wanted, seconds, stand_ins, valid, monkeypatch):
    monkeypatch.setattr(peers, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(peers, "COMPILING", {"cpu": wanted})
    variants = {"eager": acting(trouble="hang at prepare"), "compiled": acting("compile")}
    found = stand_ins(rival=(variants, None))
    compared = compare_one(WORK, [stand_in("plan", ours=True)], found, Deadline.after(6.2), Listener())
    _, rival = valid(compared)["candidates"]
    waited = re.fullmatch(r"was not ready after (\d) s, when the time was up", rival["tries"][0]["error"])
    assert waited is not None
    assert abs(int(waited[1]) - seconds) <= 1


def test_who_is_fast_is_tried_briefly(stand_ins):
    found = stand_ins(rival=({"fast": acting(step=0.001), "slow": acting(step=0.02)}, None))
    compared = compare_one(WORK, [stand_in("plan", ours=True)], found, Deadline.after(60), Listener())
    fast, slow = (sum(side.tried.seconds) for side in compared.tries["rival"])
    assert fast == pytest.approx(peers.TRY_LEAST, rel=0.2)
    assert slow == pytest.approx(peers.TRY_STEPS * 0.02, rel=0.2)


def test_sides_may_be_kept_for_what_comes_next(stand_ins):
    found = stand_ins(rival=({"slow": acting(step=0.004), "fast": acting()}, acting()))
    with contextlib.ExitStack() as kept:
        compared = compare_one(WORK, [stand_in("plan", ours=True)], found, Deadline.after(60), Listener(), kept=kept)
        assert all(side.alive and side.memory["peak"] == 3000 for side in compared.sides)
        assert compared.sides[1].folder.is_dir()
    assert not any(side.alive for side in compared.sides)
    assert not compared.sides[1].folder.exists()
    compared = compare_one(WORK, [stand_in("plan", ours=True)], found, Deadline.after(60), Listener())
    assert not any(side.alive for side in compared.sides)


def test_who_chooses_algorithms_gets_ready_beside_its_own_kind_alone(stand_ins, monkeypatch):
    """The others begin with how each of them comes, then their variants; what compiles is last."""
    variants = {"one": acting(), "compiled": acting("compile")}
    found = stand_ins(first=(variants, acting()), choosing=({"": acting()}, None), other=({"": acting()}, None))
    monkeypatch.setitem(PEERS, "choosing", replace(PEERS["choosing"], chooses=True))
    waves, prepare_all = [], interleave.prepare_all

    def seen(pool, jobs, *arguments):
        waves.append([one.label for one, _ in jobs])
        prepare_all(pool, jobs, *arguments)

    monkeypatch.setattr(peers, "at_once", lambda *_: 3)
    monkeypatch.setattr(peers, "prepare_all", seen)
    compare_one(WORK, [stand_in("plan", ours=True)], found, Deadline.after(60), Listener(), limits=QUICK)
    assert waves == [["plan"], ["choosing"], ["first default", "other", "first one"], ["first compiled"]]


def test_questions_get_ready_together(stand_ins, valid, monkeypatch):
    """In the same waves, each with its own job; and are then measured one after another."""
    found = stand_ins(first=({"one": acting(step=0.004), "two": acting(step=0.002)}, acting(step=0.008)))
    waves, prepare_all = [], interleave.prepare_all

    def seen(pool, jobs, *arguments):
        waves.append([(one.label, folder.name) for one, folder in jobs])
        prepare_all(pool, jobs, *arguments)

    monkeypatch.setattr(peers, "at_once", lambda *_: 4)
    monkeypatch.setattr(peers, "prepare_all", seen)
    works, parts, measure = [WORK, replace(WORK, batch_size=8)], [], interleave.interleave

    def by_turns(sides, deadline, listener):
        parts.append(deadline.left)
        measure(sides, deadline, listener)

    monkeypatch.setattr(peers, "interleave", by_turns)
    questions = [Question(work, [stand_in("plan", ours=True)], found) for work in works]
    done = compare(questions, Deadline.after(20), Listener(), limits=QUICK)
    assert parts[0] <= 10 < parts[0] + parts[1]
    assert waves == [
        [("plan", "0"), ("plan", "1")],
        [("first default", "0"), ("first default", "1"), ("first one", "0"), ("first one", "1")],
        [("first two", "0"), ("first two", "1")],
    ]
    for number, (work, compared) in enumerate(zip(works, done, strict=True)):
        entry = valid(compared)
        assert {side.folder.name for side in [*compared.sides, *compared.tries["first"]]} == {str(number)}
        assert entry["batch_size"] == work.batch_size
        assert [one["variant"] for one in entry["candidates"]] == ["", "two", "default"]
        assert [one["status"] for one in entry["candidates"]] == ["measured"] * 3
    first, second = ([begun for side in one.sides for begun in side.samples.begun] for one in done)
    assert max(first) < min(second)


def test_each_question_has_losses_of_its_own(stand_ins, valid):
    found, other = stand_ins(first=({"": acting()}, None)), [loss + 1 for loss in LOSSES]
    questions = [
        Question(WORK, [stand_in("plan", ours=True, losses=losses)], found) for losses in (LOSSES, other, LOSSES)
    ]
    done = compare(questions, Deadline.after(30), Listener(), limits=QUICK)
    assert [valid(one)["candidates"][1]["status"] for one in done] == ["measured", "disagrees", "measured"]


def test_questions_get_ready_in_turn_where_memory_is_short(stand_ins, monkeypatch):
    found = stand_ins(first=({"": acting()}, None))
    question = Question(WORK, [stand_in("plan", ours=True)], found)  # 1 engine, and 2 of the peer at most
    gpu = SimpleNamespace(name="cuda:0", free_bytes=lambda: 7 * interleave.GPU_BYTES)
    monkeypatch.setattr(peers, "all_devices", lambda: [gpu])
    assert [peers._at_a_time([question] * count, "cuda:0") for count in (1, 2, 3)] == [1, 2, 2]
    assert peers._at_a_time([question] * 9, "cpu") == 9
    gpu.free_bytes = lambda: 0
    assert peers._at_a_time([question] * 2, "cuda:0") == 1
    monkeypatch.setattr(peers, "_at_a_time", lambda *_: 1)
    done = compare([question] * 2, Deadline.after(20), Listener(), limits=QUICK)
    assert [[side.status for side in one.sides] for one in done] == [["measured"] * 2] * 2


def test_who_chooses_algorithms_is_alone_only_while_it_gets_ready(stand_ins, monkeypatch):
    """Who is measured again elsewhere, for its energy say, must not look for a lock in a folder that is gone."""
    found = stand_ins(choosing=({"": acting()}, None), other=({"": acting()}, None))
    monkeypatch.setitem(PEERS, "choosing", replace(PEERS["choosing"], chooses=True))
    locks, prepare_all = {}, interleave.prepare_all

    def seen(pool, jobs, *arguments):
        locks.update({one.name: one.environment.get(LOCK) for one, _ in jobs})
        prepare_all(pool, jobs, *arguments)

    monkeypatch.setattr(peers, "prepare_all", seen)
    compared = compare_one(WORK, [stand_in("plan", ours=True)], found, Deadline.after(60), Listener(), limits=QUICK)
    assert [name for name, lock in locks.items() if lock is not None] == ["choosing"]
    assert all(side.rate is not None and LOCK not in side.candidate.environment for side in compared.sides)


def test_other_losses_mean_no_figures(stand_ins, valid):
    wrong = [*LOSSES[:-1], LOSSES[-1] * 1.002]
    near = [*LOSSES[:-1], LOSSES[-1] * 1.0005]
    found = stand_ins(
        wrong=({"": acting(losses=wrong)}, None),
        near=({"": acting(losses=near)}, None),
        lacking=({"": acting(trouble="cannot prepare")}, None),
        dying=({"": acting(trouble="die at run")}, None),
    )
    compared = compare_one(WORK, [stand_in("plan", ours=True)], found, Deadline.after(60), Listener(), limits=QUICK)
    entries = {one["name"]: one for one in valid(compared, {"gone": "not installed"})["candidates"]}
    assert {name: one["status"] for name, one in entries.items()} == {
        "plan": "measured",
        "wrong": "disagrees",
        "near": "measured",
        "lacking": "unsupported",
        "dying": "failed",
    }
    assert {name for name, one in entries.items() if "throughput" in one} == {"plan", "near"}
    assert "its first 5 losses differ from ours by up to 2.0e-03 (tolerance 0.001)" in entries["wrong"]["error"]
    assert entries["near"]["loss_difference"] == pytest.approx(5e-4)
    assert "Twist" in entries["lacking"]["error"]


def test_where_ours_fails_nothing_is_compared(stand_ins, valid):
    found = stand_ins(rival=({"": acting()}, None))
    compared = compare_one(
        WORK, [stand_in("plan", "die at prepare", ours=True)], found, Deadline.after(60), Listener(), limits=QUICK
    )
    entry = valid(compared)
    assert entry["ours"] is None
    assert [one["status"] for one in entry["candidates"]] == ["failed", "failed"]


def test_no_process_is_left_behind(stand_ins):
    found = stand_ins(rival=({"a": acting(), "b": acting(step=0.001)}, acting()))
    compared = compare_one(WORK, [stand_in("plan", ours=True)], found, Deadline.after(60), Listener(), limits=QUICK)
    assert not any(side.alive for side in [*compared.sides, *compared.tries["rival"]])


@pytest.fixture
def zoo(monkeypatch):
    def dropping(input_shape=(4, 4, 1), classes=10, seed=0, width=1.0):
        return Model([Flatten(), Dropout(0.5), Dense(classes)], input_shape, seed=seed, name="dropping")

    for model in (tiny, averaged, dropping):
        monkeypatch.setitem(models.ZOO, model.__name__, model)


def ours():
    return [our_candidate("reference", "cpu", 1)]


@pytest.mark.slow
def test_pytorch_computes_the_same(zoo, valid, monkeypatch):
    """In float64 there is no rounding to speak of: layouts, the flatten's order, strides, norms, the optimizer."""
    found = torch_python()
    monkeypatch.setattr(peers, "TRY_SECONDS", 0.05)
    work = Workload("tiny", (9, 8, 2), batch_size=16, precision="float64", lr=0.02)
    entry = valid(compare_one(work, ours(), found, Deadline.after(60), Listener(), compiled=False))
    for one in entry["candidates"]:
        assert (one["status"], one["error"]) == ("measured", None)
    best, default = entry["candidates"][1:]
    assert {one["variant"] for one in best["tries"]} == {"nchw eager", "channels_last eager"}
    assert default["variant"] == "default"
    assert max(best["loss_difference"], default["loss_difference"]) < 1e-12
    assert "torch" in best["throughput"]["versions"]


def test_pytorch_refuses_what_it_cannot_do_alike(zoo, valid, monkeypatch):
    found = torch_python()
    monkeypatch.setitem(PEERS, "pytorch", Peer("torch", PEERS["pytorch"].module, {"": peers.DEFAULT}))
    work = Workload("dropping", (4, 4, 1), batch_size=8)
    rival = valid(compare_one(work, ours(), found, Deadline.after(60), Listener()))["candidates"][1]
    assert (rival["status"], rival["error"]) == (
        "unsupported",
        "layer type Dropout (layer dropout1) has no counterpart here",
    )


@pytest.mark.parametrize("model", ["tiny", "averaged"])
def test_dezero_computes_the_same(model, zoo, valid):
    found = find(["dezero"], None)
    if found.absent:
        pytest.skip(f"DeZero is not installed: {found.absent['dezero']}")
    shape = (9, 8, 2) if model == "tiny" else (6, 6, 1)
    work = Workload(model, shape, batch_size=16, precision="float64", lr=0.02)
    rival = valid(compare_one(work, ours(), found, Deadline.after(60), Listener()))["candidates"][1]
    assert (rival["status"], rival["error"]) == ("measured", None)
    assert rival["loss_difference"] < 1e-12


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_that_turns_out_not_to_be_there(peer, valid):
    """The scripts start under any interpreter, bareconv installed or not; what is absent is an answer, not a crash."""
    if util.find_spec(PEERS[peer].package) is not None:
        pytest.skip(f"{peer} is there")
    compared = compare_one(
        WORK, ours(), Found({peer: sys.executable}, {}), Deadline.after(60), Listener(), compiled=False
    )
    rival = valid(compared)["candidates"][1]
    assert rival["status"] == "failed"
    assert f"No module named '{PEERS[peer].package}'" in rival["error"]


def test_the_peers_scripts_import_nothing_of_ours_that_needs_a_package():
    code = """
import sys, types
package = types.ModuleType("bareconv"); package.__path__ = [sys.argv[1]]; sys.modules["bareconv"] = package
import bareconv.bench.workers.pytorch, bareconv.bench.workers.dezero
print(*(name for name in sys.modules if name.startswith("bareconv.")))
"""
    folder = os.path.dirname(sys.modules["bareconv"].__file__ or "")
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True, timeout=60)
    assert set(done.stdout.split()) == {
        "bareconv.host",
        "bareconv.random",
        "bareconv.bench",
        "bareconv.bench.estimates",
        *(f"bareconv.bench.workers{name}" for name in ("", ".serving", ".pytorch", ".dezero")),
    }
