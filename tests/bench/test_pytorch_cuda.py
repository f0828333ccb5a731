"""PyTorch's GPU candidate: its arithmetic on the CPU, where a replay is the step itself; on a GPU all of it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys

import pytest
from bench_stand_ins import tiny

from bareconv.bench import process
from bareconv.bench.deadline import Deadline
from bareconv.bench.interleave import Candidate, Limits, Listener, our_candidate, prepare
from bareconv.bench.parity import TOLERANCE
from bareconv.bench.peers import cuda_variants, find
from bareconv.bench.workers.lock import LOCK, Alone
from bareconv.bench.workload import Workload
from bareconv.nn import models

MODULE = "bareconv.bench.workers.pytorch_cuda"


@pytest.fixture
def python():
    """An interpreter that has PyTorch."""
    found = find(["pytorch"], os.environ.get("BARECONV_TORCH_PYTHON"), "cuda:0", "float32")
    if found.absent:
        pytest.skip(f"PyTorch is not installed: {found.absent['pytorch']}")
    return found.pythons["pytorch"]


@pytest.fixture
def losses(tmp_path):
    """The first losses of a candidate on ``tiny``, in a precision that need not be the one of the others."""
    work = Workload("tiny", (9, 8, 2), batch_size=16, precision="float64", lr=0.02)
    work.write(tmp_path)

    def losses(candidate, precision="float64"):
        job = json.loads((tmp_path / "job.json").read_text())
        (tmp_path / "job.json").write_text(json.dumps({**job, "precision": precision}))
        side = prepare(candidate, tmp_path, Deadline.after(200), 5, Listener(), Limits())
        if side.error is None:
            side.run(0.02)
        side.finish()
        assert side.error is None
        assert sum(side.samples.images) == 16 * sum(side.samples.steps)
        assert side.memory["peak"] >= side.memory["baseline"]
        return side.losses

    return losses


@pytest.fixture(autouse=True)
def zoo(monkeypatch):
    monkeypatch.setitem(models.ZOO, "tiny", tiny)


def theirs(python, variant, device, precision):
    options = cuda_variants(device, precision)[variant]
    return Candidate("pytorch", process.foreign_command(python, MODULE), options, process.environment(1))


def relative(a, b):
    return max(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
def test_eager_and_replayed_steps_are_ours(python, losses):
    """The warm-up leaves no trace: weights, running statistics and momentum are those of the beginning."""
    ours = losses(our_candidate("reference", "cpu", 1))
    for variant in ("nchw eager", "channels_last eager", "nchw graph", "channels_last graph"):
        assert relative(ours, losses(theirs(python, variant, "cpu", "float64"))) < 1e-12


@pytest.mark.slow
def test_both_ways_to_bfloat16(python, losses):
    """Near ours, and not the same: half of the digits are gone."""
    ours = losses(our_candidate("reference", "cpu", 1))
    for variant in ("nchw graph autocast", "nchw graph copy"):
        assert 1e-5 < relative(ours, losses(theirs(python, variant, "cpu", "bfloat16"), "bfloat16")) < 0.05


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("precision", "variant"), [("float64", "channels_last graph"), ("bfloat16", "nchw graph copy")]
)
def test_on_a_gpu(precision, variant, python, losses):
    ours = losses(our_candidate("reference", "cpu", 1))
    assert relative(ours, losses(theirs(python, variant, "cuda:0", precision), precision)) < TOLERANCE[precision]


def test_alone(tmp_path, monkeypatch):
    """One holds the lock, entered twice or once, and another would have to wait."""
    monkeypatch.setenv(LOCK, str(tmp_path / "lock"))
    one, other = Alone(), Alone()
    assert one.file is not None
    assert other.file is not None

    def is_free():
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(second, fcntl.LOCK_UN)
        return True

    second = other.file
    assert is_free()
    with one:
        with one:
            assert not is_free()
        assert not is_free()
    assert is_free()
    for file in (one.file, other.file):
        file.close()


def test_alone_without_a_lock(monkeypatch):
    monkeypatch.delenv(LOCK, raising=False)
    alone = Alone()
    with alone:
        assert alone.depth == 1
    assert alone.file is None


@pytest.mark.slow
def test_autotuning_is_timed_alone(python, tmp_path):
    """The compiler's own timing of a kernel happens within the lock, and not outside of it."""
    code = """
import fcntl, sys, types
package = types.ModuleType("bareconv"); package.__path__ = [sys.argv[1]]; sys.modules["bareconv"] = package
from bareconv.bench.workers.lock import Alone
from torch._inductor.runtime.benchmarking import benchmarker
other = open(sys.argv[2], "a")
def locked(*arguments):
    try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(other, fcntl.LOCK_UN)
    return False
benchmarker.benchmark_gpu = locked
Alone().guard_autotuning()
print(benchmarker.benchmark_gpu(), locked())
"""
    folder = os.path.dirname(sys.modules["bareconv"].__file__ or "")
    lock = str(tmp_path / "lock")
    done = subprocess.run(
        [python, "-c", code, folder, lock],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, LOCK: lock},
    )
    assert done.stdout.split() == ["True", "False"]
