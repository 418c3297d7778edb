"""The ways in which DeepSeek-V4 was got wrong elsewhere, each by its symptom."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
from tests.kernels.vectors import UNIT
from tests.model.oracle import DictSource, model_config
from tests.model.stepping import Planner, make_caches
from torch import Tensor

from dsv4.config.model import ModelConfig, RopeScaling
from dsv4.errors import CheckpointError
from dsv4.kernels.quant.reference import fake_fp8, hadamard
from dsv4.model import attention
from dsv4.model.compress import C4Plan, C128Plan, Compressor
from dsv4.model.dummy import DummySource
from dsv4.model.index import Indexer
from dsv4.model.model import DeepseekV4
from dsv4.model.moe import MoE
from dsv4.model.norm_rope import Angles, compressed_frequencies, inverse_frequencies, window_frequencies
from dsv4.model.numerics import FLOAT32, Numerics
from dsv4.model.reads import MAX_SHARED_QUERIES, query_groups
from dsv4.model.weights import GroupedLinear, Linear, take_matrix

PACKED = Numerics("bfloat16", "fp8_ds_mla", "fp4")
SMALL = model_config(num_hidden_layers=3, compress_ratios=(0, 4, 128), num_hash_layers=1)
IDS = list(range(140))


def logits(config: ModelConfig, ids: list[int] = IDS, seed: int = 3) -> Tensor:
    model = DeepseekV4(config, DummySource(config, seed, flavour="fp32"), FLOAT32)
    planner = Planner(config.sliding_window, full=1, swa=4, slots=1)
    caches = make_caches(config, FLOAT32, planner)
    return model.forward(planner.step([("a", ids)], sample="all"), caches).logits


def differs(config: ModelConfig, **changes: Any) -> bool:
    return not torch.equal(logits(config), logits(dataclasses.replace(config, **changes)))


only = functools.partial(dataclasses.replace, SMALL, num_hidden_layers=1)
STRONGER = RopeScaling(factor=40, beta_fast=32, beta_slow=1, original_max_position_embeddings=4096)


# Rotary embedding


def test_frequency_tables_are_the_official_ones() -> None:
    config = model_config()
    yarn, main = torch.tensor(UNIT["yarn_inv_freq_compress"]), torch.tensor(UNIT["inv_freq_main"])
    assert (compressed_frequencies(config) - yarn).abs().max() <= 1e-7
    assert (window_frequencies(config) - main).abs().max() <= 1e-7
    assert (yarn - main).abs().max() > 1e-2


def test_window_layers_rotate_without_yarn() -> None:
    config = only(compress_ratios=(0,))
    assert not differs(config, rope_scaling=STRONGER, compress_rope_theta=1e6)
    assert differs(config, rope_theta=20000.0)


@pytest.mark.parametrize("ratio", [4, 128])
def test_compressed_layers_rotate_everything_by_their_own_table(ratio: int) -> None:
    config = only(compress_ratios=(ratio,))
    assert differs(config, rope_scaling=STRONGER)
    assert differs(config, compress_rope_theta=1e6)
    assert not differs(config, rope_theta=20000.0)


def test_yarn_is_lost_when_a_config_is_saved_again() -> None:
    """Only pairs 0..15 keep their frequency, those from 25 on get a 16th."""
    config = model_config()
    plain = inverse_frequencies(64, config.compress_rope_theta)
    scaled = compressed_frequencies(config)
    assert torch.equal(scaled[:16], plain[:16])
    assert torch.allclose(scaled[25:], plain[25:] / 16)
    assert (scaled[16:25] < plain[16:25]).all()


@pytest.mark.parametrize("ratio", [0, 4, 128])
def test_no_mscale_in_the_softmax_nor_in_the_rotation(monkeypatch: pytest.MonkeyPatch, ratio: int) -> None:
    scales = []

    def recording(q: Tensor, keys: Any, sink: Tensor, scale: float, *, bf16_weights: bool) -> Tensor:
        scales.append(scale)
        return q

    monkeypatch.setattr(attention, "attend", recording)
    logits(only(compress_ratios=(ratio,)))
    assert set(scales) == {SMALL.head_dim**-0.5}
    angles = Angles.at(torch.arange(1000), compressed_frequencies(SMALL))
    assert (angles.cos.square() + angles.sin.square() - 1).abs().max() < 1e-6


def test_answers_depend_on_absolute_position_when_the_output_is_not_rotated_back() -> None:
    """One token repeated: without a sink's help every window holds the same rows, turned. Rotated back at the query's
    position, outputs agree; not rotated back, they turn with the position.
    """
    config = only(compress_ratios=(0,), num_hash_layers=1, sliding_window=1)
    out = logits(config, [7] * 50)
    assert (out - out[:1]).abs().max() < 1e-4
    assert out.std() > 0.1


@pytest.mark.parametrize("ratio", [4, 128])
def test_long_contexts_fade_when_entries_turn_by_their_index(ratio: int) -> None:
    """Entry s turns by s · ratio, the position of its group's first token."""
    config = only(compress_ratios=(ratio,))
    compressor = Compressor.take(
        DummySource(config, 1, flavour="fp32"), config, FLOAT32, "layers.0.attn.compressor", rotated=False
    )
    planner = Planner(config.sliding_window, full=2, swa=8, slots=1)
    inputs = planner.step([("a", [0] * 384)])
    x, positions, frequencies = torch.randn(384, config.hidden_size), torch.arange(384), compressed_frequencies(config)
    width = 2 * config.head_dim if ratio == 4 else config.head_dim
    if ratio == 4:
        state = torch.full((2, 8, 2, width), torch.nan)
        got = compressor.close_c4(x, positions, C4Plan.of(inputs, positions, frequencies), state)
    else:
        state = torch.full((2, 1, 3, width), torch.nan)
        got = compressor.close_c128(x, positions, C128Plan.of(inputs, positions, frequencies), state)
    kv, score = compressor.rows(x, positions).unbind(1)
    D, groups = config.head_dim, 384 // ratio
    kv, score = kv.view(groups, ratio, -1), score.view(groups, ratio, -1)
    for s in (0, 1, groups - 1):
        rows, z = kv[s, :, -D:], score[s, :, -D:]
        if ratio == 4 and s:
            rows, z = torch.cat((kv[s - 1, :, :D], rows)), torch.cat((score[s - 1, :, :D], z))
        pooled = (z.softmax(0) * rows).sum(0, keepdim=True)
        want = Angles.at(torch.tensor([s * ratio]), frequencies).rotate(compressor.norm(pooled))
        assert (got[s] - want[0]).abs().max() <= 1e-5, s


