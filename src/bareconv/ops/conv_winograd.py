"""conv2d by Winograd's F(2x2, 3x3): 16 multiplications for four outputs of a 3 x 3 kernel instead of 36.

    Y = A^T [ (G w G^T) * (B^T d B) ] A      for each 4 x 4 tile d of the input and 2 x 2 tile Y of the output

where * is elementwise over the tile and a matrix product over the channels.
Source: Lavin, Gray, "Fast algorithms for convolutional neural networks", 2015, section 4.1.
"""

from __future__ import annotations

import numpy as np

from bareconv.device import Array, namespace
from bareconv.errors import ShapeError
from bareconv.ops.conv import check_fit
from bareconv.ops.windows import Window

_BT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])  # of the input
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # of the weights
_AT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])  # of the output


def conv2d_winograd(x: Array, w: Array, b: Array | None, window: Window, groups: int = 1) -> Array:
    """Y of conv2d, (N, P, Q, K), for 3 x 3 kernels with stride and dilation 1; any padding and groups."""
    if (window.kernel, window.stride, window.dilation) != ((3, 3), (1, 1), (1, 1)):
        raise ShapeError(f"Winograd F(2x2, 3x3) needs a 3 x 3 kernel, stride 1 and dilation 1; got {window}")
    xp = namespace(x)
    BT, G, AT = (xp.asarray(matrix, dtype=x.dtype) for matrix in (_BT, _G, _AT))
    check_fit(x.shape, w.shape, window, groups)
    P, Q = window.output_size((x.shape[1], x.shape[2]))
    tiles_h, tiles_w = -(-P // 2), -(-Q // 2)
    padded = window.pad(x)
    N, H, W, C = padded.shape
    full = xp.zeros((N, 2 * tiles_h + 2, 2 * tiles_w + 2, C), dtype=x.dtype)  # whole tiles, also at the far edges
    full[:, :H, :W] = padded
    Cg, K = w.shape[2:]

    tiles = Window((4, 4), (2, 2)).view(full)  # (N, tiles_h, tiles_w, 4, 4, C)
    d = xp.einsum("ir,nhwrsc,js->ijnhwc", BT, tiles, BT, optimize=True)
    u = xp.einsum("ir,rsck,js->ijck", G, w, G, optimize=True)
    d = d.reshape(16, -1, groups, Cg).transpose(0, 2, 1, 3)  # (16, G, N*tiles, C/G)
    u = u.reshape(16, Cg, groups, K // groups).transpose(0, 2, 1, 3)  # (16, G, C/G, K/G)
    m = xp.matmul(d, u).transpose(0, 2, 1, 3).reshape(4, 4, N, tiles_h, tiles_w, K)
    y = xp.einsum("ir,rsnhwk,js->nhiwjk", AT, m, AT, optimize=True)
    y = y.reshape(N, 2 * tiles_h, 2 * tiles_w, K)[:, :P, :Q]
    return y if b is None else y + b
