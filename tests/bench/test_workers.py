"""What every library's process computes: our losses, our predictions, its own word on what it was set to.

The libraries that are not installed are skipped. float64 leaves no rounding to speak of.
"""

from __future__ import annotations

import functools
import json
import os
from importlib import util

import numpy as np
import pytest
from bench_stand_ins import averaged, tiny

from bareconv.bench import process
from bareconv.bench.interleave import Candidate, Limits, Side
from bareconv.bench.parity import TOLERANCE
from bareconv.bench.peers import CHECKED_STEPS, PEERS, catalog, check, find
from bareconv.bench.process import Worker, WorkerError
from bareconv.bench.workers.ours import Ours
from bareconv.bench.workers.serving import Job
from bareconv.bench.workload import Workload
from bareconv.nn import Dropout, Flatten, models
from bareconv.nn.layers import BatchNorm, Conv2d, Dense, MaxPool2d, ReLU
from bareconv.nn.model import Model
from bareconv.training.evaluation import predict

MORE_STEPS = 9  # in one request: what a candidate takes several steps of in one call
TEST_IMAGES = 300

QUICK = {"mlp": (28, 28, 1), "lenet5": (28, 28, 1), "uneven": (9, 7, 1), "averaged": (6, 6, 1)}
SLOW = {
    "tiny": (9, 8, 2),  # blocks, strides, paddings
    "small": (28, 28, 1),
    "basic": (28, 28, 1),
    "resnet9": (8, 8, 3),
    "resnet18": (8, 8, 3),
}


def uneven(input_shape=(9, 7, 1), classes=10, seed=0, width=1.0):
    """Pools whose windows leave rows and columns over, or overlap, or are padded; norms whose momentum is not usual."""
    layers = [
        *(Conv2d(5, (3, 2), padding=(1, 1)), BatchNorm(momentum=0.3, eps=1e-3), ReLU(), MaxPool2d(2)),
        *(Conv2d(6, 3, padding=1), ReLU(), MaxPool2d(3, 2, 1), Flatten(), Dense(classes, bias=False)),
    ]
    return Model(layers, input_shape, seed=seed, name="uneven")


def dropping(input_shape=(4, 4, 1), classes=10, seed=0, width=1.0):
    return Model([Flatten(), Dropout(0.5), Dense(classes)], input_shape, seed=seed, name="dropping")


@pytest.fixture(autouse=True)
def zoo(monkeypatch):
    for model in (tiny, averaged, uneven, dropping):
        monkeypatch.setitem(models.ZOO, model.__name__, model)


@functools.cache
def interpreter(name):
    """(Python that has the library, None), or (None, why there is none)."""
    found = find([name], os.environ.get("BARECONV_TORCH_PYTHON"))
    return found.pythons.get(name), found.absent.get(name)


def candidate(name, options=None, variables=None, device="cpu", precision="float64"):
    """A library, by default with the options of its first variant; skips where it is not installed."""
    python, absent = interpreter(name)
    if python is None:
        pytest.skip(f"{name} is not installed: {absent}")
    peer = catalog(device, precision)[name]
    options = next(iter(peer.variants.values())) if options is None else options
    environment = {**process.environment(1), **(variables or {})}
    return Candidate(name, process.foreign_command(python, peer.module), options, environment)


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    """Asks a library, all questions of one process, whose imports take longer than most answers."""
    workers = {}

    def ask(one, do, **message):
        key = (one.name, json.dumps(one.options))
        if key not in workers:
            workers[key] = Worker(one.command, one.environment, tmp_path_factory.mktemp("serving"))
        try:
            return workers[key].ask(do, 300, **message)
        except WorkerError as error:
            if error.unsupported and "needs clang" in str(error):
                pytest.skip(str(error))
            raise

    yield ask
    for worker in workers.values():
        worker.close()


