"""The main job on a few digits: what it does in which order, that it is fair, and what it leaves when it is stopped."""

from __future__ import annotations

import dataclasses
import json
import weakref
from typing import Any

import numpy as np
import pytest

from bareconv.bench import compare as module
from bareconv.bench import environment, results
from bareconv.bench.compare import Job, Listener, compare, new_trainer
from bareconv.device import CpuDevice, get_device, why_no_cuda
from bareconv.errors import NotFiniteError
from bareconv.nn import models
from bareconv.optim import SGD
from bareconv.training import ENGINES, ReferenceEngine, Settings, Trainer, why_no_plan
from bareconv.training.checkpoint import load


@pytest.fixture(scope="module")
def described():
    return environment.describe()


@pytest.fixture(scope="module")
def few(mnist):
    """Batches of 16 make five steps an epoch, the last of 6 images."""
    return mnist.take(70, 40)


@pytest.fixture
def cpu():
    return get_device("cpu")


class Second(CpuDevice):
    """The CPU once more, by the name of a GPU: two devices where there is one."""

    def __init__(self):
        super().__init__()
        self.name, self.description = "cuda:0", "a second CPU"


def a_job(model="mlp", epochs=2, engine="reference", **more):
    settings = Settings(epochs=epochs, batch_size=16, seed=5, engine=engine)
    optimizer = SGD(0.1, momentum=0.9).config()
    return Job(model, settings, optimizer, **{"parity_steps": 3, "profile_steps": 2, **more})


class Recorder(Listener):
    """Writes down what it is told; asks to stop once it was told ``stop_at`` things."""

    def __init__(self, stop_at=10**9):
        self.stop_at = stop_at
        self.told: list[tuple[Any, ...]] = []
        self.trainers: list[tuple[dict[str, Any], Any]] = []

    def stage(self, text):
        self.told.append(("stage", text))

    def run_begins(self, trainer):
        self.told.append(("run_begins", trainer.device.name, trainer.settings.precision))
        weights = {key: trainer.device.to_host(value).copy() for key, value in trainer.model.parameters().items()}
        self.trainers.append((weights, trainer.order(0)))

    def progress(self, progress):
        self.told.append(("progress", progress.step))

    def epoch(self, record):
        self.told.append(("epoch", record.epoch))

    def run_ends(self, run):
        self.told.append(("run_ends", run["device"]))

    def count(self, done, total):
        self.told.append(("count", done, total))

    def should_stop(self):
        return len(self.told) >= self.stop_at


def valid(comparison, described):
    result = results.new(
        "compare", {}, runs=comparison.runs, parity=comparison.parity, notes=comparison.notes, environment=described
    )
    results.validate(result)
    return json.loads(json.dumps(result, allow_nan=False))


# --- One device ------------------------------------------------------------------------------------------------------


def test_the_result(few, cpu, described, tmp_path):
    comparison = compare(a_job(), few, [cpu], checkpoint=tmp_path / "model.safetensors")
    result = valid(comparison, described)
    (run,) = result["runs"]
    assert (run["device"], run["model"], run["precision"], run["engine"]) == ("cpu", "mlp", "float32", "reference")
    assert (run["batch_size"], run["epochs"], run["iterations"]) == (16, 2, 10)
    assert (run["train_images"], run["test_images"], run["test_split"]) == (70, 40, "test")
    assert (run["seed"], run["optimizer"]) == (5, "SGD(lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.0)")
    assert run["parameters"] == 7960
    assert run["flops_per_image"] == 2 * (2 * 7840 + 3 * 100)
    assert run["stopped"] is False
    assert len(run["history"]["loss"]) == 10
    assert [epoch["epoch"] for epoch in run["history"]["epochs"]] == [1, 2]
    assert run["test_accuracy"] == run["history"]["epochs"][-1]["test_accuracy"]
    confusion = np.array(run["confusion"])
    assert confusion.sum() == 40
    assert np.trace(confusion) / 40 == run["test_accuracy"]
    np.testing.assert_array_equal(confusion.sum(axis=1), np.bincount(few.test.labels, minlength=10))
    assert run["images_per_second"] == pytest.approx(140 / run["train_seconds"])
    assert run["seconds_per_iteration"] == pytest.approx(run["train_seconds"] / 10)
    assert run["total_seconds"] > run["train_seconds"] + run["evaluate_seconds"]
    assert run["warm_up_seconds"] > 0
    assert run["phases"]["profiled_steps"] == 2
    assert [operation["name"] for operation in run["operations"]] == ["flatten1", "dense1", "relu1", "dense2", "loss"]
    assert sum(run["memory"].values()) >= run["peak_memory_bytes"] > 0
    (proof,) = result["parity"]
    assert (proof["reference"], proof["candidate"]) == ("cpu float64", "cpu float32")
    assert proof["steps"] == 3
    assert proof["learning_rate"] == pytest.approx(0.1 / 200)
    assert proof["passed"]


