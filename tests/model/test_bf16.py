"""bf16 compressors and indexer against the same steps in torch's own bf16."""

from __future__ import annotations

import pytest
import torch
from tests.model.oracle import model_config
from torch import Tensor

from dsv4.kernels.index.reference import scores, select
from dsv4.kernels.quant.reference import fake_fp4, fake_fp8, hadamard
from dsv4.model.compress import Compressor
from dsv4.model.dummy import DummySource
from dsv4.model.index import Indexer, Queries
from dsv4.model.norm_rope import Angles, compressed_frequencies
from dsv4.model.numerics import Numerics

CONFIG = model_config(num_hidden_layers=1, compress_ratios=(4,), hidden_size=128, q_lora_rank=128, index_n_heads=24)
SOURCE = DummySource(CONFIG, 5)
BF16 = Numerics("bfloat16", "fp8_ds_mla", "fp4")


def rotated(x: Tensor, angles: Angles) -> Tensor:
    """x in bf16, its trailing channels turned in float32."""
    n = 2 * angles.cos.shape[1]
    pairs = torch.view_as_complex(x[..., -n:].float().reshape(*x.shape[:-1], n // 2, 2))
    turn = torch.complex(angles.cos, angles.sin).view(len(x), *(1,) * (x.dim() - 2), n // 2)
    return torch.cat((x[..., :-n], torch.view_as_real(pairs * turn).flatten(-2).bfloat16()), -1)


def agree(got: Tensor, want: Tensor) -> None:
    """Nearly every value to the bit; a sum at the edge of a rounding may fall to the other side."""
    assert torch.equal(got, got.bfloat16().float())
    assert (got == want.float()).float().mean() > 0.99


@pytest.mark.parametrize("prefix", ["attn.compressor", "attn.indexer.compressor"])
def test_entries_are_rounded_before_the_norm_after_it_after_the_rotation_and_after_hadamard(prefix: str) -> None:
    indexed = "indexer" in prefix
    compressor = Compressor.take(SOURCE, CONFIG, BF16, f"layers.0.{prefix}", rotated=indexed)
    pooled = torch.randn(200, 128)
    angles = Angles.at(torch.arange(200) * 4, compressed_frequencies(CONFIG))
    x = pooled.bfloat16().float()
    weight = SOURCE.take(f"layers.0.{prefix}.norm.weight").float()
    x = rotated((weight * x * (x.square().mean(-1, keepdim=True) + CONFIG.rms_norm_eps).rsqrt()).bfloat16(), angles)
    agree(compressor.entries(pooled, angles), hadamard(x.float()).bfloat16() if indexed else x)


def test_compressor_rows_stay_in_float32() -> None:
    """Projections, scores and state are float32 whatever the activations are."""
    compressor = Compressor.take(SOURCE, CONFIG, BF16, "layers.0.attn.compressor", rotated=False)
    x = torch.randn(9, 128).bfloat16().float()
    rows = compressor.rows(x, torch.arange(9))
    assert not torch.equal(rows, rows.bfloat16().float())
    wkv = SOURCE.take("layers.0.attn.compressor.wkv.weight").float()
    assert torch.allclose(rows[:, 0], x @ wkv.T, atol=1e-5)


def test_index_queries_and_head_weights() -> None:
    indexer = Indexer.take(SOURCE, CONFIG, BF16, "layers.0.attn.indexer")
    x, q_r = torch.randn(2, 50, 128).bfloat16().float()
    angles = Angles.at(torch.arange(50), compressed_frequencies(CONFIG))
    got = indexer.queries(x, q_r, angles)
    q = (fake_fp8(q_r, 128) @ indexer.wq_b.weight.T).bfloat16().view(50, CONFIG.index_n_heads, 128)
    q = fake_fp4(hadamard(rotated(q, angles).float()).bfloat16().float(), 32)
    assert (got.q == q).float().mean() > 0.99
    weights = SOURCE.take("layers.0.attn.indexer.weights_proj.weight")
    scale = 128**-0.5 * CONFIG.index_n_heads**-0.5
    agree(got.weights, ((x @ weights.float().T).bfloat16() * scale).bfloat16())


def test_index_scores_are_bf16() -> None:
    q, w = torch.randn(6, 32, 128).bfloat16(), torch.randn(6, 32).bfloat16()
    keys = torch.randn(1, 64, 128).bfloat16()
    products = torch.einsum("thd,sd->ths", q.float(), keys[0].float()).bfloat16().relu()
    want = (products * w[..., None]).float().sum(1).bfloat16()
    agree(scores(q.float(), w.float(), keys.float(), bf16=True), want)


def test_entries_are_chosen_by_their_bf16_scores() -> None:
    """Scores that differ in float32 tie in bf16, and the lower index wins."""
    indexer = Indexer.take(SOURCE, CONFIG, BF16, "layers.0.attn.indexer")
    q, weights = torch.randn(20, 24, 128).bfloat16().float(), torch.randn(20, 24).bfloat16().float()
    keys, visible = torch.randn(1, 512, 128).bfloat16().float(), torch.ones(20, 512, dtype=torch.bool)
    got = indexer.select(Queries(q, weights), torch.arange(20), keys, visible)
    assert torch.equal(got, select(scores(q, weights, keys, bf16=True), visible, indexer.topk))
    assert not torch.equal(got, select(scores(q, weights, keys, bf16=False), visible, indexer.topk))
