"""Which implementation serves each op, as the startup report and the metrics tell it."""

from __future__ import annotations

REFERENCE = "reference"
"""The readable implementation of every op; all of it on a CPU."""

TRITON = "triton"
"""Every op of a step on a GPU, but for those of ON_HOST."""

OPS: tuple[tuple[str, str], ...] = (
    ("embedding, copies of state", "torch"),
    ("mHC boundary, mHC head", "mhc.boundary"),
    ("FP8 and bf16 products, their quantisation", "linear.gemm, linear.quantise"),
    ("head norm, RoPE, window rows", "norm_rope.query_store"),
    ("compression, C4 and online C128", "compress.c4, compress.c128_online"),
    ("index queries, scores, top-k", "index.queries, index.logits, index.topk"),
    ("sparse attention, decode and prefill", "attention.sparse_decode"),
    ("router, experts (W4A8), shared expert", "moe.route, moe.experts, linear.gemm"),
    ("sampling", "sample.sample"),
)
"""Op of a GPU step -> the kernels that serve it."""

ON_HOST = "sampling of a row with more than 4096 candidates"


def kernel_set(device: str) -> str:
    """A word for the fingerprint: other kernels may round otherwise."""
    return REFERENCE if device == "cpu" else TRITON


def told(device: str) -> str:
    """One line: every op and what serves it."""
    if device == "cpu":
        return f"{REFERENCE}: the readable CPU implementation of every op"
    table = "; ".join(f"{op}: {kernels}" for op, kernels in OPS)
    return f"{TRITON}: {table}. On the host: {ON_HOST}"