@pytest.mark.parametrize("engine", ["plan", "tuned"])
def test_another_engine_is_proved_against_the_reference(few, cpu, described, engine):
    comparison = compare(a_job(engine=engine), few, [cpu])
    result = valid(comparison, described)
    (run,) = result["runs"]
    name = run["engine"]
    assert name in ((engine,) if why_no_plan() is None else ("tuned",))
    assert run["threads"] >= 1
    assert (run["compile_seconds"] > 0) == (name == "plan")
    assert [(proof["reference"], proof["candidate"]) for proof in result["parity"]] == [
        (f"cpu float64 {name}", f"cpu float32 {name}"),
        ("cpu float64 reference", f"cpu float64 {name}"),
        ("cpu float32 reference", f"cpu float32 {name}"),
    ]
    assert all(proof["passed"] for proof in result["parity"])
    in_double = result["parity"][1]
    assert max(in_double["max_loss_difference"], in_double["final_weight_difference"]) < 1e-12
    assert in_double["learning_rate"] == pytest.approx(0.1 / 25)  # the training as it is set
    assert any("tuned engine" in note for note in result["notes"]) == (name == "tuned")


def test_what_is_compiled_is_in_no_other_figure(few, cpu, monkeypatch):
    """An engine that compiles for an hour when it is prepared, in the warm-up as in the run."""
    monkeypatch.setattr(ReferenceEngine, "compiled", 3)
    monkeypatch.setattr(ReferenceEngine, "compile_seconds", 3600.0)
    (run,) = compare(a_job(), few, [cpu]).runs
    assert run["compile_seconds"] == 2 * 3600
    assert run["compiled"] == 6
    assert run["total_seconds"] < -3500  # the hour was none by the clock, but it was taken off
    assert run["warm_up_seconds"] < -3500
    assert run["train_seconds"] > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_the_training_is_the_plain_one(few, cpu, tmp_path, engine):
    """No step of the warm-up, the profile or the proof has touched it; the checkpoint is of its end."""
    job = a_job(engine=engine)
    plain = new_trainer(job, few, cpu, "float32")
    plain.run()
    (run,) = compare(job, few, [cpu], checkpoint=tmp_path / "model.safetensors").runs
    assert run["history"]["loss"] == plain.history.loss
    kept = load(tmp_path / "model.safetensors")
    assert kept.history.loss == plain.history.loss
    assert kept.data == few.name
    for part in ("model", "optimizer"):
        expected = getattr(plain, part).state()
        found = kept.model.state() if part == "model" else kept.optimizer_state
        assert found.keys() == expected.keys()
        for key, value in found.items():
            np.testing.assert_array_equal(value, expected[key], key)


def test_precisions(few, cpu, described):
    comparison = compare(a_job(precisions=("float32", "float64"), parity_steps=0), few, [cpu])
    result = valid(comparison, described)
    assert [run["precision"] for run in result["runs"]] == ["float32", "float64"]
    assert result["parity"] == []
    losses = [run["history"]["loss"] for run in result["runs"]]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert losses[0] != losses[1]
    sizes = [run["memory"]["parameters"] for run in result["runs"]]
    assert sizes == [4 * 7960, 8 * 7960]


