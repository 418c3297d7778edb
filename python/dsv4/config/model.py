"""The checkpoint's config.json as the engine reads it, and the refusal of every other architecture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dsv4.config.architecture import refuse_other_architectures
from dsv4.config.directory import read_json, within
from dsv4.config.fields import Fields, shown
from dsv4.config.resaved import official
from dsv4.config.shards import tensor_names
from dsv4.errors import CheckpointError, UnsupportedModel

Draft = Literal["none", "mtp", "dspark"]
Generation = Literal["preview", "0731"]

FP8_ROW_BLOCK = 64  # KV rows are scaled per 64 values of their unrotated part
MAX_EXPERTS_IN_ALL = 1 << 17  # DeepSeek-V4-Pro has 23,424 over all layers


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """YaRN of the compressed layers (ratio 4 and 128); window layers are never scaled."""

    factor: float
    beta_fast: float
    beta_slow: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DSpark:
    """The draft of the 0731 and 0813 checkpoints. dsv4 reads it to account for its tensors; it does not draft with it.

    num_stages         full blocks mtp.0..num_stages - 1
    target_layer_ids   main layers whose output is tapped
    """

    block_size: int
    noise_token_id: int
    target_layer_ids: tuple[int, ...]
    markov_rank: int
    num_stages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Dimensions of one checkpoint, in the words of config.json. Nothing is assumed to be Flash's.

    compress_ratios         one per main layer: 0 (window only), 4 or 128
    num_mtp_layers          plain MTP blocks in the checkpoint (0 where the draft is DSpark's)
    draft                   which draft the checkpoint carries
    generation              which reasoning efforts the checkpoint's encoder knows
    dspark                  dimensions of a DSpark draft, None for the others
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_lora_rank: int
    o_groups: int
    sliding_window: int
    compress_ratios: tuple[int, ...]
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    n_routed_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    num_hash_layers: int
    routed_scaling_factor: float
    swiglu_limit: float
    hc_mult: int
    hc_sinkhorn_iters: int
    hc_eps: float
    rms_norm_eps: float
    rope_theta: float
    compress_rope_theta: float
    rope_scaling: RopeScaling
    max_position_embeddings: int
    bos_token_id: int
    eos_token_id: int
    num_mtp_layers: int = 0
    draft: Draft = "none"
    generation: Generation = "preview"
    dspark: DSpark | None = None

    @staticmethod
    def load(directory: Path, *, generation: Generation | None = None) -> ModelConfig:
        """What config.json, the names of the tensors and the prompt encoder's file say together.

        `generation` overrides the detected one. Raises UnsupportedModel for another architecture and CheckpointError
        for a config that is missing, broken or impossible. No weight is read; a directory without shards (dummy
        weights) has no draft.
        """
        raw = read_json(directory, "config.json")
        refuse_other_architectures(raw)  # before anything else of another architecture is looked at
        names = tensor_names(directory)
        blocks = {int(found[1]) for name in names if (found := re.fullmatch(r"mtp\.(\d{1,4})\.e_proj\.weight", name))}
        if blocks != set(range(len(blocks))):
            raise CheckpointError(f"{directory}: MTP blocks are numbered {sorted(blocks)}, not 0, 1, ...")
        return ModelConfig.parse(
            raw, num_mtp_layers=len(blocks), generation=generation or encoder_generation(directory)
        )

    @staticmethod
    def parse(
        raw: Mapping[str, object], *, num_mtp_layers: int = 0, generation: Generation | None = None
    ) -> ModelConfig:
        """The config of a decoded config.json.

        num_mtp_layers  plain MTP blocks among the tensors; the config's own num_nextn_predict_layers is 1 in both
                        generations of drafts and says nothing
        generation      None: "0731" where the config has DSpark keys, else "preview"
        """
        refuse_other_architectures(raw)
        raw = official(raw)
        refuse_other_architectures(raw)  # what stood in transformers' words is an official key only now
        fields = Fields(raw, "config.json")
        num_layers = fields.integer("num_hidden_layers", high=1024)
        ratios = _ratios(fields, num_layers)
        dspark = (
            _dspark(fields, num_layers, len(ratios) - num_layers) if raw.get("dspark_block_size") is not None else None
        )
        config = ModelConfig(
            vocab_size=fields.integer("vocab_size", high=1 << 24),
            hidden_size=fields.integer("hidden_size"),
            num_hidden_layers=num_layers,
            num_attention_heads=fields.integer("num_attention_heads", high=4096),
            head_dim=fields.integer("head_dim", high=4096),
            qk_rope_head_dim=fields.integer("qk_rope_head_dim", low=2, high=4096),
            q_lora_rank=fields.integer("q_lora_rank"),
            o_lora_rank=fields.integer("o_lora_rank"),
            o_groups=fields.integer("o_groups", high=4096),
            sliding_window=fields.integer("sliding_window"),
            compress_ratios=ratios[:num_layers],
            index_n_heads=fields.integer("index_n_heads", high=4096),
            index_head_dim=fields.integer("index_head_dim", low=32, high=4096),
            index_topk=fields.integer("index_topk"),
            n_routed_experts=fields.integer("n_routed_experts", high=1 << 16),
            num_experts_per_tok=fields.integer("num_experts_per_tok", high=1024),
            moe_intermediate_size=fields.integer("moe_intermediate_size"),
            num_hash_layers=fields.integer("num_hash_layers", low=0, high=1024),
            routed_scaling_factor=fields.number("routed_scaling_factor", 1e-6, 1e6),
            swiglu_limit=fields.number("swiglu_limit", 1e-3, 1e6),
            hc_mult=fields.integer("hc_mult", high=64),
            hc_sinkhorn_iters=fields.integer("hc_sinkhorn_iters", high=1000),
            hc_eps=fields.number("hc_eps", 0.0, 1e-2),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-12, 1e-2),
            rope_theta=fields.number("rope_theta", 1.0, 1e12),
            compress_rope_theta=fields.number("compress_rope_theta", 1.0, 1e12),
            rope_scaling=_rope_scaling(fields.section("rope_scaling")),
            max_position_embeddings=fields.integer("max_position_embeddings", high=1 << 30),
            bos_token_id=fields.integer("bos_token_id", low=0, high=1 << 24),
            eos_token_id=fields.integer("eos_token_id", low=0, high=1 << 24),
            num_mtp_layers=0 if dspark else num_mtp_layers,
            draft="dspark" if dspark else "mtp" if num_mtp_layers else "none",
            generation=generation or ("0731" if dspark else "preview"),
            dspark=dspark,
        )
        _check_together(config, fields)
        return config


def encoder_generation(directory: Path) -> Generation | None:
    """Which reasoning efforts the prompt encoder that ships with the weights knows; None where there is none."""
    path = directory / "encoding" / "encoding_dsv4.py"
    if not path.exists():
        return None
    text = within(directory, path).read_bytes()[: 1 << 20].decode("utf-8", "replace")
    low_is_default = re.search(r"""^DEFAULT_REASONING_EFFORT\s*(?::[^=\n]*)?=\s*["']low["']""", text, re.MULTILINE)
    return "0731" if low_is_default and re.search(r"""["']high["']""", text) else "preview"


def _ratios(fields: Fields, num_layers: int) -> tuple[int, ...]:
    """compress_ratios as they stand: one per main layer, then none, 1 (MTP) or 3 (DSpark) zeros."""
    ratios = fields.integers("compress_ratios")
    if len(ratios) - num_layers not in (0, 1, 3):
        lengths = f"{num_layers}, {num_layers + 1} or {num_layers + 3}"
        fields.wrong("compress_ratios", f"has {len(ratios)} entries; {num_layers} layers need {lengths}")
    if any(ratios[num_layers:]):
        fields.wrong("compress_ratios", f"ends in {list(ratios[num_layers:])}; draft layers are window only (0)")
    return ratios


def _rope_scaling(fields: Fields) -> RopeScaling:
    """YaRN's numbers. DeepSeek-V4 multiplies nothing by an attention factor, so any but 1 is another model's."""
    kind = fields.raw.get("type", fields.raw.get("rope_type"))
    if kind != "yarn":
        raise UnsupportedModel(f"config.json: rope_scaling.type is {shown(kind)}; compressed layers use 'yarn'")
    for key in ("attention_factor", "mscale", "mscale_all_dim"):
        if fields.raw.get(key) not in (None, 1, 1.0) or isinstance(fields.raw.get(key), bool):
            value = shown(fields.raw[key])
            raise UnsupportedModel(f"config.json: rope_scaling.{key} is {value}; DeepSeek-V4 has no attention factor")
    scaling = RopeScaling(
        factor=fields.number("factor", 1.0, 1e6),
        beta_fast=fields.number("beta_fast", 1e-3, 1e6),
        beta_slow=fields.number("beta_slow", 1e-3, 1e6),
        original_max_position_embeddings=fields.integer("original_max_position_embeddings", high=1 << 30),
    )
    if scaling.beta_slow > scaling.beta_fast:
        fields.wrong("beta_slow", f"is {scaling.beta_slow:g}, above beta_fast {scaling.beta_fast:g}")
    return scaling


def _dspark(fields: Fields, num_layers: int, num_stages: int) -> DSpark:
    targets = fields.integers("dspark_target_layer_ids")
    if not targets or not all(0 <= layer < num_layers for layer in targets):
        fields.wrong("dspark_target_layer_ids", f"is {shown(targets)}; each must be one of the {num_layers} layers")
    if not num_stages:
        fields.wrong("compress_ratios", "has no entry for a draft stage, though there are dspark_ keys")
    return DSpark(
        block_size=fields.integer("dspark_block_size", high=1024),
        noise_token_id=fields.integer("dspark_noise_token_id", low=0, high=1 << 24),
        target_layer_ids=targets,
        markov_rank=fields.integer("dspark_markov_rank"),
        num_stages=num_stages,
    )


def _check_together(config: ModelConfig, fields: Fields) -> None:
    """What no single key can say."""
    c = config
    rope, nope = c.qk_rope_head_dim, c.head_dim - c.qk_rope_head_dim
    unrotated = f"leaves {nope} of head_dim {c.head_dim} unrotated; that must be a multiple of {FP8_ROW_BLOCK} above 0"
    power = f"is {c.index_head_dim}; it must be a power of two (Hadamard) of at least qk_rope_head_dim {rope}"
    spare = c.index_head_dim & (c.index_head_dim - 1)
    tokens = (("bos_token_id", c.bos_token_id), ("eos_token_id", c.eos_token_id))
    problems = (
        (rope % 2 != 0, "qk_rope_head_dim", f"is {rope}; rotation takes pairs"),
        (nope <= 0 or nope % FP8_ROW_BLOCK != 0, "qk_rope_head_dim", unrotated),
        (spare != 0 or c.index_head_dim < rope, "index_head_dim", power),
        (
            c.num_attention_heads % c.o_groups != 0,
            "num_attention_heads",
            f"is {c.num_attention_heads}, which o_groups {c.o_groups} does not divide",
        ),
        (
            c.num_experts_per_tok > c.n_routed_experts,
            "num_experts_per_tok",
            f"is {c.num_experts_per_tok} of n_routed_experts {c.n_routed_experts}",
        ),
        (
            c.num_hash_layers > c.num_hidden_layers,
            "num_hash_layers",
            f"is {c.num_hash_layers} of num_hidden_layers {c.num_hidden_layers}",
        ),
        (
            c.n_routed_experts * c.num_hidden_layers > MAX_EXPERTS_IN_ALL,
            "n_routed_experts",
            f"is {c.n_routed_experts} in {c.num_hidden_layers} layers; at most {MAX_EXPERTS_IN_ALL} in all are read",
        ),
        *((token >= c.vocab_size, key, f"is {token}, outside vocab_size {c.vocab_size}") for key, token in tokens),
        (
            c.dspark is not None and c.dspark.noise_token_id >= c.vocab_size,
            "dspark_noise_token_id",
            f"is outside vocab_size {c.vocab_size}",
        ),
    )
    for wrong, key, problem in problems:
        if wrong:
            fields.wrong(key, problem)
