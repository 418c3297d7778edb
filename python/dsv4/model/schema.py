"""Every tensor of a checkpoint: its official name and the forms in which a file may hold it.

    kind        forms, the official one first                                   scale "X.scale" of "X.weight"
    linear      fp8 [N, K]; plain [N, K]                                        one per 128 x 128
    expert      mxfp4 [N, K / 2] bytes; fp8 [N, K]; plain [N, K]                one per 1 x 32; one per 128 x 128
    plain       BF16 or F32, whatever the official one is                       none
    table       I64 or I32 (tid2eid)                                            none

An MXFP4 scale is E8M0. An FP8 scale is E8M0, or the same power of two in F32 (Base checkpoints). E8M0 may be called U8.
The dtype of the file is trusted, never quantization_config: it says fp8 although experts are MXFP4.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dsv4.config.model import ModelConfig
from dsv4.errors import CheckpointError

Shape = tuple[int, ...]
Format = Literal["mxfp4", "fp8", "plain", "table"]
Flavour = Literal["official", "base", "bf16", "fp32"]
"""Whole checkpoints as they are published: MXFP4 experts; FP8 experts with float32 scales; nothing quantised (two)."""

WEIGHT_BLOCK = 128
MXFP4_BLOCK = 32
E8M0 = ("F8_E8M0", "U8")


@dataclass(frozen=True, slots=True)
class Form:
    """One way to store a weight: safetensors dtypes (the usual one first), shape, and those of its scale."""

    format: Format
    dtypes: tuple[str, ...]
    shape: Shape
    scale_dtypes: tuple[str, ...] = ()
    scale_shape: Shape | None = None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What is expected under one name. `shape` is that of the values; packed forms are narrower."""

    shape: Shape
    forms: tuple[Form, ...]

    def form(self, dtype: str) -> Form | None:
        """The form that a tensor of this safetensors dtype has, None if there is none."""
        return next((form for form in self.forms if dtype in form.dtypes), None)


def scale_name(weight: str) -> str:
    """Where the scale of "X.weight" is: "X.scale"."""
    return weight.removesuffix(".weight") + ".scale"


def expected(config: ModelConfig) -> dict[str, TensorSpec]:
    """Name -> spec of every weight, in official order. Scales are no entries: they belong to their weight's form."""
    return dict(_tensors(config))


def layout(config: ModelConfig, flavour: Flavour) -> dict[str, tuple[str, Shape]]:
    """Name -> dtype and shape of every tensor, scales included, as a checkpoint of this flavour holds them."""
    held: dict[str, tuple[str, Shape]] = {}
    for name, spec in expected(config).items():
        form = flavoured(spec, flavour)
        held[name] = (flavoured_dtype(form, flavour), form.shape)
        if form.scale_shape is not None:
            held[scale_name(name)] = ("F32" if flavour == "base" else "F8_E8M0", form.scale_shape)
    return held


def flavoured(spec: TensorSpec, flavour: Flavour) -> Form:
    """The form that a checkpoint of this flavour has."""
    formats: tuple[Format, ...] = ("plain", "table")
    if flavour == "official":
        return spec.forms[0]
    if flavour == "base":
        formats = ("fp8", *formats)
    return next(form for form in spec.forms if form.format in formats)


def flavoured_dtype(form: Form, flavour: Flavour) -> str:
    """The dtype that a checkpoint of this flavour stores this form in."""
    if form.format != "plain" or flavour in ("official", "base"):
        return form.dtypes[0]
    return "F32" if flavour == "fp32" else form.dtypes[0]


def shard_number(name: str, config: ModelConfig) -> int:
    """Official sharding, from 1: embed; one shard per layer; head, norm and hc_head; one per draft block."""
    first, _, rest = name.partition(".")
    if first == "embed":
        return 1
    if first == "layers":
        return 2 + int(rest.partition(".")[0])
    last_main = config.num_hidden_layers + 2
    return last_main + 1 + int(rest.partition(".")[0]) if first == "mtp" else last_main