def test_listener_in_order(few, cpu):
    recorder = Recorder()
    compare(a_job(), few, [cpu], recorder)
    progress = [entry for entry in recorder.told if entry[0] == "progress"]
    told = [entry for entry in recorder.told if entry[0] != "progress"]
    assert told == [
        ("stage", f"Warming up {cpu.description}"),
        ("run_begins", "cpu", "float32"),
        ("epoch", 1),
        ("epoch", 2),
        ("stage", f"Profiling 2 steps on {cpu.description}"),
        ("run_ends", "cpu"),
        ("stage", "Parity proof: cpu float64 against cpu float32, 3 steps in lockstep"),
        ("count", 1, 3),
        ("count", 2, 3),
        ("count", 3, 3),
    ]
    assert progress[-1] == ("progress", 10)
    assert ("progress", 5) in progress


def test_no_more_proof_than_training(few, cpu):
    """A proof of at most the job's own steps, and told so."""
    recorder = Recorder()
    comparison = compare(a_job(epochs=1, parity_steps=100), few, [cpu], recorder)
    assert comparison.parity[0]["steps"] == 5
    assert recorder.told[-1] == ("count", 5, 5)


def test_full_batch(few, cpu, described):
    job = dataclasses.replace(a_job(), settings=Settings(epochs=3, batch_size=10**6, engine="reference"))
    (run,) = valid(compare(job, few, [cpu]), described)["runs"]
    assert (run["batch_size"], run["iterations"]) == (70, 3)
    assert run["memory"]["data"] == 70 * (784 + 4) + 40 * 784 + 70 * 784 * 4


# --- Several devices -------------------------------------------------------------------------------------------------


@pytest.fixture
def two(cpu):
    return [cpu, Second()]


def test_the_same_work_on_both(few, two, described):
    """The same initial weights, order and steps, one run after the other; two proofs, in both precisions."""
    recorder = Recorder()
    job = a_job(precisions=("float32", "float64"))
    comparison = compare(job, few, two, recorder)
    assert [(run["device"], run["precision"]) for run in comparison.runs] == [
        ("cpu", "float32"),
        ("cuda:0", "float32"),
        ("cpu", "float64"),
        ("cuda:0", "float64"),
    ]
    initial, order = recorder.trainers[0]
    for key, value in models.mlp(seed=5).parameters().items():
        np.testing.assert_array_equal(initial[key], value)
    for weights, other in recorder.trainers[1:]:
        np.testing.assert_array_equal(order, other)
        for key, value in weights.items():
            np.testing.assert_array_equal(value, initial[key])
    assert [(proof["reference"], proof["candidate"]) for proof in comparison.parity] == [
        ("cpu float32", "cuda:0 float32"),
        ("cpu float64", "cuda:0 float64"),
    ]
    # In float32 at a constant two hundredth of the rate, in float64 as the training is set, one cycle from a 25th.
    assert [proof["learning_rate"] for proof in comparison.parity] == pytest.approx([0.1 / 200, 0.1 / 25])
    assert all(proof["max_loss_difference"] == 0 for proof in comparison.parity)  # it is the CPU, after all
    assert comparison.runs[0]["history"]["loss"] == comparison.runs[1]["history"]["loss"]
    assert not any("No GPU" in note for note in comparison.notes)
    valid(comparison, described)


@pytest.mark.cuda
@pytest.mark.parametrize("model", ["mlp", "lenet5"])
def test_cpu_and_gpu(few, cpu, described, model, tmp_path):
    """Accuracy within a few of forty images, losses within rounding; both proofs pass."""
    recorder = Recorder()
    path = tmp_path / "model.safetensors"
    comparison = compare(a_job(model), few, [cpu, get_device("cuda")], recorder, path)
    result = valid(comparison, described)
    ours, theirs = result["runs"]
    assert (ours["device"], theirs["device"]) == ("cpu", "cuda:0")
    np.testing.assert_allclose(ours["history"]["loss"], theirs["history"]["loss"], rtol=1e-2)
    assert abs(ours["test_accuracy"] - theirs["test_accuracy"]) <= 0.1
    (a, order), (b, other) = recorder.trainers
    np.testing.assert_array_equal(order, other)
    for key, value in a.items():
        np.testing.assert_array_equal(value, b[key])
    assert [proof["passed"] for proof in result["parity"]] == [True, True]
    assert ours["memory"]["activations"] == theirs["memory"]["activations"]
    assert [o["name"] for o in ours["operations"]] == [o["name"] for o in theirs["operations"]]
    assert load(path).history.loss == ours["history"]["loss"]


