"""Update rules against scalar loops written from the papers, against PyTorch, and against the usual mistakes."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from bareconv.errors import ShapeError, UsageError
from bareconv.optim import OPTIMIZERS, SGD, Adam, AdamW, RMSprop, from_config
from bareconv.optim.optimizer import BLOCK

SHAPES = {"conv1.weight": (3, 3, 2, 4), "conv1.bias": (4,), "dense/2.weight": (5, 7), "scale": ()}

CONFIGS: list[dict[str, Any]] = [
    {"type": "SGD", "lr": 0.1},
    {"type": "SGD", "lr": 0.1, "weight_decay": 0.03},
    {"type": "SGD", "lr": 0.1, "momentum": 0.9},
    {"type": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.03},
    {"type": "SGD", "lr": 0.1, "momentum": 0.9, "nesterov": True},
    {"type": "SGD", "lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.03},
    {"type": "RMSprop"},
    {"type": "RMSprop", "lr": 0.02, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.03},
    {"type": "RMSprop", "lr": 0.02, "alpha": 0.9, "momentum": 0.8, "weight_decay": 0.03},
    {"type": "Adam"},
    {"type": "Adam", "lr": 0.01, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.03},
    {"type": "AdamW"},
    {"type": "AdamW", "lr": 0.01, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.3},
]
IDS = ["-".join(f"{value}" if key == "type" else f"{key}={value}" for key, value in c.items()) for c in CONFIGS]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=IDS)


def rate_at(step, config):
    """A rate that changes with every step, as a schedule's does."""
    return config.get("lr", 1e-3) * (1 + step % 3) / 2


def scalar_rule(config, w, gradients):
    """One weight's way under ``gradients``, one by one, from the papers' formulas in plain Python floats."""
    kind, decay = config["type"], config.get("weight_decay", 0.01 if config["type"] == "AdamW" else 0.0)
    velocity = mean = square = 0.0
    for t, gradient in enumerate(gradients, start=1):
        eta, g = rate_at(t - 1, config), gradient
        if kind == "AdamW":
            w = w - eta * decay * w
        else:
            g = gradient + decay * w
        mu = config.get("momentum", 0.0)
        if kind == "SGD":
            velocity = mu * velocity + g
            w -= eta * (g + mu * velocity if config.get("nesterov") else velocity)
        elif kind == "RMSprop":
            alpha, eps = config.get("alpha", 0.99), config.get("eps", 1e-8)
            square = alpha * square + (1 - alpha) * g**2
            velocity = mu * velocity + g / (math.sqrt(square) + eps)
            w -= eta * velocity
        else:
            beta1, beta2, eps = config.get("beta1", 0.9), config.get("beta2", 0.999), config.get("eps", 1e-8)
            mean = beta1 * mean + (1 - beta1) * g
            square = beta2 * square + (1 - beta2) * g**2
            w -= eta * (mean / (1 - beta1**t)) / (math.sqrt(square / (1 - beta2**t)) + eps)
    return w


