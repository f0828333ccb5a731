"""Clipping by the global norm."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bareconv.errors import UsageError
from bareconv.optim import clip_grad_norm


def drawn(rng, device, dtype=np.float64):
    host = {"a": rng.normal(size=(3, 4)), "b": 100 * rng.normal(size=5), "c": np.array(0.5)}
    return {name: g.astype(dtype) for name, g in host.items()}, {
        name: device.xp.array(g.astype(dtype)) for name, g in host.items()
    }


def global_norm(arrays):
    return math.sqrt(sum(float(x) ** 2 for g in arrays.values() for x in np.asarray(g).flat))


def test_scales_all_by_the_one_global_norm(device, rng):
    host, grads = drawn(rng, device)
    before, kept = global_norm(host), dict(grads)
    norm = clip_grad_norm(grads, 2.0)
    assert norm.shape == ()
    assert float(norm) == pytest.approx(before, rel=1e-14)
    after = {name: device.to_host(g) for name, g in grads.items()}
    assert global_norm(after) == pytest.approx(2.0, rel=1e-6)
    # One factor for all tensors: the direction stays. Per-tensor clipping would leave "c" (norm 0.5) as it is.
    for name, g in after.items():
        assert grads[name] is kept[name]
        np.testing.assert_allclose(g, host[name] * 2.0 / before, rtol=1e-6)


@pytest.mark.parametrize("max_norm", [1e6, math.inf])
def test_leaves_a_smaller_norm_exactly_as_it_is(max_norm, device, rng):
    host, grads = drawn(rng, device)
    assert float(clip_grad_norm(grads, max_norm)) == pytest.approx(global_norm(host), rel=1e-14)
    for name, g in grads.items():
        np.testing.assert_array_equal(device.to_host(g), host[name])


def test_keeps_float32(device, rng):
    host, grads = drawn(rng, device, np.float32)
    norm = clip_grad_norm(grads, np.float64(1.0))
    assert norm.dtype == np.float32
    assert all(g.dtype == np.float32 for g in grads.values())
    assert float(norm) == pytest.approx(global_norm(host), rel=1e-6)


def test_zeros_stay_zeros_and_nothing_is_nothing(device):
    grads = {"a": device.xp.zeros(3)}
    assert float(clip_grad_norm(grads, 1.0)) == 0
    assert (device.to_host(grads["a"]) == 0).all()
    assert float(clip_grad_norm({}, 1.0)) == 0


def test_the_norm_may_be_read_after_the_gradients_changed(device):
    grads = {"a": device.xp.full(4, 3.0)}
    norm = clip_grad_norm(grads, 1.0)
    grads["a"] *= 0
    assert float(norm) == 6.0


def test_a_norm_that_is_not_finite_shows(device):
    grads = {"a": device.xp.array([1.0, math.nan]), "b": device.xp.ones(2)}
    assert math.isnan(float(clip_grad_norm(grads, 1.0)))


@pytest.mark.parametrize("max_norm", [0, -1.0, math.nan, "1", True])
def test_refuses_a_bound_that_is_none(max_norm):
    with pytest.raises(UsageError, match="clip_grad_norm: max_norm must be a number, above 0; got"):
        clip_grad_norm({"a": np.ones(2)}, max_norm)


def test_equals_pytorch(device, rng):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch==2.13.0")
    host, grads = drawn(rng, device)
    tensors = []
    for g in host.values():
        tensor = torch.zeros(g.shape, dtype=torch.float64, requires_grad=True)
        tensor.grad = torch.tensor(g)
        tensors.append(tensor)
    expected = torch.nn.utils.clip_grad_norm_(tensors, 3.0)
    assert float(clip_grad_norm(grads, 3.0)) == pytest.approx(float(expected), rel=1e-14)
    for g, tensor in zip(grads.values(), tensors, strict=True):
        np.testing.assert_allclose(device.to_host(g), tensor.grad.numpy(), rtol=1e-14)