def test_each_run_is_measured_apart(few, two, monkeypatch):
    """Warm-up, then a new measurement of memory, then the run; no trainer of an earlier run is alive by then."""
    events, alive = [], []
    new = module.new_trainer

    def counted(*args):
        trainer = new(*args)
        alive.append(weakref.ref(trainer))
        return trainer

    def reset(self):
        events.append((self.name, sum(ref() is not None for ref in alive)))

    monkeypatch.setattr(module, "new_trainer", counted)
    monkeypatch.setattr(CpuDevice, "reset_peak_memory", reset)
    compare(a_job(parity_steps=0), few, two)
    assert events == [("cpu", 0), ("cuda:0", 0)]
    assert len(alive) == 4


# --- The gallery -----------------------------------------------------------------------------------------------------


def gallery_of(comparison):
    assert comparison.gallery is not None
    return comparison.gallery


def test_gallery_of_a_convolutional_network(few, cpu, tmp_path):
    path = tmp_path / "model.safetensors"
    gallery = gallery_of(compare(a_job("lenet5", epochs=1, parity_steps=0), few, [cpu], checkpoint=path))
    kept = load(path)
    np.testing.assert_array_equal(gallery.filters, kept.model.parameters()["conv1.weight"])
    np.testing.assert_array_equal(gallery.digit, few.test.images[0])
    assert {name: maps.shape for name, maps in gallery.feature_maps.items()} == {
        "conv1": (28, 28, 6),
        "relu1": (28, 28, 6),
        "pool1": (14, 14, 6),
        "conv2": (10, 10, 16),
        "relu2": (10, 10, 16),
        "pool2": (5, 5, 16),
    }
    first = gallery.feature_maps
    np.testing.assert_array_equal(first["relu1"], np.maximum(first["conv1"], 0))
    np.testing.assert_array_equal(first["pool1"], first["relu1"].reshape(14, 2, 14, 2, 6).max(axis=(1, 3)))
    x = few.test.images[0, 10:15, 12:17, 0] / 255.0  # what the map's pixel (12, 14) sees: padding 2
    expected = (x[..., None] * gallery.filters[:, :, 0]).sum(axis=(0, 1)) + kept.model.parameters()["conv1.bias"]
    np.testing.assert_allclose(first["conv1"][12, 14], expected, rtol=1e-4, atol=1e-5)


def test_gallery_examples(few, cpu):
    """Right ones of every class in turn, then wrong ones, the most confident first."""
    trainer = new_trainer(a_job(epochs=6), few, cpu, "float32")
    trainer.run()
    judged: Any = trainer.evaluation
    gallery = module.make_gallery(trainer)
    right = gallery.predicted == gallery.labels
    hits = int(right.sum())
    assert right.tolist() == sorted(right.tolist(), reverse=True)
    wrong = int((judged.predicted != judged.labels).sum())
    assert 0 < hits <= 12
    assert len(right) - hits == min(wrong, 12) > 0
    assert (np.diff(gallery.confidence[hits:]) <= 0).all()
    assert gallery.confidence[hits] == judged.confidence[judged.predicted != judged.labels].max()
    classes = gallery.labels[:hits].tolist()
    there = sorted(set(few.test.labels[judged.predicted == judged.labels].tolist()))
    assert classes[: len(there)] == there
    for image, label in zip(gallery.images, gallery.labels, strict=True):
        same = (few.test.images == image).all(axis=(1, 2, 3))
        assert label in few.test.labels[same]


def test_gallery_of_a_perceptron(few, cpu):
    """No convolution: no filters, no maps, but examples."""
    gallery = gallery_of(compare(a_job(parity_steps=0), few, [cpu]))
    assert gallery.filters is None
    assert gallery.digit is None
    assert gallery.feature_maps == {}
    assert len(gallery.images) > 0


def test_gallery_without_held_out_images(few, cpu):
    gallery = gallery_of(compare(a_job("lenet5", 1, parity_steps=0), dataclasses.replace(few, test=None), [cpu]))
    np.testing.assert_array_equal(gallery.digit, few.train.images[0])
    assert len(gallery.images) == len(gallery.labels) == len(gallery.predicted) == len(gallery.confidence) == 0


# --- Notes -----------------------------------------------------------------------------------------------------------


