"""head.cu against float64: the dense layers after the first sums, the loss, and backward through them."""

from itertools import pairwise

import numpy as np
import pytest
from cuda_host import TOLERANCE, from_kept, needs_nvrtc, poison, relative_error, to_kept

from bareconv import ops
from bareconv.kernels.cuda.compiler import compile_kernel
from bareconv.kernels.cuda.head import head
from bareconv.kernels.cuda.kernel import PRECISIONS, padded
from bareconv.kernels.cuda.limits import GENERATIONS, H100, Limits

FEW = Limits("sm_90", 2, 232448, 50 << 20)  # few multiprocessors: many images a block

# units, relus, splits, batch, images that the step has, limits, smoothing, thread order
CASES = [
    ([10], [False], 3, 9, 9, H100, 0.0, "forward"),
    ([128, 10], [True, False], 5, 5, 4, H100, 0.1, "backward"),
    ([40, 12, 7], [True, True, False], 2, 11, 10, H100, 0.2, "random"),
    ([20, 33], [False, False], 1, 50, 37, FEW, 0.0, "backward"),
    ([10, 10], [True, False], 1, 130, 129, FEW, 0.0, "forward"),
    ([10, 10], [True, False], 2, 130, 129, FEW, 0.1, "random"),
    ([16], [False], 1, 70, 70, FEW, 0.0, "backward"),
    ([13, 7, 9], [True, True, False], 1, 140, 131, FEW, 0.0, "forward"),
    ([13, 24, 40], [True, False, False], 4, 30, 30, FEW, 0.1, "random"),
]


def rounded(values, precision):
    return from_kept(to_kept(values, precision))


class Data:
    def __init__(self, units, relus, splits, batch, images, smoothing, precision, seed=0):
        rng = np.random.default_rng(seed)
        self.units, self.images = units, images
        self.sums = np.zeros((splits, batch, padded(units[0])), np.float32)
        self.sums[..., : units[0]] = rng.standard_normal((splits, batch, units[0])) / np.sqrt(splits)
        self.sums[:, images:] = np.nan
        self.bias = [rng.standard_normal(one).astype(np.float32) for one in units]
        weights = [rng.standard_normal((a, b)) / np.sqrt(a) for a, b in pairwise(units)]
        self.copies = []
        for w in weights:
            copy = np.zeros((padded(w.shape[0]), padded(w.shape[1])), to_kept(w, precision).dtype)
            copy[: w.shape[0], : w.shape[1]] = to_kept(w, precision)
            self.copies.append(copy)
        weights = [rounded(w, precision) for w in weights]
        self.labels = rng.integers(0, units[-1], 3 * batch).astype(np.int32)
        self.order = rng.permutation(3 * batch).astype(np.int32)
        self.control = np.array([1, images, batch + images, batch, 0], np.int32)
        self.chosen = self.labels[self.order[batch : batch + images]]
        # The reference rounds where the kernel does: at what it writes.
        h, z = [], self.sums[:, :images, : units[0]].astype(np.float64).sum(0) + self.bias[0]
        for i, relu in enumerate(relus):
            if relu:
                z = np.maximum(z, 0)
            if i + 1 < len(units):
                h.append(rounded(z, precision))
                z = h[-1] @ weights[i] + self.bias[i + 1]
        self.h, self.logits = h, z
        _, p, t = ops.softmax_cross_entropy_forward(z, self.chosen, smoothing)
        self.image_loss = -(t * np.log(p)).sum(1)
        self.image_hit = z.argmax(1) == self.chosen
        dz = [ops.softmax_cross_entropy_backward(p, t)]
        for i in range(len(units) - 2, -1, -1):
            below = rounded(dz[0], precision) @ weights[i].T
            dz.insert(0, np.where(h[i] > 0, below, 0) if relus[i] else below)
        self.dz = dz

    def operands(self, precision, batch):
        layers = range(len(self.units))
        found = {"sums": self.sums, "labels": self.labels, "order": self.order, "control": self.control}
        found |= {f"bias_{i}": self.bias[i] for i in layers}
        found |= {f"w_{i + 1}": copy for i, copy in enumerate(self.copies)}
        found |= {
            f"{name}_{i}": poison((batch, padded(self.units[i])), precision) for name in ("h", "dz") for i in layers
        }
        found["logits"] = poison((batch, padded(self.units[-1])), precision)
        found["image_loss"], found["image_hit"] = poison((batch,)), np.full(batch, -1, np.int32)
        found["position"] = np.full(1, -1, np.int32)
        return found


