"""RMSNorm and interleaved rotary embedding in float32, and the elementwise functions that are safe in any batch.

torch's vectorised sigmoid, silu and softplus on a CPU give other bits in the last, partial vector of a tensor than
inside it, so that a value would depend on its place in the batch. exp, log1p and rsqrt do not; everything here is made
of those.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4.kernels.contract import expect

# From 2^15 values on, torch sums a single row in one part per thread, several rows in one part each.
_WHOLE_SUM = 1 << 15


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return 1 / (1 + (-x).exp())


def silu(x: Tensor) -> Tensor:
    """The value x / (1 + e^-x)."""
    return x / (1 + (-x).exp())


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x); linear where e^-x no longer counts."""
    return x.clamp_min(0) + (-x.abs()).exp().log1p()


def row_sum(x: Tensor) -> Tensor:
    """Sum of the last dimension, kept, bitwise independent of the rows beside it."""
    n = x.shape[-1]
    if n < _WHOLE_SUM:
        return x.sum(-1, keepdim=True)
    return row_sum(x[..., : n // 2].contiguous()) + row_sum(x[..., n // 2 :].contiguous())


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """rsqrt(mean(x²) + eps) over the last dimension, kept."""
    return (row_sum(x * x) / x.shape[-1] + eps).rsqrt()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The value weight · x · rsqrt(mean(x²) + eps). x [..., n], weight [n], float32."""
    return x * inverse_rms(x, eps) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False) -> Tensor:
    """Rotates the trailing 2 n channels of x by the angles of its token: pairs (x_2i, x_2i+1), complex product.

    x         [T, ..., D] float32
    cos, sin  [T, n] float32, of position · frequency_i
    inverse   the conjugate rotation
    """
    T, n = cos.shape
    expect(len(x) == T and x.shape[-1] >= 2 * n, f"x {tuple(x.shape)} for angles {tuple(cos.shape)}")
    shape = (T, *(1,) * (x.dim() - 2), n)
    c, s = cos.view(shape), sin.view(shape)
    if inverse:
        s = -s
    a, b = x[..., x.shape[-1] - 2 * n :].reshape(*x.shape[:-1], n, 2).unbind(-1)
    rotated = torch.stack((a * c - b * s, a * s + b * c), -1).flatten(-2)
    return torch.cat((x[..., : x.shape[-1] - 2 * n], rotated), -1)
