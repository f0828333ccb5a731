"""Cores, quota and processor, read from made-up /proc and /sys."""

from __future__ import annotations

import os
import sys

import pytest

from bareconv import host

V2_MOUNT = "31 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"


def make(root, files):
    """Files, by their path under ``root``."""
    for path, text in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return root


def grouped(root, group, mounts, files):
    return make(root, {"proc/self/cgroup": group, "proc/self/mountinfo": mounts, **files})


QUOTAS = {
    "v2, a container that sees its group as the root": (
        "0::/\n",
        V2_MOUNT,
        {"sys/fs/cgroup/cpu.max": "150000 100000\n"},
        1.5,
    ),
    "v2, no limit": ("0::/\n", V2_MOUNT, {"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
    "v2, the machine's root has no such file": ("0::/\n", V2_MOUNT, {}, None),
    "v2, the limit is the process's own": (
        "0::/system.slice/job.service\n",
        V2_MOUNT,
        {"sys/fs/cgroup/system.slice/job.service/cpu.max": "50000 100000"},
        0.5,
    ),
    "v2, the limit is a group's around it": (
        "0::/user.slice/user-1000.slice/session.scope\n",
        V2_MOUNT,
        {
            "sys/fs/cgroup/user.slice/cpu.max": "800000 100000",
            "sys/fs/cgroup/user.slice/user-1000.slice/cpu.max": "300000 100000",
            "sys/fs/cgroup/user.slice/user-1000.slice/session.scope/cpu.max": "max 100000",
        },
        3.0,
    ),
    "v2, another group's limit is not ours": (
        "0::/ours\n",
        V2_MOUNT,
        {"sys/fs/cgroup/others/cpu.max": "100000 100000", "sys/fs/cgroup/ours/cpu.max": "max 100000"},
        None,
    ),
    "v2, a namespace that the group lies outside of": (
        "0::/../../elsewhere\n",
        V2_MOUNT,
        {"sys/fs/cgroup/cpu.max": "200000 100000", "sys/elsewhere/cpu.max": "100000 100000"},
        2.0,
    ),
    "v1": (
        "4:memory:/\n3:cpu,cpuacct:/\n",
        "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
        {
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        2.5,
    ),
    "v1, no limit": (
        "3:cpu,cpuacct:/\n",
        "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct",
        {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
        None,
    ),
    "v1, Docker: the path is the host's, the mount shows the container's part of it": (
        "3:cpu,cpuacct:/docker/abc\n0::/docker/abc\n",
        "33 31 0:30 /docker/abc /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct",
        {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000"},
        2.0,
    ),
    "v1 with v2 beside it": (
        "3:cpu,cpuacct:/\n0::/init.scope\n",
        "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
        {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
        1.0,
    ),
    "files that make no sense": ("0::/\nrubbish\n", V2_MOUNT + "\nrubbish\n", {"sys/fs/cgroup/cpu.max": "lots"}, None),
    "a period of zero": ("0::/\n", V2_MOUNT, {"sys/fs/cgroup/cpu.max": "100000 0"}, None),
}


@pytest.mark.parametrize("case", QUOTAS)
def test_quota(case, tmp_path):
    group, mounts, files, expected = QUOTAS[case]
    assert host.container_quota(grouped(tmp_path, group, mounts, files)) == expected


def test_no_proc_is_no_quota(tmp_path):
    assert host.container_quota(tmp_path) is None
    assert host.control_groups("cpu", tmp_path) == []


@pytest.mark.parametrize(("quota", "cores"), [("max", 8), ("50000", 1), ("150000", 1), ("299999", 2), ("4000000", 8)])
def test_allowed_cores_are_cut_by_the_quota(quota, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(host, "affinity_cores", lambda: 8)
    root = grouped(tmp_path, "0::/\n", V2_MOUNT, {"sys/fs/cgroup/cpu.max": f"{quota} 100000"})
    assert host.allowed_cores(root) == cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_allowed_cores_heed_the_affinity_mask():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert host.affinity_cores() == host.allowed_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"OMP_NUM_THREADS": "4"}, ("OMP_NUM_THREADS", 4)),
        ({"OMP_NUM_THREADS": "3,2"}, ("OMP_NUM_THREADS", 3)),
        ({"OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "2"}, ("OPENBLAS_NUM_THREADS", 2)),
        ({"OPENBLAS_NUM_THREADS": "0", "MKL_NUM_THREADS": "1"}, ("MKL_NUM_THREADS", 1)),
        ({"OMP_NUM_THREADS": "many"}, None),
    ],
)
def test_requested_threads(variables, expected):
    assert host.requested_threads(variables) == expected


INTEL = (
    "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)  Gold 6338 CPU\nflags\t\t: fpu sse4_2 avx2\n\n"
    "processor\t: 1\nmodel name\t: another\n"
)
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd sve\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n\n"


def test_cpu_model(tmp_path):
    assert host.cpu_model(make(tmp_path / "intel", {"proc/cpuinfo": INTEL})) == "Intel(R) Xeon(R) Gold 6338 CPU"
    assert host.cpu_model(make(tmp_path / "arm", {"proc/cpuinfo": GRAVITON})) == "Arm Neoverse V1"
    assert host.cpu_model(make(tmp_path / "other", {"proc/cpuinfo": "CPU implementer : 0x99\n"})) != ""
    assert host.cpu_model(tmp_path / "none") != ""


def test_cpuinfo_is_the_first_processors(tmp_path):
    info = host.cpuinfo(make(tmp_path, {"proc/cpuinfo": INTEL}))
    assert info == {"processor": "0", "model name": "Intel(R) Xeon(R) Gold 6338 CPU", "flags": "fpu sse4_2 avx2"}
    assert host.cpuinfo(tmp_path / "none") == {}


def test_blas_threads_are_the_fewer_of_cores_and_wish(monkeypatch):
    monkeypatch.setattr(host, "allowed_cores", lambda: 8)
    for wish, threads in ((None, 8), (("OMP_NUM_THREADS", 3), 3), (("OMP_NUM_THREADS", 64), 8)):
        monkeypatch.setattr(host, "requested_threads", lambda wish=wish: wish)
        assert host.blas_threads() == threads


def test_caches(tmp_path, monkeypatch):
    """Data and unified ones of the first core that this process may use, the nearest first."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    folder = "sys/devices/system/cpu/cpu3/cache/index"
    given = [("Unified", 3, "32M", "0-7,16"), ("Data", 1, "48K", "3"), ("Instruction", 1, "32K", "3")]
    given += [("Unified", 2, "2048K", "2-3"), ("Unified", 4, "much", "0-7")]
    for number, (kind, level, size, cores) in enumerate(given):
        files = {"type": kind, "level": level, "size": size, "shared_cpu_list": cores}
        make(tmp_path, {f"{folder}{number}/{name}": f"{text}\n" for name, text in files.items()})
    expected = [host.Cache(1, 48 << 10, 1), host.Cache(2, 2 << 20, 2), host.Cache(3, 32 << 20, 9)]
    assert host.caches(tmp_path) == expected
    assert host.caches(tmp_path / "nothing") == []


def test_available_memory(tmp_path):
    make(tmp_path, {"proc/meminfo": "MemTotal:       16000 kB\nMemAvailable:   12000 kB\n"})
    assert host.available_memory(tmp_path) == 12000 * 1024
    assert host.available_memory(tmp_path / "nothing") is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak can be reset on Linux only")
def test_peak_memory_is_of_what_was_used_since_the_reset():
    host.reset_peak_resident_memory()
    before = host.resident_memory()
    block = b"x" * 200_000_000
    assert host.peak_resident_memory() > before + len(block) - 20_000_000  # the kernel counts in batches
    del block
    host.reset_peak_resident_memory()
    assert host.peak_resident_memory() < before + 100_000_000