@functools.lru_cache(maxsize=256)
def _plain(dtype: str, shape: Shape) -> TensorSpec:
    other = "F32" if dtype == "BF16" else "BF16"
    return TensorSpec(shape, (Form("plain", (dtype, other), shape),))


@functools.lru_cache(maxsize=256)
def _table(shape: Shape) -> TensorSpec:
    return TensorSpec(shape, (Form("table", ("I64", "I32"), shape),))


@functools.lru_cache(maxsize=256)
def _linear(out: int, inp: int) -> TensorSpec:
    grid = (-(-out // WEIGHT_BLOCK), -(-inp // WEIGHT_BLOCK))
    fp8 = Form("fp8", ("F8_E4M3",), (out, inp), (*E8M0, "F32"), grid)
    return TensorSpec((out, inp), (fp8, Form("plain", ("BF16", "F32"), (out, inp))))


@functools.lru_cache(maxsize=256)
def _expert(out: int, inp: int) -> TensorSpec:
    rest = _linear(out, inp).forms
    if inp % MXFP4_BLOCK:
        return TensorSpec((out, inp), rest)
    packed = Form("mxfp4", ("I8", "U8"), (out, inp // 2), E8M0, (out, inp // MXFP4_BLOCK))
    # safetensors counts F4 in values, two to a byte
    values = Form("mxfp4", ("F4",), (out, inp), E8M0, (out, inp // MXFP4_BLOCK))
    return TensorSpec((out, inp), (packed, values, *rest))


def _compressor(prefix: str, hidden: int, ratio: int, dim: int) -> Iterator[tuple[str, TensorSpec]]:
    width = (2 if ratio == 4 else 1) * dim  # C4 entries overlap: a half for this group, a half for the next
    yield prefix + "ape", _plain("F32", (ratio, width))
    yield prefix + "wkv.weight", _plain("BF16", (width, hidden))
    yield prefix + "wgate.weight", _plain("BF16", (width, hidden))
    yield prefix + "norm.weight", _plain("BF16", (dim,))


def _attention(p: str, c: ModelConfig, ratio: int) -> Iterator[tuple[str, TensorSpec]]:
    yield p + "wq_a.weight", _linear(c.q_lora_rank, c.hidden_size)
    yield p + "q_norm.weight", _plain("BF16", (c.q_lora_rank,))
    yield p + "wq_b.weight", _linear(c.num_attention_heads * c.head_dim, c.q_lora_rank)
    yield p + "wkv.weight", _linear(c.head_dim, c.hidden_size)
    yield p + "kv_norm.weight", _plain("BF16", (c.head_dim,))
    yield p + "wo_a.weight", _linear(c.o_groups * c.o_lora_rank, c.num_attention_heads * c.head_dim // c.o_groups)
    yield p + "wo_b.weight", _linear(c.hidden_size, c.o_groups * c.o_lora_rank)
    yield p + "attn_sink", _plain("F32", (c.num_attention_heads,))
    if ratio:
        yield from _compressor(p + "compressor.", c.hidden_size, ratio, c.head_dim)
    if ratio == 4:
        yield p + "indexer.wq_b.weight", _linear(c.index_n_heads * c.index_head_dim, c.q_lora_rank)
        yield p + "indexer.weights_proj.weight", _plain("BF16", (c.index_n_heads, c.hidden_size))
        yield from _compressor(p + "indexer.compressor.", c.hidden_size, 4, c.index_head_dim)


def _moe(p: str, c: ModelConfig, *, hashed: bool) -> Iterator[tuple[str, TensorSpec]]:
    yield p + "gate.weight", _plain("BF16", (c.n_routed_experts, c.hidden_size))
    if hashed:
        yield p + "gate.tid2eid", _table((c.vocab_size, c.num_experts_per_tok))
    else:
        yield p + "gate.bias", _plain("F32", (c.n_routed_experts,))
    up, down = (c.moe_intermediate_size, c.hidden_size), (c.hidden_size, c.moe_intermediate_size)
    shapes = (("w1", up), ("w2", down), ("w3", up))
    for expert in range(c.n_routed_experts):
        for name, shape in shapes:
            yield f"{p}experts.{expert}.{name}.weight", _expert(*shape)
    for name, shape in shapes:
        yield f"{p}shared_experts.{name}.weight", _linear(*shape)


def _block(p: str, c: ModelConfig, ratio: int, *, hashed: bool) -> Iterator[tuple[str, TensorSpec]]:
    yield from _attention(p + "attn.", c, ratio)
    yield p + "attn_norm.weight", _plain("BF16", (c.hidden_size,))
    yield p + "ffn_norm.weight", _plain("BF16", (c.hidden_size,))
    yield from _moe(p + "ffn.", c, hashed=hashed)
    mixes = (2 + c.hc_mult) * c.hc_mult
    for site in ("attn", "ffn"):
        yield f"{p}hc_{site}_fn", _plain("F32", (mixes, c.hc_mult * c.hidden_size))
        yield f"{p}hc_{site}_base", _plain("F32", (mixes,))
        yield f"{p}hc_{site}_scale", _plain("F32", (3,))


def _hc_head(p: str, c: ModelConfig) -> Iterator[tuple[str, TensorSpec]]:
    yield p + "hc_head_fn", _plain("F32", (c.hc_mult, c.hc_mult * c.hidden_size))
    yield p + "hc_head_base", _plain("F32", (c.hc_mult,))
    yield p + "hc_head_scale", _plain("F32", (1,))


def _mtp(p: str, c: ModelConfig) -> Iterator[tuple[str, TensorSpec]]:
    yield from _block(p, c, 0, hashed=False)
    yield p + "e_proj.weight", _linear(c.hidden_size, c.hidden_size)
    yield p + "h_proj.weight", _linear(c.hidden_size, c.hidden_size)
    for norm in ("enorm", "hnorm", "norm"):
        yield f"{p}{norm}.weight", _plain("BF16", (c.hidden_size,))
    yield from _hc_head(p, c)


def _dspark(c: ModelConfig) -> Iterator[tuple[str, TensorSpec]]:
    if c.dspark is None:
        raise CheckpointError("the config says that the draft is DSpark's but has no dspark_ keys")
    for stage in range(c.dspark.num_stages):
        yield from _block(f"mtp.{stage}.", c, 0, hashed=False)
    yield "mtp.0.main_proj.weight", _linear(c.hidden_size, len(c.dspark.target_layer_ids) * c.hidden_size)
    yield "mtp.0.main_norm.weight", _plain("BF16", (c.hidden_size,))
    p, rank = f"mtp.{c.dspark.num_stages - 1}.", c.dspark.markov_rank
    yield p + "norm.weight", _plain("BF16", (c.hidden_size,))
    yield from _hc_head(p, c)
    yield p + "markov_head.markov_w1.weight", _plain("BF16", (c.vocab_size, rank))
    yield p + "markov_head.markov_w2.weight", _plain("BF16", (c.vocab_size, rank))
    yield p + "confidence_head.proj.weight", _plain("BF16", (1, c.hidden_size + rank))


def _tensors(c: ModelConfig) -> Iterator[tuple[str, TensorSpec]]:
    yield "embed.weight", _plain("BF16", (c.vocab_size, c.hidden_size))
    yield "head.weight", _plain("BF16", (c.vocab_size, c.hidden_size))
    yield "norm.weight", _plain("BF16", (c.hidden_size,))
    yield from _hc_head("", c)
    for layer, ratio in enumerate(c.compress_ratios):
        yield from _block(f"layers.{layer}.", c, ratio, hashed=layer < c.num_hash_layers)
    if c.draft == "dspark":
        yield from _dspark(c)
    for block in range(c.num_mtp_layers):
        yield from _mtp(f"mtp.{block}.", c)
