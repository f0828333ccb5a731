"""The mathematics: pure functions over arrays of any library (NumPy, CuPy), each forward beside its backward.

``*_naive`` are the definitions, in loops over numbers: read them first; the tests hold everything else against them.
"""

from bareconv.ops.activation import (
    gelu_backward,
    gelu_forward,
    leaky_relu_backward,
    leaky_relu_forward,
    relu_backward,
    relu_forward,
)
from bareconv.ops.conv import (
    conv2d_backward,
    conv2d_forward,
    conv2d_input_gradient,
    conv2d_naive,
    conv2d_weight_gradient,
)
from bareconv.ops.conv_fft import conv2d_fft
from bareconv.ops.conv_winograd import conv2d_winograd
from bareconv.ops.dense import dense_backward, dense_forward, dense_input_gradient, dense_weight_gradient
from bareconv.ops.dropout import dropout_backward, dropout_forward, dropout_mask
from bareconv.ops.loss import softmax, softmax_cross_entropy_backward, softmax_cross_entropy_forward
from bareconv.ops.norm import batch_norm_backward, batch_norm_forward, batch_norm_inference
from bareconv.ops.pool import avg_pool_backward, avg_pool_forward, max_pool_backward, max_pool_forward
from bareconv.ops.windows import Window

__all__ = [
    "Window",
    "avg_pool_backward",
    "avg_pool_forward",
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_norm_inference",
    "conv2d_backward",
    "conv2d_fft",
    "conv2d_forward",
    "conv2d_input_gradient",
    "conv2d_naive",
    "conv2d_weight_gradient",
    "conv2d_winograd",
    "dense_backward",
    "dense_forward",
    "dense_input_gradient",
    "dense_weight_gradient",
    "dropout_backward",
    "dropout_forward",
    "dropout_mask",
    "gelu_backward",
    "gelu_forward",
    "leaky_relu_backward",
    "leaky_relu_forward",
    "max_pool_backward",
    "max_pool_forward",
    "relu_backward",
    "relu_forward",
    "softmax",
    "softmax_cross_entropy_backward",
    "softmax_cross_entropy_forward",
]
