"""What is written for the candidates: data, order, weights, the description of the layers."""

from __future__ import annotations

import numpy as np
import pytest
from bench_stand_ins import tiny

from bareconv.bench.workers.serving import Job
from bareconv.bench.workload import EPOCHS, Workload, natural_shape
from bareconv.errors import ShapeError, UsageError
from bareconv.nn import models


def test_natural_shapes():
    assert (natural_shape("basic"), natural_shape("resnet18")) == ((28, 28, 1), (32, 32, 3))
    with pytest.raises(UsageError, match="model 'gpt'"):
        natural_shape("gpt")


def test_mnist_where_it_fits_else_random():
    digits = Workload("mlp", (28, 28, 1), batch_size=64).dataset()
    assert (digits.name, len(digits.train)) == ("MNIST (embedded)", 937 * 64)
    for work in (Workload("mlp", (28, 28, 1), batch_size=30_001), Workload("mlp", (5, 4, 3), batch_size=7, seed=1)):
        drawn = work.dataset()
        assert drawn.name == "uniform random images and labels"
        assert len(drawn.train) >= 2 * work.batch_size
        assert len(drawn.train) % work.batch_size == 0
        assert drawn.image_shape == work.image_shape
        assert drawn.train.images.mean() == pytest.approx(127.5, abs=2)
        assert set(drawn.train.labels) == set(range(10))
    np.testing.assert_array_equal(drawn.train.images, work.dataset().train.images)


def test_a_job_is_read_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setitem(models.ZOO, "tiny", tiny)
    work = Workload("tiny", (8, 8, 3), batch_size=16, precision="float64", lr=0.02, seed=5, threads=2)
    dataset = work.write(tmp_path)
    job = Job.read(tmp_path)
    np.testing.assert_array_equal(job.images, dataset.train.images)
    np.testing.assert_array_equal(job.labels, dataset.train.labels)
    model = work.network()
    assert job.weights.keys() == model.state().keys()
    for name, array in model.state().items():
        np.testing.assert_array_equal(job.weights[name], array)
    assert job.total_steps == EPOCHS * len(dataset.train) // 16
    seen = np.concatenate([job.batch(step) for step in range(job.total_steps // EPOCHS)])
    assert sorted(seen) == list(range(len(dataset.train)))
    names = []

    def collect(layers):
        for layer in layers:
            names.append(layer["name"])
            collect(layer.get("layers", []))
            collect([inner for inner in (layer.get("body"), layer.get("shortcut")) if inner])

    collect(job.settings["layers"])
    assert {key.rpartition(".")[0] for key in model.state()} <= set(names)


def test_a_model_that_does_not_fit():
    with pytest.raises(ShapeError, match="layer"):
        Workload("lenet5", (4, 4, 1))
