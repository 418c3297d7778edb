"""transformers' DeepSeek-V4 as a float32 oracle of the unquantised model: configurations, weights, names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor

from dsv4.config.model import ModelConfig, RopeScaling

hf: Any = transformers  # untyped, or typed for every model at once

# Keys whose transformers defaults are not the official values; every one of them must be given.
FIXED = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "num_key_value_heads": 1,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "tie_word_embeddings": False,
    "num_nextn_predict_layers": 1,
}


def model_config(**overrides: Any) -> ModelConfig:
    """A small Flash-shaped model; index heads are many, because few make ties at exactly zero."""
    numbers: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 64,
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
        "head_dim": 128,
        "qk_rope_head_dim": 64,
        "q_lora_rank": 48,
        "o_lora_rank": 32,
        "o_groups": 2,
        "sliding_window": 32,
        "compress_ratios": (0, 0, 4, 128, 4, 128, 4),
        "index_n_heads": 32,
        "index_head_dim": 128,
        "index_topk": 16,
        "n_routed_experts": 12,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 48,
        "num_hash_layers": 2,
        "routed_scaling_factor": 1.5,
        "swiglu_limit": 10.0,
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "hc_eps": 1e-6,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "compress_rope_theta": 160000.0,
        "rope_scaling": RopeScaling(factor=16, beta_fast=32, beta_slow=1, original_max_position_embeddings=65536),
        "max_position_embeddings": 1048576,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return ModelConfig(**(numbers | overrides))


def transformers_config(config: ModelConfig) -> Any:
    """The same shape for transformers, checked where its defaults differ from the official model."""
    scaling = config.rope_scaling
    ours = ("num_mtp_layers", "draft", "generation", "dspark")
    numbers = {name: getattr(config, name) for name in config.__slots__ if name not in ours}
    numbers["compress_ratios"] = [*config.compress_ratios, 0]  # config.json goes on with the draft layers
    numbers["rope_scaling"] = {
        "type": "yarn",
        "factor": scaling.factor,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "original_max_position_embeddings": scaling.original_max_position_embeddings,
    }
    made = hf.DeepseekV4Config(**numbers, **FIXED, attn_implementation="eager", experts_implementation="eager")
    yarn = made.rope_parameters["compress"]
    assert yarn["rope_type"] == "yarn"
    assert yarn["attention_factor"] == 1.0
    assert made.rope_parameters["main"]["rope_type"] == "default"
    return made


def transformers_model(config: ModelConfig, seed: int, scale: float = 0.05) -> Any:
    """A random float32 model; what transformers zeroes (sinks, biases, ape, mHC bases, expert table) is set too."""
    g = torch.Generator().manual_seed(seed)
    model = hf.DeepseekV4ForCausalLM(transformers_config(config)).float().eval()
    with torch.no_grad():
        for name, t in model.state_dict().items():
            if name.endswith("tid2eid"):
                rows = [torch.randperm(config.n_routed_experts, generator=g)[: t.shape[1]] for _ in range(t.shape[0])]
                t.copy_(torch.stack(rows))
            elif name.endswith("norm.weight"):
                t.copy_(1 + 0.1 * torch.randn(t.shape, generator=g))
            elif t.is_floating_point() and "inv_freq" not in name:
                t.copy_(torch.randn(t.shape, generator=g) * (0.5 if t.dim() == 1 else scale))
    return model


# Official names -> transformers names, longest first; the part behind layers.{l}.
RENAMED = (
    ("attn.indexer.compressor.ape", "self_attn.compressor.indexer.position_bias"),
    ("attn.indexer.compressor.wkv", "self_attn.compressor.indexer.kv_proj"),
    ("attn.indexer.compressor.wgate", "self_attn.compressor.indexer.gate_proj"),
    ("attn.indexer.compressor.norm", "self_attn.compressor.indexer.kv_norm"),
    ("attn.indexer.weights_proj", "self_attn.compressor.indexer.scorer.weights_proj"),
    ("attn.indexer.wq_b", "self_attn.compressor.indexer.q_b_proj"),
    ("attn.compressor.ape", "self_attn.compressor.position_bias"),
    ("attn.compressor.wkv", "self_attn.compressor.kv_proj"),
    ("attn.compressor.wgate", "self_attn.compressor.gate_proj"),
    ("attn.compressor.norm", "self_attn.compressor.kv_norm"),
    ("attn.attn_sink", "self_attn.sinks"),
    ("attn.wq_a", "self_attn.q_a_proj"),
    ("attn.q_norm", "self_attn.q_a_norm"),
    ("attn.wq_b", "self_attn.q_b_proj"),
    ("attn.wkv", "self_attn.kv_proj"),
    ("attn.kv_norm", "self_attn.kv_norm"),
    ("attn.wo_a", "self_attn.o_a_proj"),
    ("attn.wo_b", "self_attn.o_b_proj"),
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("hc_attn_", "attn_hc."),
    ("hc_ffn_", "ffn_hc."),
    ("ffn.gate.bias", "mlp.gate.e_score_correction_bias"),
    ("ffn.gate", "mlp.gate"),
    ("ffn.shared_experts.w1", "mlp.shared_experts.gate_proj"),
    ("ffn.shared_experts.w3", "mlp.shared_experts.up_proj"),
    ("ffn.shared_experts.w2", "mlp.shared_experts.down_proj"),
)
TOP_LEVEL = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "hc_head_fn": "model.hc_head.hc_fn",
    "hc_head_base": "model.hc_head.hc_base",
    "hc_head_scale": "model.hc_head.hc_scale",
}


@dataclass
class DictSource:
    """A TensorSource over a dictionary; remembers what was taken."""

    tensors: dict[str, Tensor]
    taken: set[str] = field(default_factory=set)

    def has(self, name: str) -> bool:
        return name in self.tensors

    def take(self, name: str) -> Tensor:
        self.taken.add(name)
        return self.tensors[name]


def official_tensors(model: Any) -> dict[str, Tensor]:
    """The weights of a transformers model under official names; fails unless every one of them finds its place."""
    state = {name: t for name, t in model.state_dict().items() if "inv_freq" not in name}
    found = {ours: state.pop(theirs) for ours, theirs in TOP_LEVEL.items()}
    for theirs, tensor in state.items():
        _, _, layer, rest = theirs.split(".", 3)
        prefix = f"layers.{layer}"
        if rest.startswith("mlp.experts."):
            found |= _expert_tensors(f"{prefix}.ffn.experts", rest, tensor)
            continue
        ours, old = next((ours, old) for ours, old in RENAMED if rest.startswith(old) and _whole(rest, old))
        found[f"{prefix}.{ours}{rest.removeprefix(old)}"] = tensor
    return found


def _whole(rest: str, prefix: str) -> bool:
    return prefix.endswith((".", "_")) or rest[len(prefix) :][:1] in ("", ".")


def _expert_tensors(prefix: str, rest: str, tensor: Tensor) -> dict[str, Tensor]:
    found = {}
    for e, matrix in enumerate(tensor):
        if rest.endswith("gate_up_proj"):
            found[f"{prefix}.{e}.w1.weight"], found[f"{prefix}.{e}.w3.weight"] = matrix.chunk(2)
        else:
            found[f"{prefix}.{e}.w2.weight"] = matrix
    return found