# Compressor and indexer


def test_the_previous_group_is_the_first_half_and_this_one_the_second() -> None:
    """Halves swapped, entry 1 would hear its own group through the A half. Its own tokens' A half has no part in it."""
    config = only(compress_ratios=(4,))
    source = DummySource(config, 1, flavour="fp32")
    compressor = Compressor.take(source, config, FLOAT32, "layers.0.attn.compressor", rotated=False)
    D = config.head_dim

    def entries(silenced: slice, tokens: slice) -> Tensor:
        planner = Planner(config.sliding_window, full=1, swa=2, slots=1)
        inputs, positions = planner.step([("a", [0] * 8)]), torch.arange(8)
        rows = compressor.rows(x, positions)
        rows[tokens, :, silenced] = 0
        made = dataclasses.replace(compressor)
        plan = C4Plan.of(inputs, positions, compressed_frequencies(config))
        object.__setattr__(made, "wkv_gate", Fixed(rows))
        object.__setattr__(made, "ape", torch.zeros_like(compressor.ape))
        return made.close_c4(x, positions, plan, torch.zeros(2, 8, 2, 2 * D))

    x = torch.randn(8, config.hidden_size)
    whole = entries(slice(0, 0), slice(0, 0))
    assert torch.equal(entries(slice(0, D), slice(4, 8)), whole)
    assert torch.equal(entries(slice(D, None), slice(0, 4))[1], whole[1])
    assert not torch.equal(entries(slice(D, None), slice(4, 8))[1], whole[1])
    assert not torch.equal(entries(slice(0, D), slice(0, 4))[1], whole[1])
    assert not torch.equal(entries(slice(D, None), slice(0, 4))[0], whole[0])


class Fixed:
    """A projection whose rows are given."""

    def __init__(self, rows: Tensor) -> None:
        self.given = rows

    def exact(self, x: Tensor) -> Tensor:
        return self.given.flatten(1).clone()


@pytest.mark.parametrize("index", ["fp4", "fp8", "float32"])
def test_retrieval_is_destroyed_when_one_side_of_the_index_is_not_rotated(index: Any) -> None:
    """q · k is the same rotated or not, on both sides; on one side it is noise."""
    config = only(compress_ratios=(4,))
    indexer = Indexer.take(
        DummySource(config, 2, flavour="fp32"), config, Numerics("float32", "float32", index), "layers.0.attn.indexer"
    )
    T = 40
    x, q_r, positions = torch.randn(T, config.hidden_size), torch.randn(T, config.q_lora_rank), torch.arange(T)
    angles = Angles.at(positions, compressed_frequencies(config))
    q = indexer.queries(x, q_r, angles).q
    plain_q = angles.rotate(indexer.wq_b(q_r).view(T, config.index_n_heads, -1))
    pooled = torch.randn(T, config.index_head_dim)
    k = indexer.compressor.entries(pooled, angles)
    plain_k = angles.rotate(indexer.compressor.norm(pooled))
    want = torch.einsum("thd,sd->ths", plain_q, plain_k)
    error = (torch.einsum("thd,sd->ths", q, k) - want).std() / want.std()
    assert error < {"fp4": 0.2, "fp8": 0.05, "float32": 1e-5}[index]
    assert (torch.einsum("thd,sd->ths", plain_q, k) - want).std() / want.std() > 0.5
    assert torch.allclose(k, hadamard(plain_k), atol=1e-5)


