"""Which implementation serves each op, as the startup report and the metrics tell it."""

from __future__ import annotations

from typing import NamedTuple

REFERENCE = "reference"
"""The readable implementation of every op; all of it on a CPU."""

TRITON = "triton"
"""Every op of a step on a GPU, but for the index arithmetic of TORCH and for ON_HOST."""


class Op(NamedTuple):
    """One op of a GPU step: file under `dsv4/kernels` -> the kernels that it launches from there."""

    name: str
    files: dict[str, tuple[str, ...]]

    @property
    def served_by(self) -> str:
        """Its kernels, with their files."""
        return ", ".join(f"{' + '.join(kernels)} (kernels/{file}.py)" for file, kernels in self.files.items())


OPS: tuple[Op, ...] = (
    Op("mHC boundary, mHC head", {"mhc/post_project": ("post_project",), "mhc/mix_norm": ("mix_norm",)}),
    Op("FP8 and bf16 products", {"linear/few_rows": ("few_rows",), "linear/many_rows": ("many_rows",)}),
    Op("norm or SwiGLU, FP8 of their inputs", {"linear/quantise": ("_quantise",)}),
    Op(
        "head norm, RoPE, FP8, window rows; RoPE back",
        {"norm_rope/query_store": ("_norm_rope_store", "_rotate_back")},
    ),
    Op("C4 and index compression", {"compress/c4": ("_compress_c4",)}),
    Op("online C128 compression", {"compress/c128_online": ("_compress_c128",)}),
    Op("index queries", {"index/queries": ("_index_queries",)}),
    Op("index scores", {"index/logits": ("_index_scores",)}),
    Op("index top-k", {"index/topk": ("_select",)}),
    Op(
        "sparse attention",
        {"attention/plan": ("_window_slots",), "attention/sparse_decode": ("_sparse_decode",)},
    ),
    Op("sparse attention of many tokens", {"attention/sparse_prefill": ("_sparse_prefill",)}),
    Op("router", {"moe/route": ("_logits", "_choose")}),
    Op(
        "routed experts, W4A8",
        {
            "moe/permute": ("_count", "_permute"),
            "moe/quantise": ("_to_fp8",),
            "moe/grouped": ("grouped_fp8",),
            "moe/combine": ("_combine",),
        },
    ),
    Op("sampling", {"sample/passes": ("scan", "mass", "settle", "logprobs")}),
)
"""Op of a GPU step -> what serves it. tests/kernels/test_gpu_coverage.py watches steps and finds these alone."""

TORCH: tuple[tuple[str, str], ...] = (
    ("embedding, rows to sample", "gathers, once a step"),
    ("angles, compress plans", "index arithmetic over T or B numbers, once a step for all layers"),
    ("state of checkpoints", "copies of whole slots, in steps that restore or save one"),
    ("forwarded tokens", "a gather of T ids, in steps that were planned before the last one was done"),
    ("the step's arrays, the sampler's parameters, tokens", "copies there and back, once a step"),
    ("index slots of a long prompt", "a copy into place of each part that is scored apart"),
)
"""What torch does in a GPU step, and why that is no op without a kernel: nothing of it is once a layer."""

ON_HOST = "sampling of a row with more than 4096 candidates"


def kernel_set(device: str) -> str:
    """A word for the fingerprint: other kernels may round otherwise."""
    return REFERENCE if device == "cpu" else TRITON


def told(device: str) -> tuple[tuple[str, str], ...]:
    """Every op and what serves it: rows for the report and the metrics."""
    if device == "cpu":
        return (("every op", f"{REFERENCE}, the readable CPU implementation"),)
    torch = ((f"torch: {name}", why) for name, why in TORCH)
    return (*((op.name, op.served_by) for op in OPS), *torch, ("on the host", ON_HOST))
