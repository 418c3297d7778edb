"""Logits against transformers' DeepseekV4, everything in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.model.oracle import DictSource, hf, model_config, official_tensors, transformers_model
from tests.model.stepping import Planner, make_caches

from dsv4.config.model import ModelConfig
from dsv4.model.model import DeepseekV4
from dsv4.model.numerics import FLOAT32

PRO: dict[str, Any] = {
    "num_hidden_layers": 5,
    "compress_ratios": (128, 128, 4, 128, 4),
    "num_attention_heads": 16,
    "o_groups": 16,
    "o_lora_rank": 8,
    "q_lora_rank": 1536,
    "index_topk": 1024,
    "n_routed_experts": 24,
    "num_experts_per_tok": 6,
    "num_hash_layers": 3,
    "routed_scaling_factor": 2.5,
}
CONFIGS: dict[str, tuple[dict[str, Any], int]] = {
    "every kind of layer, top-k binds": ({}, 300),
    "pro-shaped, top-k idle": (PRO, 270),
    "windows crossed many times": (
        {"num_hidden_layers": 3, "compress_ratios": (0, 0, 0), "sliding_window": 16, "num_hash_layers": 0},
        333,
    ),
    "C4 only, top-k of 8": (
        {"num_hidden_layers": 3, "compress_ratios": (4, 4, 4), "index_topk": 8, "index_n_heads": 64},
        260,
    ),
    "C128 only, by token id only": (
        {"num_hidden_layers": 3, "compress_ratios": (128, 128, 128), "num_hash_layers": 3},
        400,
    ),
    "two streams, one group, wide heads": (
        {"num_hidden_layers": 3, "compress_ratios": (0, 4, 128), "hc_mult": 2, "o_groups": 1, "head_dim": 512},
        140,
    ),
    "2,000 tokens, window 128": (
        {"num_hidden_layers": 3, "compress_ratios": (4, 128, 0), "sliding_window": 128, "index_topk": 96},
        2000,
    ),
}


def both(config: ModelConfig, seed: int) -> tuple[DeepseekV4, Any]:
    theirs = transformers_model(config, seed)
    source = DictSource(official_tensors(theirs))
    ours = DeepseekV4(config, source, FLOAT32)
    assert source.taken == set(source.tensors)
    return ours, theirs


def prefill(model: DeepseekV4, ids: list[int], chunk: int) -> torch.Tensor:
    planner = Planner(model.config.sliding_window, full=9, swa=24, slots=2)
    caches = make_caches(model.config, FLOAT32, planner)
    pieces = [ids[i : i + chunk] for i in range(0, len(ids), chunk)]
    return torch.cat([model.forward(planner.step([("a", p)], sample="all"), caches).logits for p in pieces])


@pytest.mark.parametrize(("overrides", "length"), CONFIGS.values(), ids=CONFIGS.keys())
def test_logits_are_those_of_transformers(seed: int, overrides: dict[str, Any], length: int) -> None:
    config = model_config(**overrides)
    ours, theirs = both(config, seed)
    ids = torch.randint(config.vocab_size, (length,)).tolist()
    with torch.no_grad():
        want = theirs(torch.tensor([ids]), use_cache=False).logits[0]
    got = prefill(ours, ids, 512)
    assert want.std() > 0.1
    assert (got - want).abs().max() <= 1e-4


def test_short_prompts_and_their_continuation(seed: int) -> None:
    """Prompts of 1 to 9 tokens, each continued token by token through our caches and through theirs."""
    config = model_config(num_hidden_layers=4, compress_ratios=(0, 4, 128, 4))
    ours, theirs = both(config, seed)
    for length in (1, 2, 3, 4, 5, 9):
        ids = torch.randint(config.vocab_size, (length + 6,)).tolist()
        cache = hf.DynamicCache(config=theirs.config)
        pieces = [ids[:length], *([token] for token in ids[length:])]
        with torch.no_grad():
            parts = [theirs(torch.tensor([p]), past_key_values=cache, use_cache=True).logits[0] for p in pieces]
        planner = Planner(config.sliding_window, full=1, swa=3, slots=1)
        caches = make_caches(config, FLOAT32, planner)
        got = [ours.forward(planner.step([("a", p)], sample="all"), caches).logits for p in pieces]
        assert (torch.cat(got) - torch.cat(parts)).abs().max() <= 1e-4
