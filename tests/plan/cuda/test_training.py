"""A training by the CUDA plan, its kernels on a CPU: the trainer's windows, evaluation and the reference beside it."""

from __future__ import annotations

import gpu_stand_in
import numpy as np
import pytest
from cuda_host import needs_compiler
from cuda_stand_in import StandIn

from bareconv import nn
from bareconv.data import Dataset, Split
from bareconv.optim import SGD
from bareconv.training import CudaPlanEngine, Settings, Trainer

pytestmark = needs_compiler


@pytest.fixture
def gpu(monkeypatch):
    """A device on NumPy whose plan runs kernels that were built for this processor."""
    monkeypatch.setattr("bareconv.plan.cuda.plan.GpuRuntime", lambda device: StandIn())
    monkeypatch.setattr("bareconv.training.engines._why_no_plan_on_gpu", lambda device, precision: None)
    return gpu_stand_in.StandInGpu()


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(4)

    def split(count):
        return Split(
            rng.integers(0, 256, (count, 8, 8, 1)).astype(np.uint8), rng.integers(0, 4, count).astype(np.int32)
        )

    return Dataset("noise", split(23), None, split(9), 4)


def trained(data, device, batch_size, precision="float32", engine="plan", lr=0.001):
    model = nn.Model([nn.Flatten(), nn.Dense(12), nn.ReLU(), nn.Dense(4)], (8, 8, 1), seed=3)
    settings = Settings(epochs=4, batch_size=batch_size, evaluate_every=3, precision=precision, engine=engine)
    trainer = Trainer(model, data, SGD(lr, momentum=0.9), settings, device)
    trainer.run()
    return trainer


@pytest.mark.parametrize("batch_size", [5, 23])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_it_trains_as_the_reference(data, gpu, batch_size, precision, tolerance):
    ours, theirs = trained(data, gpu, batch_size, precision), trained(data, "cpu", batch_size, engine="reference")
    assert isinstance(ours.engine, CudaPlanEngine)
    np.testing.assert_allclose(ours.history.loss, theirs.history.loss, rtol=tolerance)
    assert ours.history.test_loss == pytest.approx(theirs.history.test_loss, rel=tolerance)
    assert ours.optimizer.step == theirs.optimizer.step == len(ours.history.loss)


def test_windows_are_single_steps(data, gpu):
    """Bit for bit, weights and the optimizer's state too."""
    windows = trained(data, gpu, 5)
    model = nn.Model([nn.Flatten(), nn.Dense(12), nn.ReLU(), nn.Dense(4)], (8, 8, 1), seed=3)
    settings = Settings(epochs=4, batch_size=5, evaluate_every=3)
    single = Trainer(model, data, SGD(0.001, momentum=0.9), settings, gpu)
    assert windows.history.loss == [float(single.train_step(step)[0]) for step in range(single.total_steps)]
    for part in ("model", "optimizer"):
        expected = getattr(single, part).state()
        for key, value in getattr(windows, part).state().items():
            np.testing.assert_array_equal(value, expected[key], key)