def test_notes(few, cpu):
    def notes(data):
        return compare(a_job(epochs=1, parity_steps=0), data, [cpu]).notes

    reason = why_no_cuda()
    gpu = [] if reason is None else [f"No GPU run: {reason}."]
    assert notes(few) == gpu
    validation = dataclasses.replace(few, validation=few.test, test=None)
    assert notes(validation) == [
        *gpu,
        "Accuracy is that of the held-out validation split, not of test images.",
    ]
    neither = "No accuracy: the data have neither a test nor a validation split."
    assert notes(dataclasses.replace(few, test=None)) == [*gpu, neither]


def test_without_a_test_split(few, cpu, described):
    (run,) = valid(compare(a_job(), dataclasses.replace(few, test=None), [cpu]), described)["runs"]
    assert run["test_accuracy"] is run["test_loss"] is run["test_split"] is None
    assert run["test_images"] == 0
    assert "confusion" not in run


# --- Stopped ---------------------------------------------------------------------------------------------------------

STOPPED = "Stopped early by request: the runs are those that were done, the last one perhaps in part."


def test_stopped_before_the_first_step(few, two, described, tmp_path):
    comparison = compare(a_job(), few, two, Recorder(stop_at=0), tmp_path / "model.safetensors")
    result = valid(comparison, described)
    assert (result["runs"], result["parity"]) == ([], [])
    assert result["notes"][-1] == STOPPED
    assert comparison.gallery is None
    assert not (tmp_path / "model.safetensors").exists()


# A run that has begun takes one step, and is recorded with its profile; nothing else begins.
TO_THE_END = {
    ("run_begins", "progress", "stage", "run_ends"),
    ("progress", "stage", "run_ends"),
    ("progress", "epoch", "stage", "run_ends"),  # the step was an epoch's last
    ("epoch", "stage", "run_ends"),
    ("stage", "run_ends"),
    ("run_ends",),
    ("count",),
    (),
}


@pytest.mark.parametrize("stop_at", range(1, 40))
def test_stopped_at_any_moment(few, two, described, stop_at, tmp_path, monkeypatch):
    """A valid result with a note, whatever was going on."""
    monkeypatch.setattr("bareconv.training.loop.REPORT_SECONDS", 0.0)  # progress after every step
    recorder = Recorder(stop_at)
    path = tmp_path / "model.safetensors"
    comparison = compare(a_job(), few, two, recorder, path)
    result = valid(comparison, described)
    assert result["notes"][-1] == STOPPED
    assert tuple(entry[0] for entry in recorder.told[stop_at:]) in TO_THE_END
    for run in result["runs"]:
        steps = run["iterations"]
        assert len(run["history"]["loss"]) == steps
        assert run["epochs"] == pytest.approx(steps / 5)
        assert run["stopped"] == (steps < 10)
        assert len(run["history"]["epochs"]) == steps // 5
        assert (run["test_accuracy"] is None) == (steps < 5)
    assert all(run["iterations"] == 10 for run in result["runs"][:-1])
    if result["runs"]:
        assert load(path).history.iterations == result["runs"][0]["iterations"]
        assert comparison.gallery is not None


def test_stopped_in_a_proof(few, cpu, described):
    recorder: Any = Recorder()
    recorder.should_stop = lambda: ("count", 2, 3) in recorder.told
    comparison = compare(a_job(), few, [cpu], recorder)
    (proof,) = valid(comparison, described)["parity"]
    assert proof["steps"] == 2
    assert comparison.notes[-1] == STOPPED


def test_a_loss_that_is_not_finite_keeps_the_runs_before_it(few, cpu, described, monkeypatch):
    """The second device's loss turns NaN: the first one's run stays, and a note says where it happened."""
    original = Trainer.run

    def run(self, *arguments):
        if self.device.name == "cuda:0":
            raise NotFiniteError("the loss became nan at step 3", step=3, layer="dense1")
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "run", run)
    comparison = compare(a_job(), few, [cpu, Second()])
    assert [run["device"] for run in comparison.runs] == ["cpu"]
    assert comparison.failed
    assert comparison.parity == []
    assert "cuda:0 float32: the loss became nan at step 3." in comparison.notes
    valid(comparison, described)
    with pytest.raises(NotFiniteError):
        compare(a_job(), few, [Second()])
