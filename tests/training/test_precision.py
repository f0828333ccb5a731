"""Which engine there is for a precision where, what it says of itself, and what is refused with what to do instead."""

from __future__ import annotations

import gpu_stand_in
import numpy as np
import pytest

from bareconv.device import get_device
from bareconv.errors import UsageError
from bareconv.optim import SGD
from bareconv.training import (
    ENGINES,
    CudaPlanEngine,
    EngineSettings,
    ReferenceEngine,
    Settings,
    Trainer,
    engines,
    make_engine,
    why_no_plan,
)
from bareconv.training.checkpoint import load, save
from bareconv.training.precision import PRECISIONS, stored


@pytest.fixture
def gpu(monkeypatch):
    return gpu_stand_in.install(monkeypatch)


def trainer_of(make_model, data, device, **settings):
    return Trainer(make_model(), data, SGD(0.05), Settings(**{"batch_size": 16, **settings}), device)


def test_what_arrays_hold():
    assert {name: stored(name) for name in PRECISIONS} == {
        "float32": "float32",
        "float64": "float64",
        "tf32": "float32",
        "bfloat16": "float32",
    }


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_the_plan_on_a_gpu(make_model, squares, gpu, precision):
    trainer = trainer_of(make_model, squares, gpu, precision=precision)
    engine = trainer.engine
    assert isinstance(engine, CudaPlanEngine)
    assert (engine.name, engine.precision, engine.threads) == ("plan", precision, None)
    assert engine.description == "plan (CUDA, sm_90)"
    assert (engine.compiled, engine.compile_seconds) == (0, 0.0)
    assert trainer.model.precision == "float32"
    assert all(array.dtype == np.float32 for array in trainer.model.parameters().values())
    trainer.run()
    assert (engine.compiled, engine.compile_seconds) == (3, 1e-6)
    assert engine.kept_bytes() == {"activations": 4096, "gradients": 2048}
    assert [entry for entry in gpu.log if entry[0] == "predict"] == [("predict", 37)]


def test_float64_on_a_gpu_is_the_references(make_model, squares, gpu):
    trainer = trainer_of(make_model, squares, gpu, precision="float64")
    assert type(trainer.engine) is ReferenceEngine
    assert (trainer.engine.precision, trainer.model.precision) == ("float64", "float64")


@pytest.mark.parametrize("engine", ["tuned", "reference"])
def test_other_engines_on_a_gpu_are_the_reference(make_model, squares, gpu, engine):
    assert type(trainer_of(make_model, squares, gpu, engine=engine).engine) is ReferenceEngine


def test_no_compiler_on_a_gpu(make_model, squares, gpu, monkeypatch):
    monkeypatch.setattr(engines, "_why_no_plan_on_gpu", lambda *_: "NVRTC was not found")
    assert why_no_plan(gpu) == "NVRTC was not found"
    assert type(trainer_of(make_model, squares, gpu).engine) is ReferenceEngine
    message = (
        r"^precision tf32: only the engine plan computes in it, and there is none here \(NVRTC was not found\); "
        "choose float32 or float64$"
    )
    with pytest.raises(UsageError, match=message):
        trainer_of(make_model, squares, gpu, precision="tf32")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_on_a_cpu_there_is_neither(make_model, squares, engine, precision):
    message = (
        f"^precision {precision}: only the plan on a CUDA GPU computes in it, and this is cpu; use a GPU, or choose "
        "float32 or float64$"
    )
    model = make_model()
    with pytest.raises(UsageError, match=message):
        Trainer(model, squares, SGD(0.1), Settings(engine=engine, precision=precision), "cpu")
    assert model.precision == "float32"


@pytest.mark.parametrize("engine", ["tuned", "reference"])
def test_the_array_program_has_neither(make_model, squares, gpu, engine):
    message = f"^precision bfloat16: only the engine plan computes in it, not {engine}; choose float32 or float64$"
    with pytest.raises(UsageError, match=message):
        trainer_of(make_model, squares, gpu, engine=engine, precision="bfloat16")