def check(written, expected, images, precision):
    got, units = from_kept(written)[:images], expected.shape[1]
    assert relative_error(got[:, :units], expected) <= TOLERANCE[precision]
    assert (got[:, units:] == 0).all(), "padding columns"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("units", "relus", "splits", "batch", "images", "limits", "smoothing", "order"), CASES)
def test_forward_loss_and_backward(launch, precision, units, relus, splits, batch, images, limits, smoothing, order):
    data = Data(units, relus, splits, batch, images, smoothing, precision)
    kernel = head(precision, units, relus, splits, batch, limits, smoothing)
    assert kernel is not None
    operands = data.operands(precision, batch)
    launch(kernel, {name: operands[name] for name in kernel.operands}, order)
    for i, h in enumerate(data.h):
        check(operands[f"h_{i}"], h, images, precision)
    check(operands["logits"], data.logits, images, precision)
    for i, dz in enumerate(data.dz):
        check(operands[f"dz_{i}"], dz, images, precision)
    assert relative_error(operands["image_loss"][:images], data.image_loss) <= TOLERANCE[precision]
    np.testing.assert_array_equal(operands["image_hit"][:images], data.image_hit)
    assert operands["position"] == [1]


def test_without_backward_logits_biases_and_order(launch):
    units, relus, batch, images = [24, 10], [True, False], 20, 17
    data = Data(units, relus, 2, batch, images, 0.0, "float32")
    kernel = head("float32", units, relus, 2, batch, H100, backward=False)
    assert kernel is not None
    operands = data.operands("float32", batch)
    operands |= {"logits": None, "order": None, "bias_0": None, "bias_1": None, "position": None}
    launch(kernel, {name: operands[name] for name in kernel.operands})
    h = np.maximum(data.sums[:, :images, :24].astype(np.float64).sum(0), 0)
    z = h @ from_kept(data.copies[0])[:24, :10]
    chosen = data.labels[batch : batch + images]
    _, p, t = ops.softmax_cross_entropy_forward(z, chosen, 0.0)
    assert relative_error(operands["image_loss"][:images], -(t * np.log(p)).sum(1)) <= TOLERANCE["float32"]
    np.testing.assert_array_equal(operands["image_hit"][:images], z.argmax(1) == chosen)


def test_what_does_not_fit():
    assert head("float32", [4096, 4096, 10], [True, True, False], 1, 64, H100) is None
    assert head("float32", [64, 64, 64, 10], [True, True, True, False], 1, 64, H100) is None
    assert head("float32", [64, 10], [True, True], 1, 64, H100) is None


@needs_nvrtc
@pytest.mark.parametrize("limits", GENERATIONS, ids=lambda one: one.architecture)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_register_is_spilled(precision, limits):
    kernels = [
        head(precision, [128, 10], [True, False], 32, 1024, limits),
        head(precision, [120, 84, 10], [True, True, False], 8, 256, limits),
        head(precision, [512], [False], 8, 256, limits),
        head(precision, [10, 10], [True, False], 1, 41000, limits),
        head(precision, [16, 16, 16], [True, True, False], 2, 41000, limits),
    ]
    for kernel in kernels:
        assert kernel is not None
        code = compile_kernel(kernel, limits.architecture)
        assert (code.spilled, code.stack) == (0, 0), f"{kernel.entry}: {code.log}"
