"""The refusal of every architecture but DeepSeek-V4's, before a weight is read.

DeepSeek-V4.1 uses the same words for another network, so its keys are refused one by one: a config that carries any of
them would load and answer fluently and wrongly. So would one whose constants have values that dsv4 does not implement.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NoReturn

from dsv4.config.fields import shown
from dsv4.errors import UnsupportedModel

SUPPORTED = (
    "deepseek-ai/DeepSeek-V4-Flash, DeepSeek-V4-Pro, DeepSeek-V4-Flash-Base, DeepSeek-V4-Pro-Base, "
    "DeepSeek-V4-Flash-DSpark, DeepSeek-V4-Pro-DSpark, DeepSeek-V4-Flash-0731 and DeepSeek-V4-Pro-0813"
)
RATIOS = (0, 4, 128)

V41_KEYS = ("kv_source_layer_ids", "index_source_layer_ids", "dspark_n_routed_experts", "dspark_num_experts_per_tok")
V41_PREFIXES = ("candidate_", "engram_")
VISION_PREFIXES = ("vision", "image_", "mm_", "video_")

# What dsv4 implements of each choice that the config may name; a key that is absent means the official value.
CONSTANTS: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "scoring_func": ("sqrtsoftplus",),
    "topk_method": ("noaux_tc",),
    "norm_topk_prob": (True,),
    "n_shared_experts": (1,),
    "num_key_value_heads": (1,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "tie_word_embeddings": (False,),
    "n_group": (1,),
    "topk_group": (1,),
}
QUANTISATION: dict[str, tuple[object, ...]] = {
    "quant_method": ("fp8",),
    "fmt": ("e4m3",),
    "activation_scheme": ("dynamic",),
    "scale_fmt": ("ue8m0",),
}

# Keys that the network's numbers come from, and keys that change nothing of what is computed.
READ = frozenset({
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "qk_rope_head_dim",
    "q_lora_rank", "o_lora_rank", "o_groups", "sliding_window", "compress_ratios", "index_n_heads", "index_head_dim",
    "index_topk", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "num_hash_layers",
    "routed_scaling_factor", "swiglu_limit", "hc_mult", "hc_sinkhorn_iters", "hc_eps", "rms_norm_eps", "rope_theta",
    "compress_rope_theta", "rope_scaling", "max_position_embeddings", "bos_token_id", "eos_token_id",
    "dspark_block_size", "dspark_noise_token_id", "dspark_target_layer_ids", "dspark_markov_rank",
    "model_type", "architectures", "quantization_config",
    "rope_parameters", "layer_types", "mlp_layer_types", "compress_rates",  # written by transformers 5.x
})  # fmt: skip
WITHOUT_EFFECT = frozenset({
    "num_nextn_predict_layers", "expert_dtype",  # the tensors are trusted instead
    "torch_dtype", "dtype", "transformers_version", "use_cache", "initializer_range", "attention_dropout", "auto_map",
    "pad_token_id", "partial_rotary_factor", "router_aux_loss_coef", "router_jitter_noise", "output_router_logits",
    "attn_implementation", "experts_implementation", "chunk_size_feed_forward", "id2label", "label2id", "return_dict",
    "problem_type", "name_or_path", "ep_size", "seq_aux", "aux_loss_alpha", "pretraining_tp",
})  # fmt: skip


def refuse_other_architectures(raw: Mapping[str, object]) -> None:
    """Raises UnsupportedModel, naming the key, unless everything in `raw` is DeepSeek-V4's."""
    _refuse_model_type(raw)
    for key in _v41_keys(raw):
        _refuse(key, shown(raw[key]), "DeepSeek-V4.1 is a different architecture")
    for key in raw:
        if key.startswith(VISION_PREFIXES):
            _refuse(key, shown(raw[key]), "the vision variant of DeepSeek-V4-Flash is not supported")
    if raw.get("architectures") != ["DeepseekV4ForCausalLM"]:
        _refuse("architectures", shown(raw.get("architectures")), "dsv4 serves ['DeepseekV4ForCausalLM'] only")
    _refuse_ratios(raw.get("compress_ratios"))
    _refuse_quantisation(raw.get("quantization_config"))
    for key, allowed in CONSTANTS.items():
        _refuse_constant(key, raw.get(key), allowed)
    for key, value in raw.items():
        harmless = key in READ or key in WITHOUT_EFFECT or key in CONSTANTS or key.startswith("_")
        if not harmless and value not in (None, False, 0, "", [], {}):
            _refuse(key, shown(value), "this key is not DeepSeek-V4's; if it means nothing, remove it from config.json")


def _refuse(key: str, value: str, reason: str) -> NoReturn:
    raise UnsupportedModel(f"config.json: {key} is {value}: {reason}. Supported: {SUPPORTED}")


def _refuse_model_type(raw: Mapping[str, object]) -> None:
    text = raw.get("text_config")
    nested = text.get("model_type") if isinstance(text, dict) else None
    for key, value in (("model_type", raw.get("model_type")), ("text_config.model_type", nested)):
        if isinstance(value, str) and value.startswith("deepseek_v41"):
            _refuse(key, shown(value), "DeepSeek-V4.1 is a different architecture")
    if raw.get("model_type") != "deepseek_v4":
        _refuse("model_type", shown(raw.get("model_type")), "dsv4 serves 'deepseek_v4' only")


def _v41_keys(raw: Mapping[str, object]) -> Iterator[str]:
    yield from (key for key in raw if key in V41_KEYS or key.startswith(V41_PREFIXES))


def _refuse_ratios(ratios: object) -> None:
    for index, ratio in enumerate(ratios if isinstance(ratios, list) else ()):
        if isinstance(ratio, int) and ratio not in RATIOS:
            reason = f"DeepSeek-V4 has the ratios {RATIOS}; DeepSeek-V4.1 is a different architecture"
            _refuse(f"compress_ratios[{index}]", shown(ratio), reason)


def _refuse_quantisation(quantisation: object) -> None:
    if not isinstance(quantisation, dict):
        if quantisation is not None:
            _refuse("quantization_config", shown(quantisation), "it must be an object, or absent")
        return
    block = quantisation.get("weight_block_size", [128, 128])
    if block != [128, 128]:
        reason = "DeepSeek-V4 has FP8 blocks of [128, 128]; DeepSeek-V4.1 is a different architecture"
        _refuse("quantization_config.weight_block_size", shown(block), reason)
    for key, allowed in QUANTISATION.items():
        _refuse_constant(f"quantization_config.{key}", quantisation.get(key), allowed)


def _refuse_constant(key: str, value: object, allowed: tuple[object, ...]) -> None:
    if value is not None and not any(value == one and type(value) is type(one) for one in allowed):
        _refuse(key, shown(value), f"dsv4 implements {' or '.join(map(repr, allowed))} only")
