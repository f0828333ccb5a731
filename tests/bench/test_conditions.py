"""Conditions: who else used the cores, what was throttled, what a GPU did, and the words for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from gpu_stand_in import StandInGpu
from nvml_stand_in import StandInNvml

import bareconv
from bareconv.bench import cpu_times
from bareconv.bench.conditions import Watcher
from bareconv.device import get_device

SCHEMA = json.loads((Path(bareconv.__file__).parent / "bench/result.schema.json").read_text())
MOUNT = "31 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
ME = os.getpid()


@pytest.fixture
def write(tmp_path):
    """Write files under a root: write({"proc/stat": text})."""

    def write(files):
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(str(text))
        return tmp_path

    return write


def stat(*cores):
    """/proc/stat with these ticks of each core: user, nice, system, idle, iowait, irq, softirq, steal, guest."""
    lines = [f"cpu{number} {' '.join(map(str, ticks))} 0 0" for number, ticks in enumerate(cores)]
    return "cpu  1 2 3 4 5 6 7 8 9 10\n" + "\n".join(lines) + "\nintr 5 0 0\nctxt 1\n"


def process(ticks, ended=0, pid=ME):
    return f"{pid} (python (3) x) S 1 1 1 0 -1 4194560 0 0 0 0 {ticks} 0 {ended} 0 20 0 1\n"


def times(root: Path = Path("/")) -> Any:
    return cpu_times.read(root)


def watched(root, change, *, cores=(0, 1), devices=(), looks=0):
    with Watcher(devices, root, every=None, cores=cores) as watcher:
        for number in range(looks):
            change(number)
            watcher.look()
        if not looks:
            change(0)
    return conforms(watcher.record())


def conforms(record):
    jsonschema.Draft202012Validator({"$ref": "#/$defs/conditions", "$defs": SCHEMA["$defs"]}).validate(record)
    properties = SCHEMA["$defs"]["conditions"]["properties"]
    assert set(record["cpu"]) == set(properties["cpu"]["properties"])
    for gpu in record["gpus"]:
        assert set(gpu) == set(properties["gpus"]["items"]["properties"])
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    return record


def test_a_quiet_machine_has_no_remarks(write):
    quiet = {"proc/stat": stat([0] * 8, [0] * 8), f"proc/{ME}/stat": process(0)}

    def change(_):  # one core ours, one idle
        write(
            {"proc/stat": stat([98, 0, 2, 0, 0, 0, 0, 0], [0, 0, 0, 100, 0, 0, 0, 0]), f"proc/{ME}/stat": process(99)}
        )

    record = watched(write(quiet), change)
    assert record["remarks"] == []
    assert record["cpu"]["steal_share"] == 0
    assert record["cpu"]["others_share"] == pytest.approx(1 / 200)
    assert record["cpu"]["throttled_share"] is None
    assert record["gpus"] == []


def test_what_others_took(write):
    """Of the cores that are ours to use: the third is not."""
    root = write({"proc/stat": stat([10] * 8, [10] * 8, [10] * 8), f"proc/{ME}/stat": process(7)})

    def change(_):
        after = stat([70, 10, 20, 10, 10, 10, 10, 40], [10, 30, 10, 74, 14, 11, 11, 20], [500, *[10] * 6, 500])
        write({"proc/stat": after, f"proc/{ME}/stat": process(57)})

    # 200 ticks: 40 stolen, 92 busy (60 + 10, 20 + 1 + 1), 50 of them ours
    record = watched(root, change)
    assert record["cpu"]["steal_share"] == pytest.approx(40 / 200)
    assert record["cpu"]["others_share"] == pytest.approx(42 / 200)
    assert record["remarks"] == [
        "other machines took 20.0% of the cores' time (steal)",
        "other programs took 21.0% of the cores' time",
    ]


def test_what_our_processes_took_is_ours(write):
    """Children, their children, one that began meanwhile, and one that has ended and was waited for."""
    root = write(
        {
            "proc/stat": stat([0] * 8),
            f"proc/{ME}/stat": process(10, ended=3),
            f"proc/{ME}/task/{ME}/children": "",
            f"proc/{ME}/task/77/children": "101 102",
            "proc/101/stat": process(20, pid=101),
            "proc/101/task/101/children": "103",
            "proc/102/stat": process(5, pid=102),
            "proc/103/stat": process(30, pid=103),
            "proc/999/stat": process(1000, pid=999),
        }
    )
    assert cpu_times.own_processes(root) == {ME, 101, 102, 103}
    before = times(root)
    assert before.own == 10 + 3 + 20 + 5 + 30
    write(
        {
            "proc/stat": stat([60, 0, 0, 40, 0, 0, 0, 0]),
            f"proc/{ME}/stat": process(11, ended=3 + 15),  # 102 has ended, after 10 ticks more
            f"proc/{ME}/task/77/children": "101 104",
            "proc/103/stat": process(40, pid=103),
            "proc/104/stat": process(25, pid=104),
        }
    )
    after = times(root)
    assert after.own - before.own == 1 + 10 + 10 + 25
    assert before.others(after) == pytest.approx((60 - 46) / 100)


def test_more_of_ours_than_was_counted_is_no_negative_load(write):
    before = times(write({"proc/stat": stat([0] * 8), f"proc/{ME}/stat": process(0)}))
    after = times(write({"proc/stat": stat([5, 0, 0, 5, 0, 0, 0, 0]), f"proc/{ME}/stat": process(6)}))
    assert before.others(after) == before.stolen(after) == 0
    assert after.others(after) is None  # no time has passed


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_this_machine_counts_a_child_as_ours():
    """Where processes may ask for their children; a child works for 0.3 s, and its time is ours before it ends."""
    if not Path(f"/proc/{ME}/task/{ME}/children").exists():
        pytest.skip("this kernel does not list children")
    before = times()
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdin=-1, stdout=-1) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in cpu_times.own_processes()
        while_alive = times()
        child.communicate(b"\n")
    after = times()
    ticks = os.sysconf("SC_CLK_TCK")
    assert while_alive.own - before.own >= 0.25 * ticks
    assert while_alive.own <= after.own <= while_alive.own + ticks


@pytest.mark.parametrize("version", [1, 2])
def test_a_quota_that_was_used_up(version, write):
    if version == 2:
        root = write({"proc/self/cgroup": "0::/job\n", "proc/self/mountinfo": MOUNT})
        folder, outer = "sys/fs/cgroup/job", "sys/fs/cgroup"
    else:
        mount = "35 31 0:32 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct"
        root = write({"proc/self/cgroup": "4:cpu,cpuacct:/job\n", "proc/self/mountinfo": mount})
        folder, outer = "sys/fs/cgroup/cpu/job", "sys/fs/cgroup/cpu"

    def groups(periods, throttled):
        write({f"{folder}/cpu.stat": f"usage_usec 5\nnr_periods {periods}\nnr_throttled {throttled}\n"})
        write({f"{outer}/cpu.stat": "nr_periods 0\nnr_throttled 0\n"})

    groups(1000, 900)
    record = watched(root, lambda _: groups(1200, 925))
    assert record["cpu"]["throttled_share"] == pytest.approx(25 / 200)
    (remark,) = record["remarks"]
    assert remark.startswith("the container's share of the cores was used up in 12.5% of its periods")
    assert watched(root, lambda _: groups(1300, 925))["remarks"] == []


def test_clock_and_temperature_of_the_cpu(write):
    cores = {f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq": 3_000_000 for core in range(8)}
    zones = {
        "sys/class/thermal/thermal_zone0/type": "acpitz",
        "sys/class/thermal/thermal_zone0/temp": 99_000,
        "sys/class/thermal/thermal_zone1/type": "x86_pkg_temp",
        "sys/class/thermal/thermal_zone1/temp": 40_000,
    }
    heat = {f"sys/devices/system/cpu/cpu{core}/thermal_throttle/package_throttle_count": 5 for core in range(2)}
    root = write({**cores, **zones, **heat})

    def change(number):
        write({"sys/class/thermal/thermal_zone1/temp": 40_000 + 1000 * number})
        write({"sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": 2_000_000})
        write({f"sys/devices/system/cpu/cpu{core}/thermal_throttle/package_throttle_count": 8 for core in range(2)})

    record = watched(root, change, looks=2)
    assert record["cpu"]["temperature_celsius"] == [40, 41]
    assert record["cpu"]["frequency_hz"] == [2.5e9, 2.5e9]  # the mean of the two that are ours
    assert record["remarks"] == ["the CPU was slowed down by heat (3 times)"]


def test_sensors_where_there_are_no_zones(write):
    root = write(
        {
            "sys/class/hwmon/hwmon0/name": "nvme",
            "sys/class/hwmon/hwmon0/temp1_input": 90_000,
            "sys/class/hwmon/hwmon1/name": "k10temp\n",
            "sys/class/hwmon/hwmon1/temp1_input": "55125\n",
        }
    )
    assert watched(root, lambda _: None, looks=1)["cpu"]["temperature_celsius"] == [55.125]


def test_a_system_that_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    record = watched(tmp_path, lambda _: None, looks=3, devices=[StandInGpu()])
    assert record["cpu"] == {
        "steal_share": None,
        "others_share": None,
        "throttled_share": None,
        "heat_events": None,
        "frequency_hz": [],
        "temperature_celsius": [],
    }
    assert record["remarks"] == record["gpus"] == []


@pytest.fixture
def nvml(monkeypatch):
    library = StandInNvml()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    return library


def test_a_gpu(tmp_path, nvml):
    """Eight samples, of which six at work: two slowed down by power, one by heat. Clocks that are set do not count."""
    reasons = [0x1, 0x0, 0x4, 0x2, 0x4 | 0x20, 0x100, 0x0, 0x1 | 0x4]

    def change(number):
        nvml.values["CurrentClocksEventReasons"] = reasons[number]
        nvml.values["Temperature"] = 40 + number

    (gpu,) = watched(tmp_path, change, looks=8, devices=[get_device("cpu"), StandInGpu()])["gpus"]
    assert gpu["name"] == "NVIDIA Stand-In"
    assert gpu["sm_clock_hz"] == [1.755e9] * 8
    assert gpu["memory_clock_hz"] == [2.619e9] * 8
    assert gpu["temperature_celsius"] == list(range(40, 48))
    assert gpu["watts"] == [250] * 8
    assert gpu["throttle_reasons"] == ["its power limit", "its temperature"]
    assert gpu["throttled_shares"] == pytest.approx([2 / 6, 1 / 6])
    assert nvml.open == 0


def test_remarks_of_a_gpu(tmp_path, nvml):
    def change(number):
        nvml.values["CurrentClocksEventReasons"] = 0x4 if number < 3 else 0x0
        nvml.values["ClockInfo"] = {1: 1980 if number % 2 else 1400, 2: 2619}

    nvml.values["CurrPcieLinkWidth"] = 4
    assert watched(tmp_path, change, looks=20, devices=[StandInGpu()])["remarks"] == [
        "the GPU was slowed down by its power limit in 15% of the samples in which it worked",
        "the GPU's clock went from 1,400 to 1,980 MHz while it worked",
        "the GPU had 4 of its 16 lanes to the machine (PCI Express)",
    ]


def test_a_gpu_at_rest_has_no_remarks(tmp_path, nvml):
    """Its clock is low, and the power limit does not matter."""

    def change(number):
        nvml.values["CurrentClocksEventReasons"] = 0x1 | 0x4
        nvml.values["ClockInfo"] = {1: 345 if number % 2 else 1980, 2: 2619}

    record = watched(tmp_path, change, looks=20, devices=[StandInGpu()])
    assert record["remarks"] == record["gpus"][0]["throttle_reasons"] == []


def test_others_on_a_gpu(tmp_path, nvml):
    """Only where the numbers of processes are those that we know ourselves by."""
    nvml.values["ComputeRunningProcesses"] = [SimpleNamespace(pid=4711), SimpleNamespace(pid=4712)]
    record = watched(tmp_path, lambda _: None, looks=2, devices=[StandInGpu()])
    assert (record["remarks"], record["gpus"][0]["other_processes"]) == ([], 0)
    nvml.values["ComputeRunningProcesses"].append(SimpleNamespace(pid=ME))
    record = watched(tmp_path, lambda _: None, looks=2, devices=[StandInGpu()])
    assert record["remarks"] == ["other programs computed on the GPU (2)"]
    assert record["gpus"][0]["other_processes"] == 2


def test_a_gpu_of_an_old_release(tmp_path, nvml):
    """What it does not know is left empty; reasons have another name."""
    for name in ("ClockInfo", "PowerUsage", "ComputeRunningProcesses", "CurrPcieLinkWidth"):
        nvml.values[name] = None
    del nvml.nvmlDeviceGetCurrentClocksEventReasons
    nvml.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: 0x40
    record = watched(tmp_path, lambda _: None, looks=2, devices=[StandInGpu()])
    (gpu,) = record["gpus"]
    assert gpu["sm_clock_hz"] == gpu["memory_clock_hz"] == gpu["watts"] == []
    assert gpu["throttle_reasons"] == ["its temperature (in hardware)"]
    assert len(record["remarks"]) == 1


def test_the_thread_looks_by_itself_and_ends(nvml):
    with Watcher([StandInGpu()], every=0.01) as watcher:
        deadline = time.monotonic() + 5
        while len(watcher.record()["gpus"][0]["watts"]) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    record = conforms(watcher.record())
    seen = len(record["gpus"][0]["watts"])
    assert seen >= 3
    assert record["seconds"] > 0.02
    time.sleep(0.05)
    assert len(watcher.record()["gpus"][0]["watts"]) == seen
    assert nvml.open == 0


def test_looks_that_take_long_are_few(tmp_path, monkeypatch):
    """A look costs 0.01 s of a core's time: then it comes every 10 s, for a thousandth is what it may take."""
    waits = []

    class Ending:
        def wait(self, seconds):
            waits.append(seconds)
            return len(waits) > 2

    moments = iter([1.0, 1.01, 2.0, 2.0005])
    watcher = Watcher((), tmp_path)
    monkeypatch.setattr(watcher, "_ending", Ending())
    monkeypatch.setattr(time, "thread_time", lambda: next(moments))
    watcher._watch(1.0)
    assert waits == [1.0, pytest.approx(10.0), 1.0]
