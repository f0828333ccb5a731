"""The optimizer's step on a flat array of parameters, and weights in other orders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_harness import TOLERANCE, Block, assert_close, call, distance, draws, filled, rounded, single

from bareconv.kernels.cpu.parameters import ALIGNMENT, Pack, Update
from bareconv.kernels.cpu.target import Target
from bareconv.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from bareconv.optim.rule import SCALARS, Rule, scalars

WORKERS = 3
RULES: dict[str, dict[str, Any]] = {
    "sgd": {"type": SGD},
    "sgd with decay": {"type": SGD, "weight_decay": 0.05},
    "momentum": {"type": SGD, "momentum": 0.9},
    "momentum with decay": {"type": SGD, "momentum": 0.9, "weight_decay": 0.05},
    "nesterov": {"type": SGD, "momentum": 0.8, "nesterov": True},
    "nesterov with decay": {"type": SGD, "momentum": 0.8, "nesterov": True, "weight_decay": 0.05},
    "rmsprop": {"type": RMSprop},
    "rmsprop with momentum": {"type": RMSprop, "momentum": 0.9},
    "rmsprop with all": {"type": RMSprop, "alpha": 0.9, "eps": 1e-3, "momentum": 0.7, "weight_decay": 0.05},
    "adam": {"type": Adam},
    "adam with decay": {"type": Adam, "weight_decay": 0.05, "beta1": 0.8, "beta2": 0.9, "eps": 1e-4},
    "adamw": {"type": AdamW},
    "adamw without decay": {"type": AdamW, "weight_decay": 0.0},
}


def made(name: str) -> Optimizer:
    options = dict(RULES[name])
    kind = options.pop("type")
    return kind(lr=0.05, **options)


@pytest.mark.parametrize("mapped", [False, True], ids=["in order", "mapped"])
@pytest.mark.parametrize("name", RULES)
def test_every_rule_over_several_steps(target: Target, name: str, mapped: bool) -> None:
    """At a rate that changes, against ``bareconv.optim`` in float64; the workers' gradients are summed up and cleared.

    ``mapped``: the gradients lie in another order; elements between parameters read place 0, and nothing is kept of it.
    """
    size, pitch = 6 * ALIGNMENT, 6 * ALIGNMENT + 24
    optimizer, reference = made(name), made(name)
    w = rounded(draws(1, size), target)
    expected = {"w": w.copy()}
    blocks = {
        "partial": Block(pitch, WORKERS, target.dtype),
        "workers": single(np.array([WORKERS])),
        "scalars": Block(SCALARS, 1, target.dtype),
        "weight": single(w, target.dtype),
        "gradient": Block(size, 1, target.dtype),
        "state1": single(np.zeros(size), target.dtype),
        "state2": single(np.zeros(size), target.dtype),
    }
    places = 1 + np.random.default_rng(3).permutation(pitch - 1)[:size] if mapped else np.arange(size)
    if mapped:
        blocks["places"] = single(places, "int32")
    kernel = Update(target, pitch, mapped, Rule.of(optimizer))
    partial = blocks["partial"].data
    partial[...] = 0.0
    for step in range(4):
        lr = 0.05 / (step + 1)
        g = rounded(draws(10 + step, WORKERS, size), target)
        partial[:, places] = g
        blocks["scalars"].data[...] = [*scalars(optimizer, lr), *[0.0] * SCALARS][:SCALARS]
        writes = ["partial", "weight", "state1", "state2"]
        call(kernel, blocks, writes, range(4 * ALIGNMENT), whole=writes)  # as two workers would
        call(kernel, blocks, writes, range(4 * ALIGNMENT, size), whole=writes)
        optimizer.step += 1
        reference.update(expected, {"w": g.sum(axis=0)}, lr)
        # Where a running size is near zero, its rounding is divided by it: compare what the steps have changed.
        moved = distance(blocks["weight"].data[0] - w, expected["w"] - w)
        assert moved <= 20 * TOLERANCE[target.dtype], f"step {step}: off by {moved:.1e}"
        assert not partial[:, places].any(), "cleared for the next step"
    for slot, array in zip(("state1", "state2"), reference.state().values(), strict=False):
        assert distance(blocks[slot].data[0], array) <= 5 * TOLERANCE[target.dtype]


def test_the_rule_that_only_keeps_the_gradient(target: Target) -> None:
    g = rounded(draws(1, WORKERS, 32), target)
    blocks = {
        "partial": filled(g, target.dtype),
        "workers": single(np.array([WORKERS])),
        "scalars": single(np.zeros(SCALARS), target.dtype),
        "gradient": Block(32, 1, target.dtype),
    }
    call(
        Update(target, 32, False, Rule("gradient")),
        blocks,
        ["partial", "gradient"],
        range(32),
        whole=["partial", "gradient"],
    )
    assert_close(blocks["gradient"].data[0], g.sum(axis=0), target)


def test_gradients_alone_where_kernels_cannot_update() -> None:
    """An optimizer that they do not know; a norm that is clipped before the update."""

    class Mine(SGD):
        pass

    assert Rule.of(Mine(0.1)) == Rule.of(SGD(0.1), clip_norm=1.0) == Rule("gradient")
    assert Rule.of(SGD(0.1)) == Rule("sgd")


@settings(max_examples=10)
@given(count=st.integers(1, 9), begin=st.integers(0, 4))
def test_pack(target: Target, count: int, begin: int) -> None:
    """From the element it begins with; what lies before is left alone."""
    size, first = count * target.lanes, min(begin, count - 1) * target.lanes
    weight = rounded(draws(1, 77), target)
    places = np.random.default_rng(2).integers(0, 77, size).astype(np.int32)
    blocks = {"weight": single(weight, target.dtype), "places": single(places), "packed": Block(size, 1, target.dtype)}
    call(Pack(target), blocks, ["packed"], range(first, size), whole=["packed"])
    assert np.array_equal(blocks["packed"].data[0, first:], weight[places][first:])
    assert np.isnan(blocks["packed"].data[0, :first]).all()