def written(folder, model, shape, precision="float64", **settings):
    """A job of a few images, some of which are for testing, labelled as our model sees them after its steps.

    Returns our losses: of the first steps, and of the last of some more.
    """
    folder.mkdir(exist_ok=True)
    Workload(model, shape, batch_size=4, precision=precision, **{"lr": 0.02, **settings}).write(folder)
    images = np.random.default_rng(7).integers(0, 256, (TEST_IMAGES, *shape), dtype=np.uint8)
    np.save(folder / "test_images.npy", images)
    np.save(folder / "test_labels.npy", np.zeros(TEST_IMAGES, np.int32))
    ours = Ours({"engine": "reference", "device": "cpu"})
    ours.build(Job.read(folder))
    losses = [ours.steps(step, 1) for step in range(CHECKED_STEPS)]
    losses.append(ours.steps(CHECKED_STEPS, MORE_STEPS))
    labels, _ = predict(ours.trainer.engine, images)
    np.save(folder / "test_labels.npy", labels.astype(np.int32))
    return losses


def trained(serving, one, folder):
    """(losses as ``written`` returns ours, accuracy, flags) of a library on a job."""
    prepared = serving(one, "prepare", folder=str(folder), options=one.options, checks=CHECKED_STEPS, warm_up=0.0)
    assert prepared["steps"] == CHECKED_STEPS
    more = serving(one, "run", steps=MORE_STEPS)
    assert more["steps"] == MORE_STEPS
    found = serving(one, "accuracy")
    assert found["seconds"] > 0
    again = serving(one, "restart", checks=CHECKED_STEPS)
    assert again["steps"] == CHECKED_STEPS
    assert again["losses"] == pytest.approx(prepared["losses"], rel=1e-9)
    return [*prepared["losses"], more["loss"]], found["accuracy"], prepared["flags"]


def relative(ours, theirs):
    return max(abs(a - b) / abs(a) for a, b in zip(ours, theirs, strict=True))


def agrees(serving, one, folder, model, shape):
    # Of a residual network's loss that grows, rounding would make another: its steps are small.
    ours = written(folder, model, shape, **({"lr": 1e-5} if model.startswith("resnet") else {}))
    theirs, accuracy, flags = trained(serving, one, folder)
    assert relative(ours, theirs) < 1e-9
    assert accuracy == 1.0  # every one of the images gets the label that our model gives it
    assert flags
    assert all(isinstance(value, str) for value in flags.values())
    return flags


@pytest.mark.parametrize("model", QUICK)
@pytest.mark.parametrize("name", ["numpy", "jax", pytest.param("tinygrad", marks=pytest.mark.slow)])
def test_it_computes_what_we_compute(name, model, serving, tmp_path):
    agrees(serving, candidate(name), tmp_path, model, QUICK[model])


@pytest.mark.slow
@pytest.mark.parametrize("model", SLOW)
@pytest.mark.parametrize("name", ["numpy", "jax", "tinygrad"])
def test_it_computes_what_we_compute_in_larger_models(name, model, serving, tmp_path):
    if name == "tinygrad" and model.startswith("resnet"):
        pytest.skip("tinygrad takes minutes to write the kernels of a residual network")
    agrees(serving, candidate(name), tmp_path, model, SLOW[model])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "averaged"])
@pytest.mark.parametrize("name", ["pytorch", "dezero"])
def test_trained_models_of_others_see_what_ours_sees(name, model, serving, tmp_path):
    agrees(serving, candidate(name), tmp_path, model, {**QUICK, **SLOW}[model])


