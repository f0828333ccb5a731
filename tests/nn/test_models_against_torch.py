"""Whole models against PyTorch on the CPU in float64: logits, loss, every gradient, and three steps of training.

The models are written down here once more, in PyTorch's own layout: NCHW images, (K, C, R, S) convolutions, and a
flatten that runs over C, H, W, so that the first dense layer's rows come in another order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bareconv.nn import models
from bareconv.optim import SGD, Constant
from bareconv.training import EngineSettings, ReferenceEngine, Settings, Trainer

torch: Any = pytest.importorskip("torch", reason='PyTorch is not installed: pip install "bareconv[peers]"')
tn: Any = torch.nn


def basic():
    return [
        *(tn.Conv2d(1, 32, 3), tn.ReLU(), tn.Conv2d(32, 64, 3), tn.ReLU(), tn.MaxPool2d(2)),
        *(tn.Flatten(), tn.Linear(64 * 12 * 12, 128), tn.ReLU(), tn.Linear(128, 10)),
    ]


def lenet5():
    return [
        *(tn.Conv2d(1, 6, 5, padding=2), tn.ReLU(), tn.MaxPool2d(2)),
        *(tn.Conv2d(6, 16, 5), tn.ReLU(), tn.MaxPool2d(2)),
        *(tn.Flatten(), tn.Linear(16 * 5 * 5, 120), tn.ReLU(), tn.Linear(120, 84), tn.ReLU(), tn.Linear(84, 10)),
    ]


def small():
    return [
        *(tn.Conv2d(1, 16, 3, padding="same"), tn.ReLU(), tn.MaxPool2d(2)),
        *(tn.Conv2d(16, 32, 3, padding="same"), tn.ReLU(), tn.MaxPool2d(2)),
        *(tn.Flatten(), tn.Linear(32 * 7 * 7, 128), tn.ReLU(), tn.Linear(128, 10)),
    ]


def conv_norm_relu(channels, filters, stride=1):
    conv = tn.Conv2d(channels, filters, 3, stride=stride, padding=1, bias=False)
    return [conv, tn.BatchNorm2d(filters), tn.ReLU()]


class Skip(tn.Module):  # type: ignore[misc]
    """x + body(x), or shortcut(x) + body(x). The shortcut's parameters come first, as in bareconv."""

    def __init__(self, body, shortcut=()):
        super().__init__()
        self.shortcut, self.body = tn.Sequential(*shortcut), tn.Sequential(*body)

    def forward(self, x):
        return self.shortcut(x) + self.body(x)


def resnet9():
    return [
        *conv_norm_relu(3, 64),
        *(*conv_norm_relu(64, 128), tn.MaxPool2d(2)),
        Skip([*conv_norm_relu(128, 128), *conv_norm_relu(128, 128)]),
        *(*conv_norm_relu(128, 256), tn.MaxPool2d(2)),
        *(*conv_norm_relu(256, 512), tn.MaxPool2d(2)),
        Skip([*conv_norm_relu(512, 512), *conv_norm_relu(512, 512)]),
        *(tn.AdaptiveMaxPool2d(1), tn.Flatten(), tn.Linear(512, 10)),
    ]


def resnet18():
    def block(channels, filters, stride):
        body = [*conv_norm_relu(channels, filters, stride), *conv_norm_relu(filters, filters)[:2]]
        project = [tn.Conv2d(channels, filters, 1, stride, bias=False), tn.BatchNorm2d(filters)]
        return [Skip(body, project if stride > 1 else ()), tn.ReLU()]

    layers, channels = conv_norm_relu(3, 64), 64
    for filters, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [*block(channels, filters, stride), *block(filters, filters, 1)]
        channels = filters
    return [*layers, tn.AdaptiveAvgPool2d(1), tn.Flatten(), tn.Linear(512, 10)]


# Ours -> PyTorch's.
NORM = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}


def counterparts(model, theirs):
    """(our key, their tensor) for every parameter and buffer: both are in order of execution."""
    modules = [module for module in theirs.modules() if [*module.parameters(recurse=False)]]
    leaves = [leaf for leaf in model.leaves() if leaf.params]
    for leaf, module in zip(leaves, modules, strict=True):
        for key in (*leaf.params, *leaf.buffers):
            assert isinstance(module, tn.BatchNorm2d) == (key in NORM)
            yield f"{leaf.name}.{key}", getattr(module, NORM.get(key, key))


def in_their_layout(array, image):
    """HWIO -> OIHW; (in, out) -> (out, in), with rows over H, W, C -> columns over C, H, W if ``image`` is given."""
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if array.ndim == 2 and image is not None:
        return array.reshape(*image, -1).transpose(3, 2, 0, 1).reshape(array.shape[1], -1)
    return array.T


def flattened_image(model, key):
    """The shape of the image that the flatten before the dense layer of ``key`` takes apart, if one is."""
    leaves = list(model.leaves())
    index = next(i for i, leaf in enumerate(leaves) if key.startswith(leaf.name + "."))
    before = leaves[index - 1]
    return before.in_shape if index and type(before).__name__ == "Flatten" else None


