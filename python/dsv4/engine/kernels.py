"""Which implementation serves each op, as the startup report and the metrics tell it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dsv4.kernels.cuda.choice import Choice

REFERENCE = "reference"
"""The readable implementation of every op; all of it on a CPU."""

TRITON, CUDA = "triton", "cuda"
"""Every op of a step on a GPU, but for the index arithmetic of TORCH, for ON_HOST, and for the CUDA C++ of IN_CUDA."""


class Op(NamedTuple):
    """One op of a GPU step: file under `dsv4/kernels`, .py unless it says -> the kernels launched from there."""

    name: str
    files: dict[str, tuple[str, ...]]

    @property
    def served_by(self) -> str:
        """Its kernels, with their files."""
        return ", ".join(
            f"{' + '.join(kernels)} (kernels/{file if '.' in file else f'{file}.py'})"
            for file, kernels in self.files.items()
        )


PRODUCTS, SPARSE_ATTENTION = "FP8 and bf16 products", "sparse attention"
INDEX_SCORES, EXPERTS = "index scores", "routed experts, W4A8"
_TRITON_PRODUCTS: dict[str, tuple[str, ...]] = {"linear/few_rows": ("few_rows",), "linear/many_rows": ("many_rows",)}

OPS: tuple[Op, ...] = (
    Op("mHC boundary, mHC head", {"mhc/post_project": ("post_project",), "mhc/mix_norm": ("mix_norm",)}),
    Op(PRODUCTS, _TRITON_PRODUCTS),
    Op("norm or SwiGLU, FP8 of their inputs", {"linear/quantise": ("_quantise",)}),
    Op(
        "head norm, RoPE, FP8, window rows; RoPE back",
        {"norm_rope/query_store": ("_norm_rope_store", "_rotate_back")},
    ),
    Op("C4 and index compression", {"compress/c4": ("_compress_c4",)}),
    Op("online C128 compression", {"compress/c128_online": ("_compress_c128",)}),
    Op("index queries", {"index/queries": ("_index_queries",)}),
    Op(INDEX_SCORES, {"index/logits": ("_index_scores",)}),
    Op("index top-k", {"index/topk": ("_select",)}),
    Op("window slots", {"attention/plan": ("_window_slots",)}),
    Op(SPARSE_ATTENTION, {"attention/sparse_decode": ("_sparse_decode",)}),
    Op("router", {"moe/route": ("_logits", "_choose")}),
    Op(
        EXPERTS,
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

_FP8_ROWS = ("fp8_64x64", "fp8_64x128", "fp8_128x128")
IN_CUDA: tuple[Op, ...] = (
    Op(PRODUCTS, {"linear/fp8_rows.cu": _FP8_ROWS} | _TRITON_PRODUCTS),
    Op(INDEX_SCORES, {"index/scores.cu": ("index_scores",), "index/logits": ("_index_scores",)}),
    Op(
        SPARSE_ATTENTION,
        {
            "attention/sparse_decode_pair.cu": ("sparse_decode_pair",),
            "attention/sparse_decode.cu": ("sparse_decode",),
        },
    ),
    Op(
        EXPERTS,
        {
            "moe/permute": ("_count", "_permute"),
            "moe/place": ("_place",),
            "moe/grouped_fp8.cu": ("grouped_up", "grouped_down"),
            "moe/combine": ("_combine",),
        },
    ),
)
"""What serves an op instead where its `choice` says so: dsv4.kernels.linear's, .index's, .attention's and .moe's."""

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


def _choice(op: str, device: str) -> Choice:
    from dsv4.kernels.attention.choice import choice as attention  # noqa: PLC0415 - they bring torch
    from dsv4.kernels.cuda.choice import named  # noqa: PLC0415
    from dsv4.kernels.index.choice import choice as scores  # noqa: PLC0415
    from dsv4.kernels.linear.choice import choice as products  # noqa: PLC0415
    from dsv4.kernels.moe.choice import choice as experts  # noqa: PLC0415

    by_op = {PRODUCTS: products, INDEX_SCORES: scores, SPARSE_ATTENTION: attention, EXPERTS: experts}
    return by_op[op](named(device))


def kernel_set(device: str) -> str:
    """A word for the fingerprint: other kernels may round otherwise. Products in CUDA C++ have the bits of Triton's."""
    if device == "cpu":
        return REFERENCE
    words = {SPARSE_ATTENTION: CUDA, INDEX_SCORES: f"{CUDA}-scores", EXPERTS: f"{CUDA}-experts"}
    return "+".join([TRITON, *(word for op, word in words.items() if _choice(op, device).name == CUDA)])


def told(device: str) -> tuple[tuple[str, str], ...]:
    """Every op and what serves it: rows for the report and the metrics."""
    if device == "cpu":
        return (("every op", f"{REFERENCE}, the readable CPU implementation"),)
    torch = tuple((f"torch: {name}", why) for name, why in TORCH)
    serves = {op.name: op.served_by for op in OPS}
    for op in IN_CUDA:
        choice = _choice(op.name, device)
        serves[op.name] = f"{op.served_by if choice.name == CUDA else serves[op.name]}: {choice.why}"
    return (*serves.items(), *torch, ("on the host", ON_HOST))
