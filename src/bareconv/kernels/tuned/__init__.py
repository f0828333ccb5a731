"""The tuned NumPy path: fused operations that allocate nothing in a step, and nothing that needs a compiler.

Each class is built once for a shape and holds its buffers, so that one object serves one thread: threads run objects of
their own over slices of a batch, with BLAS at one thread (NumPy lets go of the interpreter's lock in large operations).
"""

from bareconv.kernels.tuned.conv import ConvBlock
from bareconv.kernels.tuned.dense import DenseBlock
from bareconv.kernels.tuned.loss import SoftmaxCrossEntropyBlock

__all__ = ["ConvBlock", "DenseBlock", "SoftmaxCrossEntropyBlock"]
