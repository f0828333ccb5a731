"""A training by the tuned NumPy step against the reference engine's."""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-incomplete-defs

from __future__ import annotations

import copy

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from bareconv import nn
from bareconv.errors import ShapeError, UsageError
from bareconv.nn import models
from bareconv.optim import SGD
from bareconv.plan.tuned.step import TunedNumpyStep
from bareconv.training import EngineSettings, ReferenceEngine

ODD = [
    nn.Conv2d(4, 3, padding=1, groups=2),
    *(nn.LeakyReLU(), nn.Conv2d(6, 3, bias=False), nn.MaxPool2d(2), nn.ReLU()),
    nn.Sequential([nn.Residual(nn.Sequential([nn.Conv2d(6, 3, padding=1), nn.GELU()])), nn.AvgPool2d(2)]),
    *(nn.Conv2d(5, 2, stride=2), nn.ReLU(), nn.MaxPool2d(2, stride=1, padding=1), nn.Flatten()),
    *(nn.Dense(7, bias=False), nn.ReLU(), nn.Dense(3)),
]


def make(name, precision):
    if name == "odd":
        model = nn.Model(copy.deepcopy(ODD), (15, 17, 2), seed=3)
    elif name == "dropout":
        layers = [nn.Conv2d(4, 3), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Dense(3)]
        model = nn.Model(layers, (8, 8, 1), seed=3)
    elif name == "resnet9":
        model = models.resnet9((8, 8, 3), classes=4, seed=3)
    else:
        model = models.by_name(name, (20, 20, 1), 5, seed=3)
    return model.to("cpu", precision)


def batches(model, count, size):
    """Batches of prepared images with labels; the last is a short one."""
    rng = np.random.default_rng(5)
    for i in range(count):
        n = size if i < count - 1 else max(1, size // 2 - 1)
        images = rng.integers(0, 256, (n, *model.input_shape)).astype(np.uint8)
        yield model.prepare(images), rng.integers(0, model.output_shape[0], n)


def train(name, precision, threads, steps=5, size=8):
    """(losses, hits, state) after ``steps`` of the tuned step, or of the reference where ``threads`` is None."""
    model, optimizer, losses, hits = make(name, precision), SGD(0.02, momentum=0.9), [], []
    engine = ReferenceEngine(model, optimizer, EngineSettings(size, label_smoothing=0.1))
    tuned = None if threads is None else TunedNumpyStep(model, size, threads=threads, label_smoothing=0.1)
    for step, (x, labels) in enumerate(batches(model, steps, size)):
        if tuned is None:
            result = engine.forward(x, labels, step)
            engine.backward()
            losses.append(float(result[0]))
            hits.append(int(result[1]))
        else:
            loss, correct = tuned.forward_backward(x, labels, step)
            losses.append(loss)
            hits.append(correct)
        engine.update(0.02)
    return losses, hits, model.state()


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("name", ["basic", "small", "lenet5", "mlp", "odd", "dropout"])
def test_trains_as_the_reference_engine_does(name, precision):
    tolerance = {"float64": 1e-10, "float32": 2e-4}[precision]
    losses, hits, state = train(name, precision, None)
    for threads in (1, 2, 3):
        mine, my_hits, my_state = train(name, precision, threads)
        assert my_hits == hits
        np.testing.assert_allclose(mine, losses, rtol=tolerance)
        assert my_state.keys() == state.keys()
        for key, value in state.items():
            assert my_state[key].dtype == precision
            assert np.linalg.norm(my_state[key] - value) <= tolerance * max(1.0, float(np.linalg.norm(value))), key


@pytest.mark.slow
def test_resnet9():
    """Its last batch normalisation is over an image of one pixel: below float64 it magnifies what rounding does."""
    losses, hits, state = train("resnet9", "float64", None, steps=2, size=6)
    mine, my_hits, my_state = train("resnet9", "float64", 2, steps=2, size=6)
    assert my_hits == hits
    np.testing.assert_allclose(mine, losses, rtol=1e-10)
    for key, value in state.items():
        assert np.linalg.norm(my_state[key] - value) <= 1e-8 * max(1.0, float(np.linalg.norm(value))), key


@pytest.mark.parametrize("name", ["small", "odd"])
def test_the_same_bits_with_the_same_threads(name):
    first, again = train(name, "float32", 2), train(name, "float32", 2)
    assert first[0] == again[0]
    for key, value in first[2].items():
        np.testing.assert_array_equal(value, again[2][key])


@pytest.mark.parametrize("name", ["lenet5", "odd", "dropout", "resnet9"])
def test_predicts_any_number_of_images(name):
    model = make(name, "float64")
    step = TunedNumpyStep(model, 4, threads=2)
    x = np.random.default_rng(0).standard_normal((11, *model.input_shape))
    np.testing.assert_allclose(step.predict(x), model.forward(x), rtol=1e-10, atol=1e-12)
    assert step.predict(x[:0]).shape == (0, *model.output_shape)


def test_blas_has_one_thread_meanwhile_and_its_own_afterwards(monkeypatch):
    def threads():
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    step, before, seen = TunedNumpyStep(make("mlp", "float32"), 4, threads=2), threads(), []
    original = step.losses[0].forward_backward

    def looked_at(*arguments):
        seen.append(threads())
        return original(*arguments)

    monkeypatch.setattr(step.losses[0], "forward_backward", looked_at)
    step.forward_backward(np.zeros((4, 20, 20, 1), "f4"), np.zeros(4, int), 0)
    assert seen == [[1] * len(before)]
    assert threads() == before


def test_explains_what_covers_which_layers():
    step = TunedNumpyStep(make("basic", "float32"), 4, threads=2)
    rows = step.explain()
    assert [(row.layers, row.kernel) for row in rows] == [
        ("conv1, relu1", "conv+bias+relu"),
        ("conv2, relu2, pool1", "conv+bias+relu+max pool"),
        ("flatten1", "view"),
        ("dense1, relu3", "dense+bias+relu"),
        ("dense2", "dense+bias"),
    ]
    assert sum(row.forward_flops + row.backward_flops for row in rows) == step.model.flops()
    odd = [row.kernel for row in TunedNumpyStep(make("odd", "float32"), 4).explain()]
    assert odd == [
        *("layer itself", "layer itself", "conv+relu+max pool", "layer itself", "layer itself"),
        *("conv+bias+relu", "layer itself", "view", "dense+relu", "dense+bias"),
    ]


def test_what_looks_at_the_batch_is_not_split():
    assert TunedNumpyStep(make("resnet9", "float32"), 8, threads=2).slices == 1
    assert TunedNumpyStep(make("dropout", "float32"), 8, threads=2).slices == 1
    assert TunedNumpyStep(make("small", "float32"), 8, threads=2).slices == 2
    assert TunedNumpyStep(make("small", "float32"), 1, threads=2).slices == 1


def test_what_it_refuses():
    step = TunedNumpyStep(make("mlp", "float32"), 4)
    for shape in ((5, 20, 20, 1), (0, 20, 20, 1), (2, 20, 21, 1)):
        with pytest.raises(ShapeError, match="a step for up to 4 images"):
            step.forward_backward(np.zeros(shape, "f4"), np.zeros(shape[0], int), 0)
    with pytest.raises(UsageError, match="threads 0"):
        TunedNumpyStep(make("mlp", "float32"), 4, threads=0)


@pytest.mark.cuda
def test_a_model_on_the_gpu_is_refused():
    with pytest.raises(UsageError, match="on the CPU"):
        TunedNumpyStep(models.mlp().to("cuda"), 4)
