"""prepare.cu on a CPU against its formula, and compiled for every GPU."""

import numpy as np
import pytest
from cuda_host import from_kept, poison

from bareconv.kernels.cuda.kernel import PRECISIONS, padded
from bareconv.kernels.cuda.prepare import prepare


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(5, 7, 1), (4, 4, 3), (3, 2, 9), (20, 30, 3)])
def test_gathers_and_normalises(launch, shape, precision):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (11, *shape), dtype=np.uint8)
    order = rng.permutation(11).astype(np.int32)
    control = np.array([2, 3, 11, 4, 0], np.int32)  # the third step of batches of 4: 3 images are left
    kernel = prepare(precision, 4, shape, 3.0, 200.0)
    y = poison((4, *shape[:2], padded(shape[2])), precision)
    launch(kernel, {"pixels": pixels, "order": order, "control": control, "y": y})
    got = from_kept(y)
    expected = (pixels[order[8:11]].astype(np.float64) - 3.0) / 200.0
    tolerance = {"float32": 1e-6, "tf32": 5e-4, "bfloat16": 4e-3}[precision]
    np.testing.assert_allclose(got[:3, ..., : shape[2]], expected, rtol=tolerance, atol=1e-7)
    assert (got[:3, ..., shape[2] :] == 0).all()
    assert np.isnan(got[3]).all(), "an image that the batch does not have was written"