def test_out_of_memory_at_long_prompts_when_all_queries_are_scored_at_once() -> None:
    """Index scores are [queries, entries]: queries come in groups of bounded size, whatever the chunk."""
    planner = Planner(32, full=12, swa=40, slots=3)
    planner.step([("b", [1]), ("c", [1])])
    inputs = planner.step([("b", [1]), ("a", [0] * 2000), ("c", [1])])
    groups = query_groups(inputs, inputs.positions.long(), 32, {4})
    assert max(len(group.tokens) for group in groups) <= MAX_SHARED_QUERIES
    assert torch.cat([group.tokens for group in groups]).sort().values.tolist() == list(range(2002))


# Which rows a query sees


def test_window_keys_are_those_of_the_official_lists() -> None:
    planner = Planner(8, full=1, swa=2, slots=1)
    inputs = planner.step([("a", [0] * 14)])
    (group,) = query_groups(inputs, inputs.positions.long(), 8, {4})
    seen = [{j for j, there in enumerate(row) if there} for row in group.window.visible.tolist()]
    prefill = UNIT["window_idx_win8_prefill5"]
    assert seen[:5] == [{i for i in row if i >= 0} for row in prefill]
    for t, ring in UNIT["window_idx_win8_decode"].items():
        assert {p % 8 for p in seen[int(t)]} == {i for i in ring if i >= 0}
    visible = [{j for j, there in enumerate(row) if there} for row in group.entries[4].visible.tolist()]
    official = UNIT["compress_idx_r4_prefill9_offset9"]
    assert visible[:9] == [{i - 9 for i in row if i >= 0} for row in official]


