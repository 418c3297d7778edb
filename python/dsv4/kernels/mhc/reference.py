"""mHC in float32: mixes -> split -> pre_mix -> sublayer -> post_mix. N streams of width C per token."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dsv4.kernels.contract import expect
from dsv4.kernels.linear.reference import linear
from dsv4.kernels.norm_rope.reference import inverse_rms, sigmoid


class Coefficients(NamedTuple):
    """How one site mixes the streams: pre [T, N], post [T, N], comb [T, N, N] (from stream j, to stream k)."""

    pre: Tensor
    post: Tensor
    comb: Tensor


def mixes(streams: Tensor, fn: Tensor, eps: float) -> Tensor:
    """(fn · v) · rsqrt(mean(v²) + eps) with v the streams side by side. [T, N, C], [M, N C] -> [T, M]."""
    v = streams.flatten(1)
    return linear(v, fn) * inverse_rms(v, eps)


def sinkhorn(logits: Tensor, iters: int, eps: float) -> Tensor:
    """[T, N, N] -> row softmax plus eps, columns, then iters - 1 times rows and columns, each divided by its sum + eps.

    Tokens lie innermost while it runs, so that every sum adds N numbers in the same order for every token.
    """
    c = logits.permute(1, 2, 0).contiguous()
    c = (c - c.amax(1, keepdim=True)).exp()
    c = c / c.sum(1, keepdim=True) + eps
    c.div_(c.sum(0, keepdim=True).add_(eps))
    for _ in range(iters - 1):
        c.div_(c.sum(1, keepdim=True).add_(eps))
        c.div_(c.sum(0, keepdim=True).add_(eps))
    return c.permute(2, 0, 1).contiguous()


def split(mixed: Tensor, scale: Tensor, base: Tensor, *, streams: int, iters: int, eps: float) -> Coefficients:
    """The (2 + N) N mixes of a token, scaled and biased, as coefficients. mixed [T, (2 + N) N], scale [3]."""
    N = streams
    expect(mixed.shape[1] == (2 + N) * N == len(base), f"{tuple(mixed.shape)} mixes for {N} streams")
    pre = sigmoid(mixed[:, :N] * scale[0] + base[:N]) + eps
    post = 2 * sigmoid(mixed[:, N : 2 * N] * scale[1] + base[N : 2 * N])
    logits = mixed[:, 2 * N :] * scale[2] + base[2 * N :]
    return Coefficients(pre, post, sinkhorn(logits.view(-1, N, N), iters, eps))


def pre_mix(streams: Tensor, pre: Tensor) -> Tensor:
    """Σ_i pre_i · X_i. [T, N, C], [T, N] -> [T, C]."""
    out = streams[:, 0] * pre[:, :1]
    for i in range(1, streams.shape[1]):
        out = out + streams[:, i] * pre[:, i : i + 1]
    return out


def post_mix(streams: Tensor, out: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """X'_k = post_k · out + Σ_j comb_jk · X_j, the transpose of comb. [T, N, C], [T, C] -> [T, N, C]."""
    mixed = comb[:, 0, :, None] * streams[:, :1]
    for j in range(1, streams.shape[1]):
        mixed = mixed + comb[:, j, :, None] * streams[:, j : j + 1]
    return post[:, :, None] * out[:, None] + mixed


def head_mix(streams: Tensor, fn: Tensor, scale: Tensor, base: Tensor, *, norm_eps: float, eps: float) -> Tensor:
    """The weighted sum of the streams that the head reads: Σ_i (σ(mixes_i · scale + base_i) + eps) · X_i. -> [T, C]."""
    return pre_mix(streams, sigmoid(mixes(streams, fn, norm_eps) * scale + base) + eps)


def expand(x: Tensor, streams: int) -> Tensor:
    """The vectors x [T, C] as N equal streams [T, N, C]."""
    return x[:, None].expand(-1, streams, -1).contiguous()
