"""The shapes and formats that the GPU's kernels are made for. Imports no kernel: a dry run asks without a GPU."""

from __future__ import annotations

from dsv4.config.model import ModelConfig
from dsv4.errors import UnsupportedModel
from dsv4.model.numerics import Numerics

HEAD_DIM = 512
INDEX_DIM = 128
INDEX_HEADS = 64
HEADS_MULTIPLE = 64


def check_dimensions(config: ModelConfig, numerics: Numerics) -> None:
    """Raises UnsupportedModel, naming the number, unless there are kernels for this shape and these formats."""
    for name, value, holds, needs in (
        ("head_dim", config.head_dim, config.head_dim == HEAD_DIM, HEAD_DIM),
        ("index_head_dim", config.index_head_dim, config.index_head_dim == INDEX_DIM, INDEX_DIM),
        ("index_n_heads", config.index_n_heads, config.index_n_heads == INDEX_HEADS, INDEX_HEADS),
        ("hc_mult", config.hc_mult, config.hc_mult == 4, 4),
        ("sliding_window", config.sliding_window, config.sliding_window == 128, 128),
        (
            "num_attention_heads",
            config.num_attention_heads,
            config.num_attention_heads % HEADS_MULTIPLE == 0,
            f"a multiple of {HEADS_MULTIPLE}",
        ),
    ):
        if not holds:
            raise UnsupportedModel(f"{name} is {value}; the GPU's kernels take {needs}. Use device 'cpu'")
    for name, kind, kinds in (
        ("dtype", numerics.dtype, ("bfloat16",)),
        ("kv_cache_dtype", numerics.kv, ("fp8_ds_mla",)),
        ("indexer_dtype", numerics.index, ("fp4", "fp8")),
        ("expert_inputs", numerics.expert_inputs, ("fp8",)),
    ):
        if kind not in kinds:
            raise UnsupportedModel(f"{name} is {kind!r}; the GPU's kernels take {' or '.join(kinds)}")