def test_an_entry_is_visible_to_the_very_token_that_closes_it() -> None:
    planner = Planner(32, full=2, swa=8, slots=1)
    inputs = planner.step([("a", [0] * 260)])
    groups = query_groups(inputs, inputs.positions.long(), 32, {4, 128})
    for ratio in (4, 128):
        counts = [int(row.sum()) for g in groups if ratio in g.entries for row in g.entries[ratio].visible]
        missing = 260 - len(counts)
        assert counts == [(t + 1) // ratio for t in range(missing, 260)]


# Experts and streams


def test_stray_tokens_when_the_shared_expert_is_not_clamped() -> None:
    """Experts large enough to meet the limit: both kinds are cut there."""
    config = dataclasses.replace(SMALL, swiglu_limit=0.25)
    source = DummySource(config, 4, flavour="fp32")
    x, ids = torch.randn(20, config.hidden_size) * 4, torch.arange(20)
    moe = MoE.take(source, config, FLOAT32, "layers.1.ffn", hashed=False)
    silent = dataclasses.replace(moe, w2=torch.zeros_like(moe.w2))

    def matrix(name: str) -> Tensor:
        return source.take(f"layers.1.ffn.shared_experts.{name}.weight").float()

    a, b = x @ matrix("w1").T, x @ matrix("w3").T
    clamped = torch.nn.functional.silu(a.clamp(max=0.25)) * b.clamp(-0.25, 0.25) @ matrix("w2").T
    unclamped = torch.nn.functional.silu(a) * b @ matrix("w2").T
    assert (silent(x, ids) - clamped).abs().max() < 1e-5
    assert (unclamped - clamped).abs().max() > 0.1
    loose = dataclasses.replace(moe, shared_w2=Linear(torch.zeros_like(moe.shared_w2.weight), False, FLOAT32))
    assert (loose(x, ids) - dataclasses.replace(loose, limit=1e9)(x, ids)).abs().max() > 0.01


def test_hash_layers_choose_experts_by_token_id_wherever_the_token_is() -> None:
    source = DummySource(SMALL, 4, flavour="fp32")
    moe = MoE.take(source, SMALL, FLOAT32, "layers.0.ffn", hashed=True)
    x, ids = torch.randn(1, SMALL.hidden_size).expand(6, -1).contiguous(), torch.tensor([5, 9, 5, 300, 9, 0])
    routes = moe.router(x, ids)
    table = source.take("layers.0.ffn.gate.tid2eid")
    assert torch.equal(routes.ids, table[ids].long().sort(-1).values)
    assert torch.equal(moe(x, ids)[0], moe(x, ids)[2])
    assert not torch.equal(moe(x, ids)[0], moe(x, ids)[1])
    assert (routes.weights.sum(-1) - SMALL.routed_scaling_factor).abs().max() < 1e-5


def test_hc_head_comes_before_the_final_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """After it, each stream would be normalised by itself; before it, scaling all streams together changes nothing."""
    model = DeepseekV4(SMALL, DummySource(SMALL, 3, flavour="fp32"), FLOAT32)
    streams = torch.randn(5, 4, SMALL.hidden_size) * torch.tensor([0.1, 1.0, 5.0, 20.0])[None, :, None]
    mixed = model.hc_head(streams)
    assert (mixed.square().mean(-1).sqrt() - 1).abs().max() > 0.1  # not normalised yet
    got = model.logits(model.norm(mixed))
    wrong = model.logits(model.hc_head(model.norm(streams)))
    monkeypatch.setattr(model, "blocks", [])
    planner = Planner(32, full=1, swa=1, slots=1)
    caches = make_caches(SMALL, FLOAT32, planner)
    monkeypatch.setattr("dsv4.model.model.expand", lambda x, n: streams)
    out = model.forward(planner.step([("a", [1, 2, 3, 4, 5])], sample="all"), caches)
    assert torch.equal(out.logits, got)
    assert (got - wrong).abs().max() > 0.1


# Quantised weights


def test_wo_a_gives_nan_or_noise_when_its_input_is_quantised() -> None:
    """wo_a is FP8 in the file, but its input stays bf16, where other FP8 products round theirs."""
    weight = torch.randn(64, 128).to(torch.float8_e4m3fn)
    source = DictSource({"w.weight": weight, "w.scale": torch.full((1, 1), 124, dtype=torch.uint8)})
    x = torch.randn(5, 2, 128).bfloat16().float()
    grouped = GroupedLinear.take(source, PACKED, "w", 2)
    dense = weight.float() / 8
    want = torch.stack([x[:, g] @ dense[32 * g : 32 * g + 32].T for g in range(2)], 1)
    assert torch.allclose(grouped(x), want, rtol=2.0**-7, atol=1e-3)
    linear = Linear.take(source, PACKED, "w")
    rounded = fake_fp8(x[:, 0], 128) @ dense.T
    assert torch.allclose(linear(x[:, 0]), rounded, rtol=2.0**-7, atol=1e-3)
    assert (rounded - x[:, 0] @ dense.T).abs().max() > 0.01


def test_inputs_of_unquantised_products_are_not_rounded_to_fp8() -> None:
    weight = torch.randn(16, 128).bfloat16()
    x = torch.randn(5, 128).bfloat16().float()
    linear = Linear.take(DictSource({"w.weight": weight}), PACKED, "w")
    assert torch.allclose(linear(x), x @ weight.float().T, rtol=2.0**-7, atol=1e-3)


def test_expert_format_is_that_of_the_tensor_not_of_the_config() -> None:
    """I8 and U8 are MXFP4 and F8_E4M3 is FP8, under the same name; no scale means neither."""
    packed = torch.randint(-128, 128, (32, 32), dtype=torch.int8)
    scale = torch.full((32, 2), 127, dtype=torch.uint8)
    for weight in (packed, packed.view(torch.uint8)):
        got, quantised = take_matrix(DictSource({"e.w1.weight": weight, "e.w1.scale": scale}), "e.w1")
        assert quantised
        assert got.shape == (32, 64)
        assert got.abs().max() == 6
    fp8 = torch.randn(32, 64).to(torch.float8_e4m3fn)
    got, quantised = take_matrix(
        DictSource({"e.w1.weight": fp8, "e.w1.scale": torch.full((1, 1), 128, dtype=torch.uint8)}), "e.w1"
    )
    assert quantised
    assert torch.equal(got, fp8.float() * 2)
    got, quantised = take_matrix(DictSource({"e.w1.weight": fp8.bfloat16()}), "e.w1")
    assert not quantised
    assert torch.equal(got, fp8.float())
    with pytest.raises(CheckpointError, match=r"e\.w1\.scale"):
        take_matrix(DictSource({"e.w1.weight": fp8}), "e.w1")


def test_float32_models_dequantise_but_simulate_nothing() -> None:
    fp8 = torch.randn(32, 128).to(torch.float8_e4m3fn)
    source = DictSource({"w.weight": fp8, "w.scale": torch.full((1, 1), 127, dtype=torch.uint8)})
    x = torch.randn(5, 128)
    assert torch.allclose(Linear.take(source, FLOAT32, "w")(x), x @ fp8.float().T, atol=1e-4)
