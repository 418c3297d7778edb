"""Which implementation serves each op, as the startup report and the metrics tell it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsv4.kernels.attention.choice import Choice

REFERENCE = "reference"
"""The readable implementation of every op; all of it on a CPU."""

TRITON = "triton"
"""Every op of a step on a GPU, but for those of ON_HOST and for attention where CUDA C++ serves it."""

SPARSE_DECODE = "attention.sparse_decode"
"""The op that has two implementations on a GPU: dsv4.kernels.attention.choice."""

OPS: tuple[tuple[str, str], ...] = (
    ("embedding, copies of state", "torch"),
    ("mHC boundary, mHC head", "mhc.boundary"),
    ("FP8 and bf16 products, their quantisation", "linear.gemm, linear.quantise"),
    ("head norm, RoPE, window rows", "norm_rope.query_store"),
    ("compression, C4 and online C128", "compress.c4, compress.c128_online"),
    ("index queries, scores, top-k", "index.queries, index.logits, index.topk"),
    ("sparse attention, decode and prefill", SPARSE_DECODE),
    ("router, experts (W4A8), shared expert", "moe.route, moe.experts, linear.gemm"),
    ("sampling", "sample.sample"),
)
"""Op of a GPU step -> the kernels that serve it."""

ON_HOST = "sampling of a row with more than 4096 candidates"


def _attention(device: str) -> Choice:
    from dsv4.kernels.attention.choice import served_on  # noqa: PLC0415 - it brings torch

    return served_on(device)


def kernel_set(device: str) -> str:
    """A word for the fingerprint: other kernels may round otherwise."""
    if device == "cpu":
        return REFERENCE
    attention = _attention(device).name
    return TRITON if attention == TRITON else f"{TRITON}+{attention}"


def told(device: str) -> str:
    """One line: every op and what serves it."""
    if device == "cpu":
        return f"{REFERENCE}: the readable CPU implementation of every op"
    attention = _attention(device)
    serves = {SPARSE_DECODE: f"{SPARSE_DECODE} in {attention.name} ({attention.why})"}
    table = "; ".join(f"{op}: {serves.get(kernels, kernels)}" for op, kernels in OPS)
    return f"{TRITON}: {table}. On the host: {ON_HOST}"
