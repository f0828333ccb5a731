"""loss.cu against the float64 reference."""

import numpy as np
import pytest
from cuda_host import TOLERANCE, from_kept, needs_nvrtc, pad_channels, poison, relative_error, to_kept

from bareconv import ops
from bareconv.kernels.cuda.compiler import compile_kernel
from bareconv.kernels.cuda.kernel import PRECISIONS, padded
from bareconv.kernels.cuda.limits import GENERATIONS
from bareconv.kernels.cuda.loss import softmax_loss


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("classes", "batch", "images", "smoothing", "order"),
    [(10, 21, 20, 0.0, "forward"), (3, 50, 50, 0.1, "backward"), (1, 5, 4, 0.0, "forward"), (100, 9, 7, 0.3, "random")],
)
def test_loss_hits_and_gradient(launch, precision, classes, batch, images, smoothing, order):
    rng = np.random.default_rng(0)
    logits = to_kept(pad_channels(5 * rng.standard_normal((batch, classes))), precision)
    logits[images:] = poison(logits[images:].shape, precision)
    labels = rng.integers(0, classes, 3 * batch).astype(np.int32)
    places = rng.permutation(3 * batch).astype(np.int32)
    chosen = labels[places[batch : batch + images]]
    dlogits, image_loss = poison((batch, padded(classes)), precision), poison((batch,))
    image_hit = np.full(batch, -1, np.int32)
    control = np.array([1, images, batch + images, batch, 0], np.int32)
    operands = {"logits": logits, "labels": labels, "order": places, "control": control}
    position = np.full(1, -1, np.int32)
    written = {"dlogits": dlogits, "image_loss": image_loss, "image_hit": image_hit, "position": position}
    launch(softmax_loss(precision, classes, batch, smoothing), {**operands, **written}, order)
    z = from_kept(logits)[:images, :classes]
    _, p, t = ops.softmax_cross_entropy_forward(z, chosen, smoothing)
    got = from_kept(dlogits)
    if classes > 1:
        expected = ops.softmax_cross_entropy_backward(p, t)
        assert relative_error(got[:images, :classes], expected) <= TOLERANCE[precision]
        assert relative_error(image_loss[:images], -(t * np.log(p)).sum(1)) <= TOLERANCE["float32"]
    else:
        assert not got[:images].any(), "one class has no gradient"
        assert not image_loss[:images].any()
    assert (got[:images, classes:] == 0).all()
    np.testing.assert_array_equal(image_hit[:images], z.argmax(1) == chosen)
    assert (image_hit[images:] == -1).all()
    assert position == [1]


@pytest.mark.parametrize("label", [2, 5])
def test_the_first_maximum_wins(launch, label):
    logits = np.zeros((1, 8), np.float32)
    logits[0, [2, 5]] = 1.0
    image_hit = np.full(1, -1, np.int32)
    operands = {"logits": logits, "labels": np.array([label], np.int32), "order": None}
    operands |= {"control": np.array([0, 1, 1, 1, 0], np.int32), "dlogits": poison((1, 8)), "position": None}
    launch(softmax_loss("float32", 8, 1), {**operands, "image_loss": poison((1,)), "image_hit": image_hit})
    assert image_hit[0] == (label == 2)


def test_large_logits_do_not_overflow(launch):
    logits = np.array([[1e4, -1e4, 0, 0, 0, 0, 0, 0]], np.float32)
    image_loss, dlogits = poison((1,)), poison((1, 8))
    operands = {"logits": logits, "labels": np.array([1], np.int32), "order": None}
    operands |= {"control": np.array([0, 1, 1, 1, 0], np.int32), "image_loss": image_loss}
    operands |= {"dlogits": dlogits, "image_hit": np.full(1, -1, np.int32), "position": None}
    launch(softmax_loss("float32", 3, 1), operands)
    assert image_loss[0] == 2e4
    np.testing.assert_allclose(dlogits[0, :3], [1, -1, 0], atol=1e-7)


@needs_nvrtc
@pytest.mark.parametrize("limits", GENERATIONS, ids=lambda one: one.architecture)
def test_no_register_is_spilled(limits):
    for classes in (10, 1000):
        code = compile_kernel(softmax_loss("bfloat16", classes, 256), limits.architecture)
        assert (code.spilled, code.stack) == (0, 0), code.log
