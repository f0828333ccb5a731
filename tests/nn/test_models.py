"""The zoo, and what a model says of itself."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bareconv import nn
from bareconv.bench.gradients import check_model
from bareconv.errors import BareconvError, ShapeError, UsageError
from bareconv.nn import models

# Parameters by hand: a conv has R*S*C*K weights and K biases, a batch norm two of each channel.
PARAMETERS = {
    "mlp": 784 * 10 + 10 + 10 * 10 + 10,
    "lenet5": 25 * 6 + 6 + 25 * 6 * 16 + 16 + 400 * 120 + 120 + 120 * 84 + 84 + 84 * 10 + 10,
    "small": 9 * 16 + 16 + 9 * 16 * 32 + 32 + 1568 * 128 + 128 + 128 * 10 + 10,
    "basic": 9 * 32 + 32 + 9 * 32 * 64 + 64 + 9216 * 128 + 128 + 128 * 10 + 10,
    "resnet9": 9 * (3 * 64 + 64 * 128 + 2 * 128**2 + 128 * 256 + 256 * 512 + 2 * 512**2)
    + 2 * (64 + 3 * 128 + 256 + 3 * 512)
    + 512 * 10
    + 10,
    "resnet18": 11_173_962,  # the figure that is quoted for the 32 x 32 form with 10 classes
}


@pytest.mark.parametrize("name", models.ZOO)
def test_parameters(name):
    assert models.ZOO[name]().body.parameter_count() == PARAMETERS[name]


# The same by hand of twice the filters and hidden units, and of a quarter: rounded, at least one.
WIDE = {
    "mlp": 784 * 20 + 20 + 20 * 10 + 10,
    "lenet5": 25 * 12 + 12 + 25 * 12 * 32 + 32 + 800 * 240 + 240 + 240 * 168 + 168 + 168 * 10 + 10,
    "small": 9 * 32 + 32 + 9 * 32 * 64 + 64 + 3136 * 256 + 256 + 256 * 10 + 10,
    "basic": 9 * 64 + 64 + 9 * 64 * 128 + 128 + 18432 * 256 + 256 + 256 * 10 + 10,
}
NARROW = {
    "mlp": 784 * 2 + 2 + 2 * 10 + 10,
    "lenet5": 25 * 2 + 2 + 25 * 2 * 4 + 4 + 100 * 30 + 30 + 30 * 21 + 21 + 21 * 10 + 10,
    "small": 9 * 4 + 4 + 9 * 4 * 8 + 8 + 392 * 32 + 32 + 32 * 10 + 10,
    "basic": 9 * 8 + 8 + 9 * 8 * 16 + 16 + 2304 * 32 + 32 + 32 * 10 + 10,
    "resnet9": 9 * (3 * 16 + 16 * 32 + 2 * 32**2 + 32 * 64 + 64 * 128 + 2 * 128**2)
    + 2 * (16 + 3 * 32 + 64 + 3 * 128)
    + 128 * 10
    + 10,
}


@pytest.mark.parametrize(("width", "parameters"), [(2, WIDE), (0.25, NARROW)])
def test_width(width, parameters):
    for name, count in parameters.items():
        model = models.by_name(name, models.ZOO[name]().input_shape, width=width)
        assert (model.name, model.body.parameter_count()) == (name, count)
        assert model.output_shape == (10,)


@pytest.mark.parametrize("name", ["mlp", "lenet5"])
def test_a_width_of_one_is_the_model_itself(name):
    model, again = models.ZOO[name](seed=2), models.by_name(name, (28, 28, 1), seed=2, width=1.0)
    assert model.config() == again.config()
    for key, value in model.parameters().items():
        np.testing.assert_array_equal(value, again.parameters()[key])


@pytest.mark.parametrize("name", models.ZOO)
def test_next_to_no_width_is_one_of_each(name, rng):
    thin = models.by_name(name, (32, 32, 3), width=1e-3)
    assert {leaf.params["weight"].shape[-1] for leaf in thin.leaves() if "weight" in leaf.params} == {1, 10}
    logits = thin.forward(thin.prepare(rng.integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)))
    assert np.isfinite(logits).all()
    config = json.loads(json.dumps(thin.config()))
    assert nn.Model.from_config(config).config() == thin.config()


@pytest.mark.parametrize("width", [0, -1, float("nan"), float("inf")])
def test_no_such_width(width):
    with pytest.raises(UsageError, match="width .*: expected a factor of more than 0"):
        models.by_name("basic", (28, 28, 1), width=width)


def test_flops_of_a_training_step():
    """Multiply-adds of basic by hand: forward and dW of all four, dX of all but the first."""
    work = [26 * 26 * 32 * 9, 24 * 24 * 64 * 9 * 32, 9216 * 128, 128 * 10]
    assert models.basic().flops() == 2 * (3 * sum(work) - work[0])
    assert round(models.basic().flops() / 1e6, 1) == 71.6
    assert round(models.small().flops() / 1e6, 2) == 7.08


@pytest.mark.parametrize("name", models.ZOO)
@pytest.mark.parametrize(("shape", "classes"), [((28, 28, 1), 10), ((32, 32, 3), 10), ((21, 17, 2), 7)])
def test_any_input_and_classes(name, shape, classes, rng):
    model = models.by_name(name, shape, classes)
    logits = model.forward(model.prepare(rng.integers(0, 256, (1, *shape)).astype(np.uint8)))
    assert logits.shape == (1, classes)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


def test_these_are_convolutional_networks():
    """All but the perceptron that the original write-up delivered."""
    for name, make in models.ZOO.items():
        assert any(isinstance(leaf, nn.Conv2d) for leaf in make().leaves()) == (name != "mlp")


def test_too_small_an_image_names_the_layer():
    with pytest.raises(ShapeError, match="layer conv2 .*input 1 x 1 x 32: a window of 3 x 3 does not fit"):
        models.basic((3, 3, 1))


def test_unknown_name():
    with pytest.raises(UsageError, match="model 'vgg': expected one of mlp, lenet5, small, basic, resnet9, resnet18"):
        models.by_name("vgg", (28, 28, 1))


@pytest.mark.parametrize("name", ["mlp", "lenet5", "small", "basic"])
def test_whole_model_gradients(name, device):
    check = check_model(name, device)
    assert check.checked >= 16
    assert check.passed, check


@pytest.mark.slow
def test_whole_residual_model_gradients(device):
    check = check_model("resnet9", device)
    assert check.checked > 100
    assert check.passed, check


@pytest.mark.parametrize("name", models.ZOO)
def test_configuration_round_trip(name):
    model = models.ZOO[name](seed=5)
    again = nn.Model.from_config(json.loads(json.dumps(model.config())))
    assert again.config() == model.config()
    for key, value in model.parameters().items():
        np.testing.assert_array_equal(value, again.parameters()[key])


def test_load_state_says_what_does_not_fit():
    state = {key: value.copy() for key, value in models.small().state().items()}
    with pytest.raises(BareconvError, match=r"dense1.weight is \(1568, 128\), expected \(9216, 128\)|conv1.weight is"):
        models.basic().load_state(state)
    del state["conv1.bias"]
    with pytest.raises(BareconvError, match="conv1.bias is in one of the two only"):
        models.small().load_state(state)


def test_prepare_normalises_and_checks():
    model = nn.Model([nn.Flatten(), nn.Dense(2)], (2, 2, 1), mean=51.0, std=204.0)
    x = model.prepare(np.array([0, 51, 102, 255], np.uint8).reshape(1, 2, 2, 1))
    np.testing.assert_allclose(x.ravel(), [-0.25, 0.0, 0.25, 1.0])
    with pytest.raises(ShapeError, match=r"built for images of \(2, 2, 1\); got images of \(3, 2, 1\)"):
        model.prepare(np.zeros((1, 3, 2, 1), np.uint8))


def test_wrong_input_shape_and_precision():
    with pytest.raises(UsageError, match=r"input shape \(28, 28\)"):
        models.basic((28, 28))
    with pytest.raises(UsageError, match="precision 'float16': expected float32 or float64"):
        models.basic().to("cpu", "float16")


def test_summary_tells_shapes_parameters_flops_and_bytes():
    summary = models.basic().summary()
    conv2 = next(row for row in summary.rows if row.name == "conv2")
    assert conv2.out_shape == (24, 24, 64)
    assert conv2.parameters == 18_496
    assert conv2.flops == 2 * 24 * 24 * 64 * 288
    assert conv2.parameter_bytes == 4 * 18_496
    assert conv2.activation_bytes == 4 * 24 * 24 * 64
    text = str(summary)
    assert "24 x 24 x 64" in text
    assert "1,199,882" in text
    assert len({len(line) for line in text.splitlines() if line.startswith("---")}) == 1


def test_activation_bytes_count_shared_arrays_once(rng):
    """relu keeps its output, which the dense after the flatten keeps too, as a view: one array."""
    model = nn.Model([nn.ReLU(), nn.Flatten(), nn.Dense(2)], (4, 4, 1))
    model.forward(rng.standard_normal((3, 4, 4, 1)).astype(np.float32), training=True)
    assert model.activation_bytes() == 3 * 16 * 4


def test_moves_between_precisions(rng, device):
    model = models.small()
    x = rng.integers(0, 256, (2, 28, 28, 1)).astype(np.uint8)
    single = model.forward(model.prepare(x))
    model.to(device, "float64")
    with device.activate():
        double = device.to_host(model.forward(model.prepare(device.asarray(x))))
    assert double.dtype == np.float64
    np.testing.assert_allclose(single, double, rtol=1e-3, atol=1e-4)
    back = model.to("cpu", "float32")
    np.testing.assert_array_equal(back.forward(back.prepare(x)), single)