def twins(name, layers, shape, rng):
    """Our model and theirs in float64 with the same random weights."""
    model = models.by_name(name, shape, seed=4).to("cpu", "float64")
    for key, value in model.parameters().items():  # biases of 0 and gammas of 1 would hide mistakes
        if key.endswith(("bias", "beta", "gamma")):
            value += rng.uniform(-0.2, 0.2, value.shape)
    theirs = tn.Sequential(*layers()).double()
    with torch.no_grad():
        for key, tensor in counterparts(model, theirs):
            value = in_their_layout(model.state()[key], flattened_image(model, key))
            assert tensor.shape == value.shape, key
            tensor.copy_(torch.from_numpy(value.copy()))
    return model, theirs


def their_batch(x, labels):
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels.astype(np.int64))


def assert_close(key, ours, theirs, tolerance):
    assert ours.shape == theirs.shape, key
    assert ours.dtype == theirs.dtype == np.float64
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs), key


# Model, its twin, images, how many, label smoothing
CASES = [
    ("lenet5", lenet5, (28, 28, 1), 6, 0.0),
    ("small", small, (28, 28, 1), 6, 0.1),
    ("basic", basic, (28, 28, 1), 4, 0.0),
    ("resnet9", resnet9, (16, 16, 3), 3, 0.1),
    pytest.param("resnet18", resnet18, (8, 8, 3), 5, 0.0, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "layers", "shape", "N", "smoothing"), CASES)
def test_one_step(name, layers, shape, N, smoothing, rng):
    """Logits in training, loss, all gradients, the running statistics; then the logits of the evaluation."""
    model, theirs = twins(name, layers, shape, rng)
    assert sum(p.numel() for p in theirs.parameters()) == model.body.parameter_count()
    images = rng.integers(0, 256, (N, *shape)).astype(np.uint8)
    labels = rng.integers(0, 10, N).astype(np.int32)
    x = model.prepare(images)
    x_t, labels_t = their_batch(x, labels)

    engine = ReferenceEngine(model, SGD(0.1), EngineSettings(label_smoothing=smoothing))
    seen = []
    loss, correct = engine.forward(x, labels, 0, watch=lambda phase, leaf, result: seen.append(result))
    engine.backward()
    logits_t = theirs(x_t)
    loss_t = tn.functional.cross_entropy(logits_t, labels_t, label_smoothing=smoothing)
    loss_t.backward()

    assert_close("logits", seen[-2], logits_t.detach().numpy(), 1e-10)
    assert float(loss) == pytest.approx(loss_t.item(), rel=1e-12)
    assert int(correct) == int((logits_t.argmax(dim=1) == labels_t).sum())
    gradients, compared = model.gradients(), 0
    for key, tensor in counterparts(model, theirs):
        if key in gradients:
            ours, expected = gradients[key], tensor.grad.numpy()
            compared += 1
        else:
            ours, expected = model.buffers()[key], tensor.numpy()
        assert_close(key, in_their_layout(ours, flattened_image(model, key)), expected, 1e-10)
    assert compared == len(gradients) == len(model.parameters())
    theirs.eval()
    with torch.no_grad():
        assert_close("evaluation", engine.predict(images), theirs(x_t).numpy(), 1e-10)


@pytest.mark.parametrize("nesterov", [False, True])
def test_three_steps_of_basic(nesterov, digits, rng):
    """The trainer's batches, of 8, 8 and 4 images, clipped gradients, weight decay; in PyTorch's own loop."""
    model, theirs = twins("basic", basic, (28, 28, 1), rng)
    settings = Settings(batch_size=8, schedule=Constant(), precision="float64", clip_norm=0.1, seed=6)
    optimizer = SGD(0.05, momentum=0.9, nesterov=nesterov, weight_decay=1e-3)
    data = digits.take(20, 10)
    trainer = Trainer(model, data, optimizer, settings, "cpu")
    descent = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9, nesterov=nesterov, weight_decay=1e-3)
    losses = []
    for chosen in np.split(trainer.order(0), [8, 16]):
        x, labels = their_batch(data.train.images[chosen] / 255.0, data.train.labels[chosen])
        descent.zero_grad()
        loss = tn.functional.cross_entropy(theirs(x), labels)
        loss.backward()
        tn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
        descent.step()
        losses.append(loss.item())

    history = trainer.run()
    np.testing.assert_allclose(history.loss, losses, rtol=1e-10)
    for key, tensor in counterparts(model, theirs):
        ours = in_their_layout(model.parameters()[key], flattened_image(model, key))
        assert_close(key, ours, tensor.detach().numpy(), 1e-9)
    x, labels = their_batch(data.test.images / 255.0, data.test.labels)
    with torch.no_grad():
        test_loss = tn.functional.cross_entropy(theirs(x), labels).item()
    assert history.test_loss == pytest.approx(test_loss, rel=1e-9)
