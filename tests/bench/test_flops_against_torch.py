"""FLOPs of layers and models against PyTorch's own counter, which counts a multiply-add as two as well.

It counts convolutions and matrix products alone, and so do we; of the first layer it has no dX where the images need no
gradient. Everything is on its "meta" device: shapes, and no numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bareconv import nn
from bareconv.bench.workers.pytorch import Builder
from bareconv.bench.workload import described, natural_shape
from bareconv.nn import models

torch: Any = pytest.importorskip("torch", reason='PyTorch is not installed: pip install "bareconv[peers]"')
counter: Any = pytest.importorskip("torch.utils.flop_counter")


def counted(model, images):
    """(forward, backward) of a batch by PyTorch, in whose layouts our described model is built."""
    layers = [described(layer) for layer in model.body.layers]
    theirs = Builder(torch, model.state()).sequence(layers).to("meta").train()
    height, width, channels = model.input_shape
    x = torch.empty(images, channels, height, width, device="meta")
    with counter.FlopCounterMode(display=False) as forward:
        y = theirs(x)
    with counter.FlopCounterMode(display=False) as backward:
        y.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def ours(model, images):
    """(forward, backward), with no dX of the first layer that has weights."""
    work = [leaf.flops() for leaf in model.leaves() if leaf.params]
    forward = sum(one.forward for one in work)
    backward = sum(one.dw for one in work) + sum(one.dx for one in work[1:])
    assert forward + backward == model.flops()
    return images * forward, images * backward


@pytest.mark.parametrize("name", list(models.ZOO))
def test_models_of_the_zoo(name):
    model = models.by_name(name, natural_shape(name))
    assert ours(model, 3) == counted(model, 3)


def drawn(seed):
    """Two convolutions of any shape, stride, padding and dilation, and two dense layers; an image that they fit."""
    rng = np.random.default_rng(seed)

    def pair(low, high):
        return tuple(int(n) for n in rng.integers(low, high + 1, 2))

    def convolution(groups):
        return nn.Conv2d(
            groups * int(rng.integers(1, 6)),
            pair(1, 4),
            pair(1, 3),
            pair(0, 2),
            pair(1, 2),
            groups,
            bool(rng.integers(2)),
        )

    layers = [convolution(1), nn.ReLU(), convolution(1), nn.Flatten(), nn.Dense(int(rng.integers(1, 30))), nn.Dense(7)]
    return nn.Model(layers, (*(int(n) for n in rng.integers(24, 40, 2)), int(rng.integers(1, 5))))


@pytest.mark.parametrize("seed", range(12))
def test_layers_drawn_at_random(seed):
    model = drawn(seed)
    assert ours(model, 2) == counted(model, 2)


@pytest.mark.parametrize("groups", [2, 3])
def test_convolutions_in_groups(groups):
    """Of dW, PyTorch's counter forgets the groups: each filter sees the channels of its own group alone."""
    first, second = nn.Conv2d(6, 3), nn.Conv2d(12, (3, 2), stride=(1, 2), padding=1, groups=groups)
    model = nn.Model([first, second, nn.Flatten(), nn.Dense(5)], (11, 12, 2))
    forward, backward = ours(model, 4)
    assert counted(model, 4) == (forward, backward + (groups - 1) * 4 * second.flops().dw)
    P, Q = second.out_shape[:2]
    assert second.flops().dw == 2 * P * Q * 3 * 2 * (6 // groups) * 12