def test_an_engine_without_settings_has_the_models_precision(make_model, gpu):
    """As an evaluation makes it: of a checkpoint that may be in float64."""
    for precision, made in (("float32", CudaPlanEngine), ("float64", ReferenceEngine)):
        engine = make_engine("plan", make_model().to(gpu, precision), SGD(0.1))
        assert type(engine) is made
        assert engine.precision == precision
    with pytest.raises(UsageError, match="^precision 'half': expected float32, float64, tf32 or bfloat16$"):
        EngineSettings(precision="half")


def test_a_checkpoint_keeps_the_precision(make_model, squares, gpu, tmp_path):
    """It goes on in it on a GPU; on a CPU that is refused."""
    trainer = trainer_of(make_model, squares, gpu, precision="bfloat16", epochs=2)
    trainer.run(should_stop=lambda: True)
    save(tmp_path / "a.safetensors", trainer)
    kept = load(tmp_path / "a.safetensors")
    assert (kept.model.precision, kept.settings.precision) == ("float32", "bfloat16")
    with pytest.raises(UsageError, match="^precision bfloat16: only the plan on a CUDA GPU"):
        kept.resume(squares, "cpu")
    assert load(tmp_path / "a.safetensors").resume(squares, gpu).engine.precision == "bfloat16"


@pytest.mark.parametrize("name", ["plan", "tuned", "reference"])
def test_on_a_cpu_it_is_the_models(make_model, squares, name):
    for precision in ("float32", "float64"):
        assert trainer_of(make_model, squares, "cpu", engine=name, precision=precision).engine.precision == precision


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_a_gpus_plan_trains_like_its_reference(make_model, squares, precision):
    """At a small rate, so that a relu that rounding tips over zero is not amplified."""
    device = get_device("cuda")
    reason = why_no_plan(device, precision)
    if reason is not None:
        pytest.skip(f"no plan: {reason}")

    def losses(engine, precision):
        settings = Settings(batch_size=16, epochs=3, engine=engine, precision=precision)
        trainer = Trainer(make_model(), squares, SGD(0.0005, momentum=0.9), settings, device)
        history = trainer.run()
        assert trainer.engine.name == engine
        return history.loss, history.test_loss

    ours, theirs = losses("plan", precision), losses("reference", "float32")
    tolerance = {"float32": 1e-3, "tf32": 1e-2, "bfloat16": 5e-2}[precision]
    np.testing.assert_allclose(ours[0], theirs[0], rtol=tolerance)
    assert ours[1] == pytest.approx(theirs[1], rel=tolerance)


@pytest.mark.cuda
@pytest.mark.parametrize("batch_size", [1, 16, 103])
def test_windows_on_a_gpu_are_single_steps(make_model, squares, batch_size):
    """The same bits, whatever is launched at once."""
    device = get_device("cuda")
    if why_no_plan(device) is not None:
        pytest.skip(f"no plan: {why_no_plan(device)}")
    settings = Settings(batch_size=batch_size, epochs=4, evaluate_every=3)
    windows, single = (Trainer(make_model(), squares, SGD(0.05, momentum=0.9), settings, device) for _ in range(2))
    windows.run()
    with device.activate():
        losses = [float(single.train_step(step)[0]) for step in range(single.total_steps)]
    assert windows.history.loss == losses
    for key, value in windows.model.state().items():
        np.testing.assert_array_equal(device.to_host(value), device.to_host(single.model.state()[key]), key)


@pytest.mark.cuda
def test_reading_does_not_wait_for_what_comes_later(rng):
    """A copy of what an array held when it was asked for, whatever is done to it afterwards."""
    device = get_device("cuda")
    with device.activate():
        expected = rng.standard_normal(1000)
        array = device.asarray(expected)
        read = device.fetch(array, array[:10])
        array[...] = 0
        whole, part = read()
        np.testing.assert_array_equal(whole, expected)
        np.testing.assert_array_equal(part, expected[:10])


def test_reading_on_a_cpu(rng):
    expected = rng.standard_normal(7)
    (found,) = get_device("cpu").fetch(expected)()
    np.testing.assert_array_equal(found, expected)
