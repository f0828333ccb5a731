"""conv2d by the Fourier transform: a correlation in space is a product with the conjugate in frequency.

    Y = IFFT( sum over c of  FFT(X_c) * conj(FFT(W_ck)) ),  cut to where no window wraps around

Cost grows with the image, not with the kernel: worth it for large kernels only.
Source: Mathieu, Henaff, LeCun, "Fast training of convolutional networks through FFTs", 2014.
"""

from __future__ import annotations

from bareconv.device import Array, namespace
from bareconv.ops.conv import check_fit
from bareconv.ops.windows import Window


def conv2d_fft(x: Array, w: Array, b: Array | None, window: Window, groups: int = 1) -> Array:
    """Y of conv2d, (N, P, Q, K); shapes, strides, dilation and groups as in ``conv2d_forward``."""
    xp = namespace(x)
    check_fit(x.shape, w.shape, window, groups)
    P, Q = window.output_size((x.shape[1], x.shape[2]))
    (_, _, Cg, K), (dh, dw), (sh, sw) = w.shape, window.dilation, window.stride
    padded = window.pad(x)
    N, H, W, C = padded.shape
    spread = xp.zeros((*window.extent, Cg, K), dtype=w.dtype)  # the kernel with its holes
    spread[::dh, ::dw] = w

    # Size (H, W) is enough: what wraps around lands behind the last valid window, and is cut off.
    fx = xp.fft.rfft2(padded, axes=(1, 2))
    fw = xp.fft.rfft2(spread, s=(H, W), axes=(0, 1)).conj()
    F = fx.shape[2]  # W // 2 + 1 frequencies; each is a small matrix product over the channels
    fx = fx.reshape(N, H * F, groups, Cg).transpose(1, 2, 0, 3)  # (frequency, G, N, C/G)
    fw = fw.reshape(H * F, Cg, groups, K // groups).transpose(0, 2, 1, 3)  # (frequency, G, C/G, K/G)
    fy = xp.matmul(fx, fw).transpose(2, 0, 1, 3).reshape(N, H, F, K)
    y = xp.fft.irfft2(fy, s=(H, W), axes=(1, 2))
    y = y[:, : (P - 1) * sh + 1 : sh, : (Q - 1) * sw + 1 : sw].astype(x.dtype)
    return y if b is None else y + b