def drawn(rng, steps, dtype):
    params = {name: np.asarray(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()}
    grads = [{name: np.asarray(rng.normal(size=s), dtype) for name, s in SHAPES.items()} for _ in range(steps)]
    return params, grads


def on(device, arrays):
    return {name: device.xp.array(x) for name, x in arrays.items()}


def train(optimizer, device, params, grads, config, start=0):
    for step, g in enumerate(grads, start):
        optimizer.update(params, on(device, g), rate_at(step, config))


@every_config
def test_equals_the_scalar_formula(config, device, rng):
    start, grads = drawn(rng, 6, np.float64)
    params = on(device, start)
    train(from_config(config), device, params, grads, config)
    for name, w in params.items():
        expected = np.empty(SHAPES[name])
        for index in np.ndindex(SHAPES[name]):
            expected[index] = scalar_rule(config, float(start[name][index]), [float(g[name][index]) for g in grads])
        np.testing.assert_allclose(device.to_host(w), expected, rtol=1e-11, atol=1e-13, err_msg=name)


@every_config
def test_equals_pytorch(config, device, rng):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch==2.13.0")
    start, grads = drawn(rng, 6, np.float64)
    params = on(device, start)
    train(from_config(config), device, params, grads, config)

    arguments = {name: value for name, value in config.items() if name not in ("type", "beta1", "beta2")}
    if "beta1" in config:
        arguments["betas"] = (config["beta1"], config["beta2"])
    tensors = {name: torch.tensor(w, requires_grad=True) for name, w in start.items()}
    peer = getattr(torch.optim, config["type"])(tensors.values(), **arguments)
    for step, g in enumerate(grads):
        peer.param_groups[0]["lr"] = rate_at(step, config)
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(g[name])
        peer.step()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(
            device.to_host(params[name]), tensor.detach().numpy(), rtol=1e-11, atol=1e-13, err_msg=name
        )


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_defaults_are_pytorchs(kind):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch==2.13.0")
    ours = from_config({"type": kind, "lr": 0.1}).config()
    theirs = dict(getattr(torch.optim, kind)([torch.zeros(1)], lr=0.1).defaults)
    if "betas" in theirs:
        theirs["beta1"], theirs["beta2"] = theirs["betas"]
    assert {name: theirs[name] for name in ours if name != "type"} == {k: v for k, v in ours.items() if k != "type"}


@every_config
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_works_in_place_and_keeps_the_dtype(config, dtype, device, rng):
    start, grads = drawn(rng, 3, dtype)
    params, optimizer = on(device, start), from_config(config)
    before = dict(params)
    handed = [on(device, g) for g in grads]
    for step, g in enumerate(handed):
        optimizer.update(params, g, np.float64(rate_at(step, config)))  # a NumPy scalar must not promote
    for name, w in params.items():
        assert w is before[name]
        assert w.dtype == dtype
        assert not np.array_equal(device.to_host(w), start[name])
    for key, array in optimizer.state().items():
        assert array.dtype == dtype
        assert array.shape == SHAPES[key.partition("/")[2]]
    for g, original in zip(handed, grads, strict=True):
        for name in g:  # weight decay must not leak into the gradients
            np.testing.assert_array_equal(device.to_host(g[name]), original[name])


@every_config
@pytest.mark.parametrize("layout", ["blocks", "a rest", "not contiguous"])
def test_large_tensors_are_updated_wholly(config, layout, rng):
    # They are worked through in blocks; each element must come out as it does alone.
    size = 2 * BLOCK + (0 if layout == "blocks" else 4)
    start, *grads = rng.normal(size=(3, size))
    shape = (2, size // 2)
    params = {"w": start.reshape(shape).copy(order="F" if layout == "not contiguous" else "C")}
    optimizer = from_config(config)
    for step, g in enumerate(grads):
        optimizer.update(params, {"w": g.reshape(shape)}, rate_at(step, config))
    found = params["w"].reshape(-1)
    for index in [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK - 1, size - 1]:
        expected = scalar_rule(config, float(start[index]), [float(g[index]) for g in grads])
        assert found[index] == pytest.approx(expected, rel=1e-11)
    few, loose = {"w": start[-100:].copy()}, from_config(config)
    for step, g in enumerate(grads):
        loose.update(few, {"w": g[-100:]}, rate_at(step, config))
    np.testing.assert_array_equal(found[-100:], few["w"])


def test_the_state_is_named_by_slot_and_parameter(device, rng):
    start, grads = drawn(rng, 1, np.float32)
    expected = {
        SGD(0.1): (),
        SGD(0.1, momentum=0.9): ("velocity",),
        RMSprop(): ("square",),
        RMSprop(momentum=0.5): ("square", "velocity"),
        Adam(): ("mean", "square"),
        AdamW(): ("mean", "square"),
    }
    for optimizer, slots in expected.items():
        assert optimizer.state() == {}
        optimizer.update(on(device, start), on(device, grads[0]), 0.1)
        assert set(optimizer.state()) == {f"{slot}/{name}" for slot in slots for name in SHAPES}
        assert optimizer.state() is not optimizer.state()


def test_adam_counts_steps_not_tensors(device):
    # After one step from zero state, Adam moves every weight by lr * g / (|g| + eps), whatever its place in the dict.
    params = {f"layer{i}": device.xp.zeros(3) for i in range(10)}
    grads = {name: device.xp.full(3, 0.5) for name in params}
    optimizer = Adam(lr=0.01)
    optimizer.update(params, grads, 0.01)
    assert optimizer.step == 1
    for name, w in params.items():
        np.testing.assert_allclose(device.to_host(w), -0.01, rtol=1e-6, err_msg=name)


def test_weight_decay_acts_once_and_by_its_rule(device):
    # Without a gradient only the decay is left: one step of SGD is w (1 - lr wd), of AdamW too, whatever Adam's size.
    for optimizer in (SGD(0.1, weight_decay=0.5), AdamW(0.1, weight_decay=0.5)):
        params = {"w": device.xp.full(4, 2.0)}
        optimizer.update(params, {"w": device.xp.zeros(4)}, 0.1)
        np.testing.assert_allclose(device.to_host(params["w"]), 2.0 * (1 - 0.1 * 0.5), rtol=1e-14)
    # Adam's penalty goes through the normalisation: the first step is lr, however strong the decay.
    params = {"w": device.xp.full(4, 2.0)}
    Adam(0.1, weight_decay=0.5).update(params, {"w": device.xp.zeros(4)}, 0.1)
    np.testing.assert_allclose(device.to_host(params["w"]), 2.0 - 0.1, rtol=1e-6)


@every_config
def test_resumed_equals_unbroken(config, device, rng):
    start, grads = drawn(rng, 7, np.float32)
    unbroken = on(device, start)
    train(from_config(config), device, unbroken, grads, config)

    params, first = on(device, start), from_config(config)
    train(first, device, params, grads[:3], config)
    kept = {key: device.to_host(array).copy() for key, array in first.state().items()}  # as from a file: on the host
    second = from_config(json.loads(json.dumps(first.config())))
    second.load_state(kept, first.step)
    train(second, device, params, grads[3:], config, start=3)
    assert second.step == 7
    for name in SHAPES:
        np.testing.assert_array_equal(device.to_host(params[name]), device.to_host(unbroken[name]), err_msg=name)


def test_loading_copies(device, rng):
    start, grads = drawn(rng, 2, np.float64)
    first, second = SGD(0.1, momentum=0.9), SGD(0.1, momentum=0.9)
    first.update(on(device, start), on(device, grads[0]), 0.1)
    second.load_state(first.state(), first.step)
    second.update(on(device, start), on(device, grads[1]), 0.1)
    for key, array in first.state().items():
        np.testing.assert_array_equal(device.to_host(array), grads[0][key.partition("/")[2]])


@pytest.mark.cuda
def test_state_of_a_gpu_run_goes_on_on_the_cpu(rng):
    from bareconv.device import get_device

    cpu, cuda = get_device("cpu"), get_device("cuda")
    start, grads = drawn(rng, 2, np.float32)
    first, second = Adam(), Adam()
    with cuda.activate():
        params = on(cuda, start)
        first.update(params, on(cuda, grads[0]), 0.01)
        host = {name: cuda.to_host(w) for name, w in params.items()}
    second.load_state(first.state(), first.step)
    second.update(host, grads[1], 0.01)
    assert all(isinstance(array, np.ndarray) for array in second.state().values())
    assert cpu.xp is np


def test_load_refuses_what_is_not_its_state(rng):
    start, grads = drawn(rng, 1, np.float32)
    adam = Adam()
    adam.update(start, grads[0], 0.01)
    state = adam.state()
    with pytest.raises(UsageError, match=r"SGD: expected velocity/\.\.\.; got mean/conv1\.weight"):
        SGD(0.1, momentum=0.9).load_state(state, 1)
    with pytest.raises(UsageError, match="SGD: expected no state; got mean"):
        SGD(0.1).load_state(state, 1)
    with pytest.raises(UsageError, match=r"Adam: the state lacks square/scale"):
        Adam().load_state({key: x for key, x in state.items() if key != "square/scale"}, 1)
    with pytest.raises(UsageError, match="step must be an integer of at least 0; got -1"):
        Adam().load_state(state, -1)

    lost = Adam()
    lost.load_state({}, 5)
    with pytest.raises(UsageError, match=r"Adam: after 5 steps the parameters must stay the same; conv1\.bias is new"):
        lost.update(start, grads[0], 0.01)
    less = Adam()
    less.load_state(state, 5)
    with pytest.raises(UsageError, match=r"dense/2\.weight is missing"):
        less.update({n: w for n, w in start.items() if n != "dense/2.weight"}, grads[0], 0.01)
    other = Adam()
    other.load_state({**state, "mean/scale": np.zeros(3, np.float32)}, 5)
    with pytest.raises(ShapeError, match=r"optimizer state mean/scale has shape \(3,\), its parameter \(\)"):
        other.update(start, grads[0], 0.01)


def test_update_refuses_what_does_not_fit_and_changes_nothing():
    optimizer = SGD(0.1)
    params = {"a": np.ones(3), "b": np.ones(4)}
    with pytest.raises(UsageError, match="SGD: parameter b has no gradient"):
        optimizer.update(params, {"a": np.ones(3)}, 0.1)
    with pytest.raises(ShapeError, match=r"parameter b has shape \(4,\), its gradient \(1,\)"):  # would broadcast
        optimizer.update(params, {"a": np.ones(3), "b": np.ones(1)}, 0.1)
    with pytest.raises(UsageError, match="SGD: there are no parameters to update"):
        optimizer.update({}, {}, 0.1)
    assert optimizer.step == 0
    assert (params["a"] == 1).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "SGD", "lr": -0.1}, "SGD: lr must be a number, at least 0; got -0.1"),
        ({"type": "SGD", "lr": math.nan}, "SGD: lr must be a number, at least 0; got nan"),
        ({"type": "SGD", "lr": math.inf}, "SGD: lr must be a number, at least 0; got inf"),
        ({"type": "SGD", "lr": "0.1"}, "SGD: lr must be a number, at least 0; got '0.1'"),
        ({"type": "SGD", "lr": True}, "SGD: lr must be a number, at least 0; got True"),
        ({"type": "SGD", "lr": 0.1, "momentum": 1}, "SGD: momentum must be a number, at least 0 and below 1; got 1"),
        ({"type": "SGD", "lr": 0.1, "nesterov": True}, "SGD: nesterov needs a momentum above 0; got momentum 0.0"),
        ({"type": "SGD", "lr": 0.1, "nesterov": "no"}, "SGD: nesterov must be True or False; got 'no'"),
        ({"type": "SGD", "lr": 0.1, "weight_decay": -1}, "SGD: weight_decay must be a number, at least 0; got -1"),
        ({"type": "SGD"}, "optimizer SGD: lr must be given"),
        ({"type": "RMSprop", "alpha": 1.0}, "RMSprop: alpha must be a number, at least 0 and below 1; got 1.0"),
        ({"type": "Adam", "eps": 0}, "Adam: eps must be a number, above 0; got 0"),
        ({"type": "Adam", "beta1": 1.0}, "Adam: beta1 must be a number, at least 0 and below 1; got 1.0"),
        ({"type": "AdamW", "beta2": -0.1}, "AdamW: beta2 must be a number, at least 0 and below 1; got -0.1"),
        (
            {"type": "Adam", "momentum": 0.9},
            "optimizer Adam: expected lr, beta1, beta2, eps, weight_decay; got momentum",
        ),
        ({"type": "Adagrad"}, "optimizer 'Adagrad': expected one of SGD, RMSprop, Adam, AdamW"),
        ({"lr": 0.1}, "optimizer None: expected one of SGD, RMSprop, Adam, AdamW"),
    ],
)
def test_bad_hyperparameters_are_named(config, message):
    with pytest.raises(UsageError) as caught:
        from_config(config)
    assert str(caught.value) == message


def test_config_describes_the_rule_wholly():
    made = from_config({"type": "sgd", "lr": np.float32(0.5), "momentum": 0.9, "nesterov": True})
    expected = {"type": "SGD", "lr": 0.5, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0}
    assert made.config() == expected
    assert json.loads(json.dumps(made.config())) == expected
    assert repr(made) == "SGD(lr=0.5, momentum=0.9, nesterov=True, weight_decay=0.0)"


def test_a_gradient_of_zeros_makes_no_nan():
    for kind in OPTIMIZERS:
        params = {"w": np.ones(3, np.float32)}
        from_config({"type": kind, "lr": 0.1}).update(params, {"w": np.zeros(3, np.float32)}, 0.1)
        assert np.isfinite(params["w"]).all()


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_finds_the_minimum_of_a_bowl(kind):
    params, target = {"w": np.array([4.0, -3.0])}, np.array([1.0, 2.0])
    optimizer = from_config({"type": kind, "lr": 0.05, "weight_decay": 0.0})
    for step in range(800):
        optimizer.update(params, {"w": 2 * (params["w"] - target)}, optimizer.lr * (1 - step / 800))
    np.testing.assert_allclose(params["w"], target, atol=1e-2)
