"""Energy: counters that wrap around or cannot be read, what is taken off, and when there is no figure but a reason."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from bench_stand_ins import stand_in
from gpu_stand_in import StandInGpu
from nvml_stand_in import StandInNvml

import bareconv
from bareconv.bench import energy
from bareconv.bench.counters import PackageCounter, Source, source_of
from bareconv.bench.deadline import Deadline
from bareconv.bench.energy import AtRest, measure_energy
from bareconv.bench.interleave import Limits, Listener, Samples, Side
from bareconv.bench.nvml import UnavailableError
from bareconv.bench.workload import Workload
from bareconv.device import get_device

SCHEMA = json.loads((Path(bareconv.__file__).parent / "bench/result.schema.json").read_text())
WORK = Workload("mlp", (6, 6, 1), batch_size=8)
RANGE = 262_143_328_850  # microjoules


class World:
    """A machine whose time passes when it sleeps or works, and whose power depends on which it does.

    Counters show its energy as it was at their last update, every ``interval`` seconds.
    """

    def __init__(self, idle=50.0, busy=150.0, interval=0.01):
        self.now, self.energy = 100.0, 0.0
        self.idle, self.busy, self.interval = idle, busy, interval
        self.shown, self.updated = 0.0, 0
        self.working = 0.0  # seconds that were worked
        self.after_work = idle  # power at rest once there was work

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self._pass(seconds, self.after_work if self.working else self.idle)

    def work(self, seconds):
        self.working += seconds
        self._pass(seconds, self.busy)

    def _pass(self, seconds, watts):
        end = self.now + seconds
        update = int(end / self.interval)
        if update > self.updated:
            self.updated = update
            self.shown = self.energy + watts * max(0.0, update * self.interval - self.now)
        self.energy += watts * seconds
        self.now = end


class Runner:
    """A side that takes 100 images a second."""

    def __init__(self, world, fails_at=99):
        self.candidate = stand_in("plan", ours=True)
        self.samples, self.error = Samples(seconds=[1.0], wall_seconds=[1.0], steps=[5], images=[40]), None
        self.world, self.fails_at, self.runs = world, fails_at, 0

    def run(self, block):
        self.runs += 1
        if self.runs == self.fails_at:
            self.error = "its process ended"
            return
        self.world.work(block)
        self.samples.add({"seconds": block, "steps": 25 * block, "images": 100 * block})


class Quiet:
    """Nobody else is at work; or so much at the so-many-th look."""

    sees_through = True

    def __init__(self, *shares):
        self.shares = list(shares)

    def begin(self):
        pass

    def others(self):
        return self.shares.pop(0) if self.shares else 0.01


class Counting:
    name, covers = "a counter", "everything"

    def __init__(self, world):
        self.read = lambda: world.shown


def measured(world, *, runner=None, load=None, window=4.0, left=60.0, listener=None, counter=None, at_rest=None):
    source = contextlib.nullcontext(Source([counter or Counting(world)], load or Quiet()))
    runner = runner or Runner(world)
    record = measure_energy(
        *(WORK, runner, get_device("cpu"), Deadline(world.now + left, world.clock), listener or Listener(), window),
        source=source,
        clock=world.clock,
        sleep=world.sleep,
        at_rest=at_rest,
    )
    assert runner.samples.images == [40]  # the side's own are as they were
    return conforms(record)


def conforms(record):
    jsonschema.Draft202012Validator({"$ref": "#/$defs/energy", "$defs": SCHEMA["$defs"]}).validate(record)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    return record


def test_gross_and_net():
    """150 W while 100 images a second are trained on, 50 W at rest."""
    found = measured(World())
    assert found["unavailable"] is None
    assert found["counter"] == "a counter: everything"
    assert (found["name"], found["device"], found["model"], found["batch_size"]) == ("plan", "cpu", "mlp", 8)
    assert found["images"] == 400
    assert found["seconds"] == pytest.approx(4.0, abs=0.02)
    assert found["joules"] == pytest.approx(600, rel=0.01)
    assert found["idle_watts"] == pytest.approx(50, rel=0.01)
    assert found["net_joules"] == pytest.approx(400, rel=0.01)
    assert found["joules_per_1000_images"] == pytest.approx(1500, rel=0.01)
    assert found["net_joules_per_1000_images"] == pytest.approx(1000, rel=0.01)


def test_the_power_at_rest_is_measured_once_between_two():
    world, at_rest = World(), AtRest()
    first = measured(world, at_rest=at_rest)
    assert at_rest.moment == world.now
    assert at_rest.watts == pytest.approx(50, rel=0.01)
    begun = world.now
    again = measured(world, at_rest=at_rest, left=7.6)  # alone it would need 8.5 s
    assert again["net_joules"] == pytest.approx(first["net_joules"], rel=0.02)
    assert 6.5 < world.now - begun < 7.0
    world.sleep(1.1)  # in which anything may have happened
    begun = world.now
    assert measured(world, at_rest=at_rest)["net_joules"] == pytest.approx(first["net_joules"], rel=0.02)
    assert 8.5 < world.now - begun < 9.0


def test_two_counters_are_added_up():
    world = World()
    source = contextlib.nullcontext(Source([Counting(world), Counting(world)], Quiet()))
    found = measure_energy(
        *(WORK, Runner(world), get_device("cpu"), Deadline(1e9, world.clock), Listener(), 4.0),
        source=source,
        clock=world.clock,
        sleep=world.sleep,
    )
    assert found["joules"] == pytest.approx(1200, rel=0.01)
    assert found["counter"] == "a counter: everything; a counter: everything"


def test_a_counter_that_moves_seldom_needs_a_long_window():
    found = measured(World(interval=0.1), window=4.0)
    assert found["unavailable"].startswith("4.00 s of steps are too short: the counter moves every ")
    assert found["unavailable"].endswith(", so that at least 5.00 s are needed")
    assert "joules" not in found
    longer = measured(World(interval=0.1), window=6.0)
    assert longer["joules_per_1000_images"] == pytest.approx(1500, rel=0.03)
    assert "at least 2.00 s are needed" in measured(World(interval=0.001), window=1.5)["unavailable"]


def test_as_long_as_the_counter_needs():
    assert measured(World(interval=0.01), window=None)["seconds"] == pytest.approx(5.0, abs=0.02)
    found = measured(World(interval=0.2), window=None)
    assert found["seconds"] == pytest.approx(11.0, abs=0.3)
    assert found["joules_per_1000_images"] == pytest.approx(1500, rel=0.03)
    assert "2.00 s were left" in measured(World(interval=0.2), window=None, left=3.2)["unavailable"]


def test_a_counter_that_stands_still():
    world = World(interval=1e9)
    assert measured(world)["unavailable"] == "a counter stood still for 2.00 s"


def test_no_time_for_it():
    world = World()
    found = measured(world, left=6.0)
    assert found["unavailable"].startswith("there was no time: 8.50 s are needed, and 5.9")
    assert world.working == 0


@pytest.mark.parametrize(
    ("shares", "when"),
    [
        ((0.3,), "30.0% of what the counter covers at rest"),
        ((0.0, 0.2), "20.0% of what the counter covers while the steps ran"),
        ((0.0, 0.0, 0.1), "10.0% of what the counter covers at rest"),
    ],
)
def test_the_load_of_others(shares, when):
    assert measured(World(), load=Quiet(*shares))["unavailable"] == f"others used {when}"


def test_where_others_cannot_be_told_from_us_only_rest_counts():
    load = Quiet(0.0, 0.0, 0.9)
    load.sees_through = False
    assert measured(World(), load=load)["unavailable"] is None
    assert load.shares == [0.9]


def test_rest_that_is_not_the_same_after():
    world = World()
    world.after_work = 75.0
    reason = measured(world)["unavailable"]
    assert reason.startswith("the power at rest was 50 W before and 75 W after, too far apart")
    world = World()
    world.after_work = 53.0
    found = measured(world)
    assert found["idle_watts"] == pytest.approx(51.5, rel=0.01)


def test_steps_that_take_no_more_than_rest_are_no_measurement():
    world = World(idle=50.0, busy=50.0)
    world.after_work = 50.5
    assert "too far apart" in measured(world)["unavailable"]


def test_a_side_that_fails():
    world = World()
    assert measured(world, runner=Runner(world, fails_at=3))["unavailable"] == "its process ended"


def test_stopped_by_request():
    class Stops(Listener):
        def should_stop(self):
            return world.working > 2

    world = World()
    assert measured(world, listener=Stops())["unavailable"] == "the measurement was stopped"
    assert world.working < 4


# Counters


# Several candidates


def test_each_candidate_in_its_own_process(monkeypatch):
    """With real processes: one that runs, one that cannot get ready, and none is left behind."""
    monkeypatch.setattr(energy, "source_of", lambda device: contextlib.nullcontext(Source([], Quiet())))
    seen = []

    def measure(side, meter, load, deadline, listener, window, at_rest):
        seen.append(side.candidate.name)
        side.run(0.05)
        return {"images": sum(side.samples.images), "joules": deadline.left}

    monkeypatch.setattr(energy, "_measure", measure)
    candidates = [stand_in("good"), stand_in("bad", "die at prepare"), stand_in("other")]
    good, bad, other = energy.measure_energies(WORK, candidates, get_device("cpu"), Deadline.after(30), Listener())
    assert seen == ["good", "other"]
    assert good["images"] == other["images"] == 100
    assert good["joules"] > 25  # the time of all is everyone's
    assert bad["unavailable"].startswith("its process ended (exit code 3)")
    for record in (good, bad, other):
        conforms({**record, "joules": 1.0})


def test_who_is_ready_is_measured_and_stays(monkeypatch, tmp_path):
    monkeypatch.setattr(energy, "source_of", lambda device: contextlib.nullcontext(Source([], Quiet())))
    monkeypatch.setattr(energy, "prepare", None)
    seen = []

    def measure(side, *_):
        seen.append(side)
        side.run(0.05)
        return {"joules": 1.0}

    monkeypatch.setattr(energy, "_measure", measure)
    ready = [Side(stand_in(name), tmp_path, Limits()) for name in ("A", "B")]
    for side in ready:
        side.prepare(5, 0.0, lambda: False)
    wanted = [stand_in("B")]
    (found,) = energy.measure_energies(WORK, wanted, get_device("cpu"), Deadline.after(30), Listener(), ready)
    assert (found["name"], found["joules"], seen) == ("B", 1.0, [ready[1]])
    assert not ready[1].samples.seconds  # what it ran for this is no sample of its speed
    assert all(side.alive for side in ready)
    for side in ready:
        side.close()


def test_where_nothing_counts_nobody_is_started(monkeypatch):
    def nothing(device):
        raise UnavailableError("there is nothing")

    monkeypatch.setattr(energy, "source_of", nothing)
    monkeypatch.setattr(energy, "prepare", None)
    found = energy.measure_energies(
        WORK, [stand_in("A"), stand_in("B")], get_device("cpu"), Deadline.after(9), Listener()
    )
    assert [(conforms(one)["name"], one["unavailable"]) for one in found] == [
        ("A", "there is nothing"),
        ("B", "there is nothing"),
    ]


def test_stopped_while_it_gets_ready(monkeypatch):
    class Stops(Listener):
        def should_stop(self):
            return True

    monkeypatch.setattr(energy, "source_of", lambda device: contextlib.nullcontext(Source([], Quiet())))
    hangs = [stand_in("A", "hang at prepare")]
    (found,) = energy.measure_energies(WORK, hangs, get_device("cpu"), Deadline.after(30), Stops())
    assert conforms(found)["unavailable"] == "the measurement was stopped"


@pytest.fixture
def powercap(tmp_path):
    """Write zones: powercap("intel-rapl:0", "package-0", microjoules)."""

    def write(zone, name, microjoules, most=RANGE):
        folder = tmp_path / "sys/class/powercap" / zone
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(f"{microjoules}\n")
        (folder / "max_energy_range_uj").write_text(f"{most}\n")
        return tmp_path

    return write


def test_packages_are_counted_once(powercap):
    def show(first, second, rest):
        powercap("intel-rapl:0", "package-0", first)
        powercap("intel-rapl:1", "package-1", second)
        powercap("intel-rapl:0:0", "core", rest)
        powercap("intel-rapl:0:1", "dram", rest)
        powercap("intel-rapl:2", "psys", rest)
        powercap("intel-rapl-mmio:0", "package-0", rest)
        return powercap("dtpm:0", "something", rest)

    counter = PackageCounter(show(1_000_000, 2_000_000, 0))
    begun = counter.read()
    show(4_500_000, 2_000_000, 77_000_000)
    assert counter.read() - begun == pytest.approx(3.5)
    show(4_500_000, 12_000_000, 99_000_000)
    assert counter.read() - begun == pytest.approx(13.5)
    assert counter.covers == "all 2 CPU packages: cores and caches, not the memory's chips"


def test_dies_of_a_package(powercap):
    powercap("intel-rapl:0", "package-0-die-0", 0)
    root = powercap("intel-rapl:1", "package-0-die-1", 0)
    counter = PackageCounter(root)
    powercap("intel-rapl:1", "package-0-die-1", 2_000_000)
    powercap("intel-rapl:0", "package-0-die-0", 1_000_000)
    assert counter.read() == pytest.approx(3.0)


def test_a_counter_that_begins_again(powercap):
    counter = PackageCounter(powercap("intel-rapl:0", "package-0", RANGE - 1_500_000))
    powercap("intel-rapl:0", "package-0", 2_500_000)
    assert counter.read() == pytest.approx(4.0)
    powercap("intel-rapl:0", "package-0", 3_500_000)
    assert counter.read() == pytest.approx(5.0)
    assert counter.covers.startswith("the CPU package: ")


def test_a_counter_that_begins_again_without_saying_where(powercap):
    counter = PackageCounter(powercap("intel-rapl:0", "package-0", 9, most=0))
    powercap("intel-rapl:0", "package-0", 8, most=0)
    with pytest.raises(UnavailableError, match="began again"):
        counter.read()


def test_no_counter(tmp_path, powercap):
    with pytest.raises(UnavailableError, match="no counter of a CPU package in /sys/class/powercap"):
        PackageCounter(tmp_path)
    root = powercap("intel-rapl:0", "psys", 0)
    with pytest.raises(UnavailableError, match="no counter of a CPU package"):
        PackageCounter(root)


def test_a_counter_for_root_only(powercap, monkeypatch):
    root = powercap("intel-rapl:0", "package-0", 1)
    read = Path.read_text

    def refused(self, *arguments, **more):
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(self, *arguments, **more)

    monkeypatch.setattr(Path, "read_text", refused)  # root, who may run the tests, may read all
    with pytest.raises(UnavailableError, match="energy_uj is readable for root only, as in Linux since CVE-2020-8694"):
        PackageCounter(root)


def test_a_file_that_holds_no_number(powercap):
    with pytest.raises(UnavailableError, match="energy_uj cannot be read: invalid literal"):
        PackageCounter(powercap("intel-rapl:0", "package-0", "nonsense"))


def write_stat(root, busy, idle, own):
    """Two cores' ticks under ``root``, and those of this process."""
    folder = root / f"proc/{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    (root / "proc/stat").write_text(f"cpu  9 9 9 9\ncpu0 {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu1 0 0 0 {idle}\nintr 1 2\n")
    (folder / "stat").write_text(f"{os.getpid()} (a ) name) R " + " ".join(["0"] * 10) + f" {own} 0 0 0 20\n")
    return root


def test_the_whole_of_it_on_a_cpu(powercap):
    """From the files of a machine to the record; 15 J a second of steps, 5 J at rest, and others that take a half."""
    world = World(idle=5.0, busy=15.0, interval=0.002)
    root = powercap("intel-rapl:0", "package-0", 0)
    others = 0.0

    def show():
        powercap("intel-rapl:0", "package-0", (RANGE - 10_000_000 + round(1e6 * world.shown)) % RANGE)
        passed = round(100 * (world.now - 100))
        ours = round(100 * world.working)
        write_stat(root, ours + round(others * passed), 3 * passed - ours, ours)

    class Showing(World):
        def _pass(self, seconds, watts):
            super()._pass(seconds, watts)
            show()

    world.__class__ = Showing
    show()

    def measure():
        return measure_energy(
            *(WORK, Runner(world), get_device("cpu"), Deadline(1e9, world.clock), Listener(), 4.0),
            source=source_of(get_device("cpu"), root),
            clock=world.clock,
            sleep=world.sleep,
        )

    found = conforms(measure())
    assert found["unavailable"] is None
    assert found["joules"] == pytest.approx(60, rel=0.01)
    assert found["net_joules_per_1000_images"] == pytest.approx(100, rel=0.02)
    others = 0.5
    assert "of what the counter covers at rest" in conforms(measure())["unavailable"]


def test_a_machine_without_counters_has_a_reason(tmp_path):
    world = World()
    record = measure_energy(
        *(WORK, Runner(world), get_device("cpu"), Deadline(1e9, world.clock), Listener()),
        source=source_of(get_device("cpu"), tmp_path),
    )
    assert conforms(record)["unavailable"].startswith("there is no counter of a CPU package")
    assert "counter" not in record


def test_the_whole_of_it_on_a_gpu(monkeypatch):
    """In millijoules; and the GPU's own precision is named."""
    world = World(idle=80.0, busy=380.0)
    nvml = StandInNvml(TotalEnergyConsumption=lambda: round(1000 * world.shown))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    runner = Runner(world)
    runner.candidate = SimpleNamespace(**{**vars(runner.candidate), "options": {"precision": "tf32"}, "label": "plan"})
    found = measure_energy(
        *(WORK, runner, StandInGpu(), Deadline(1e9, world.clock), Listener(), 4.0),
        clock=world.clock,
        sleep=world.sleep,
    )
    conforms(found)
    assert (found["device"], found["precision"], found["unavailable"]) == ("cuda:0", "tf32", None)
    assert found["joules"] == pytest.approx(1520, rel=0.01)
    assert found["net_joules"] == pytest.approx(1200, rel=0.01)
    assert "NVIDIA Stand-In" in found["counter"]
    assert nvml.open == 0
    nvml.values["UtilizationRates"] = SimpleNamespace(gpu=12)
    again = measure_energy(
        *(WORK, Runner(world), StandInGpu(), Deadline(1e9, world.clock), Listener(), 4.0),
        clock=world.clock,
        sleep=world.sleep,
    )
    assert again["unavailable"] == "others used 12.0% of what the counter covers at rest"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"TotalEnergyConsumption": None}, "NVIDIA Stand-In counts no energy, or does not tell"),
        ({"UtilizationRates": None}, "NVIDIA Stand-In does not tell whether others use it"),
    ],
)
def test_a_gpu_that_does_not_tell(values, reason, monkeypatch):
    world = World()
    energy: Any = {"TotalEnergyConsumption": lambda: round(1000 * world.shown)}
    monkeypatch.setitem(sys.modules, "pynvml", StandInNvml(**{**energy, **values}))
    found = measure_energy(
        *(WORK, Runner(world), StandInGpu(), Deadline(1e9, world.clock), Listener(), 4.0),
        clock=world.clock,
        sleep=world.sleep,
    )
    assert conforms(found)["unavailable"].startswith(reason)


def test_no_nvml(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(UnavailableError, match="NVML does not work here"), source_of(StandInGpu()):
        pass
    monkeypatch.setitem(sys.modules, "pynvml", StandInNvml())
    second = StandInGpu()
    second.index, second.name = 1, "cuda:1"
    with pytest.raises(UnavailableError, match="NVML does not know cuda:1"), source_of(second):
        pass


def test_a_gpu_is_found_by_its_place_on_the_bus(monkeypatch):
    nvml, asked = StandInNvml(), []

    def handle(place):
        asked.append(place)
        return "the handle"

    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByPciBusId", handle, raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    gpu = StandInGpu()
    runtime = SimpleNamespace(deviceGetPCIBusId=lambda index: f"0000:3{index}:00.0")
    monkeypatch.setattr(gpu, "xp", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    gpu.index = 4
    with source_of(gpu) as source:
        assert source.counters[0].read() == 5000
    assert asked == ["0000:34:00.0"]