@pytest.mark.parametrize("name", PEERS)
def test_it_begins_again_in_the_precision_of_the_weights(name, serving, tmp_path):
    """Where nothing has to be converted, nobody may train on the job's own arrays."""
    written(tmp_path, "mlp", QUICK["mlp"], "float32", lr=0.5)
    one = candidate(name, precision="float32")
    prepared = serving(one, "prepare", folder=str(tmp_path), options=one.options, checks=CHECKED_STEPS, warm_up=0.0)
    serving(one, "run", steps=MORE_STEPS)
    again = serving(one, "restart", checks=CHECKED_STEPS)
    assert again["losses"] == pytest.approx(prepared["losses"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("tuned", [True, False])
def test_pytorchs_gpu_candidate_sees_what_ours_sees(mode, tuned, serving, tmp_path):
    """On the CPU; a graph's replay is the step itself there."""
    options = {"device": "cpu", "layout": "nchw", "mode": mode, "mixed": None, "tuned": tuned}
    flags = agrees(serving, candidate("pytorch", options, device="cuda:0"), tmp_path, "tiny", SLOW["tiny"])
    assert flags["backends.cudnn.benchmark"] == str(tuned)
    assert flags["get_default_dtype"] == "torch.float64"


def every_variant(name):
    peer = PEERS[name]
    defaults = {} if peer.default is None else {"default": peer.default}
    return [
        pytest.param(name, options, id=f"{name} {variant}")
        for variant, options in {**peer.variants, **defaults}.items()
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [*every_variant("jax"), *every_variant("tinygrad")])
def test_every_variant_computes_the_same(name, options, serving, tmp_path):
    model = "uneven" if name == "jax" else "averaged"  # tinygrad searches for the kernels of the other for minutes
    flags = agrees(serving, candidate(name, options), tmp_path, model, QUICK[model])
    if name == "jax":
        assert flags["XLA_FLAGS"].endswith(options["xla"])
        assert (flags["NPROC"], flags["jax_enable_x64"], flags["platform"]) == ("1", "True", "cpu")
    else:
        assert (flags["BEAM"], flags["NUM_CPU_THREADS"]) == (str(options["beam"]), "1")
        assert flags["default_float"] == "dtypes.double"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jax", "tinygrad"])
def test_bfloat16_is_near_ours_and_not_the_same(name, serving, tmp_path):
    ours = written(tmp_path, "uneven", QUICK["uneven"])
    change(tmp_path, precision="bfloat16")
    try:
        theirs, accuracy, _ = trained(serving, candidate(name), tmp_path)
    except WorkerError as error:
        if "'clang'" in str(error):
            pytest.skip("the clang that is here has no bfloat16")
        raise
    assert 1e-5 < relative(ours, theirs) < TOLERANCE["bfloat16"]
    assert 0.8 < accuracy <= 1.0


def change(folder, **settings):
    """Another job than the one that ours trained on; ``norm``: of its batch norm."""
    job = json.loads((folder / "job.json").read_text())
    job["layers"][1].update(settings.pop("norm", {}))
    (folder / "job.json").write_text(json.dumps({**job, **settings}))


@pytest.mark.parametrize(
    "changed", [{"momentum": 0.8}, {"lr": 0.021}, {"mean": 10.0}, {"std": 200.0}, {"norm": {"eps": 2e-3}}]
)
def test_who_computes_something_else_is_found(changed, serving, tmp_path):
    """Any one thing that is not as ours: its losses tell, by far more than rounding."""
    ours = written(tmp_path, "uneven", QUICK["uneven"])
    change(tmp_path, **changed)
    one = candidate("numpy")
    reference, other = (Side(who, tmp_path, Limits()) for who in (Candidate("reference", [], {}, {}, ours=True), one))
    reference.losses = ours[:CHECKED_STEPS]
    other.losses = trained(serving, one, tmp_path)[0][:CHECKED_STEPS]
    check(other, [reference, other], "float64")
    assert other.status == "disagrees"
    assert "it computes something else" in (other.error or "")


@pytest.mark.parametrize("name", ["numpy", "jax"])
def test_other_running_statistics_are_found_by_the_accuracy(name, serving, tmp_path):
    """No loss of a training step depends on them."""
    ours = written(tmp_path, "uneven", QUICK["uneven"])
    change(tmp_path, norm={"momentum": 0.01})
    theirs, accuracy, _ = trained(serving, candidate(name), tmp_path)
    assert relative(ours, theirs) < 1e-10
    assert accuracy < 0.99


def test_where_there_are_no_test_images_it_says_so(serving, tmp_path):
    written(tmp_path, "mlp", (6, 6, 1))
    (tmp_path / "test_images.npy").unlink()
    one = candidate("numpy")
    serving(one, "prepare", folder=str(tmp_path), options={}, checks=1, warm_up=0.0)
    with pytest.raises(WorkerError, match="uniform random images and labels has no test images") as refused:
        serving(one, "accuracy")
    assert refused.value.unsupported


@pytest.mark.parametrize("name", ["numpy", "jax", "tinygrad"])
def test_what_it_cannot_do_alike_it_refuses(name, serving, tmp_path):
    Workload("dropping", (4, 4, 1), batch_size=4).write(tmp_path)
    one = candidate(name)
    with pytest.raises(WorkerError, match=r"layer type Dropout \(layer dropout1\) has no counterpart here") as refused:
        serving(one, "prepare", folder=str(tmp_path), options=one.options, checks=1, warm_up=0.0)
    assert refused.value.unsupported


@pytest.mark.parametrize("name", ["numpy", "jax", "tinygrad"])
def test_a_gpus_precision_is_refused_on_a_cpu(name, serving, tmp_path):
    Workload("mlp", (4, 4, 1), batch_size=4, precision="tf32").write(tmp_path)
    one = candidate(name)
    with pytest.raises(WorkerError, match="tf32") as refused:
        serving(one, "prepare", folder=str(tmp_path), options=one.options, checks=1, warm_up=0.0)
    assert refused.value.unsupported


@pytest.mark.parametrize(
    ("name", "reason"), [("jax", "finds no cuda:7"), ("tinygrad", "needs CUDA's driver and nvrtc")]
)
def test_without_its_gpu_it_says_what_is_missing(name, reason, serving, tmp_path):
    """No machine of ours has an eighth GPU."""
    Workload("mlp", (4, 4, 1), batch_size=4).write(tmp_path)
    one = candidate(name, device="cuda:7")
    assert one.options["device"] == "cuda:7"
    with pytest.raises(WorkerError, match=reason) as refused:
        serving(one, "prepare", folder=str(tmp_path), options=one.options, checks=1, warm_up=0.0)
    assert refused.value.unsupported
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("compiler", "why"), [("none", "FileNotFoundError: "), ("cc", "cc failed with exit code 3")])
def test_tinygrad_without_a_compiler_says_what_it_needs(tmp_path, compiler, why):
    (tmp_path / "cc").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "cc").chmod(0o755)
    Workload("mlp", (4, 4, 1), batch_size=4).write(tmp_path)
    one = candidate("tinygrad", variables={"CC": str(tmp_path / compiler), "CACHELEVEL": "0"})
    with (
        Worker(one.command, one.environment, tmp_path) as worker,
        pytest.raises(
            WorkerError, match="tinygrad needs clang, on the PATH or named by the variable CC, for CPU"
        ) as refused,
    ):
        worker.ask("prepare", 60, folder=str(tmp_path), options=one.options, checks=1, warm_up=0.0)
    assert refused.value.unsupported
    assert f"for CPU: {why}" in str(refused.value)


def test_peers_of_each_device():
    assert list(PEERS) == ["pytorch", "jax", "tinygrad", "dezero", "numpy"]
    assert PEERS["numpy"].default is None
    for precision in ("float32", "bfloat16"):
        there = catalog("cuda:1", precision)
        assert list(there) == ["pytorch", "jax", "tinygrad"]
        for peer in there.values():
            assert peer.default is not None
            for options in (*peer.variants.values(), peer.default):
                assert options["device"] == "cuda:1"
        assert there["pytorch"].default == {
            "device": "cuda:1",
            "layout": "nchw",
            "mode": "eager",
            "tuned": False,
            "mixed": "autocast" if precision == "bfloat16" else None,
        }
    for peer in [*PEERS.values(), *catalog("cuda:0", "tf32").values()]:
        assert util.find_spec(peer.module) is not None
    assert find(["numpy", "dezero"], None, "cuda:0").absent["numpy"] == "it is measured on the CPU only"
