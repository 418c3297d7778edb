"""One attention layer over paged caches against fixtures made with the official code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.kernels.vectors import FIXTURES
from tests.model.oracle import DictSource, model_config
from tests.model.stepping import Planner, make_caches
from torch import Tensor

from dsv4.config.model import ModelConfig, RopeScaling
from dsv4.kernels.cache import reference as cache
from dsv4.kernels.cache.reference import Layout, gather
from dsv4.kernels.quant.reference import fake_fp8
from dsv4.model.attention import Attention
from dsv4.model.caches import BLOCK_TOKENS, Caches
from dsv4.model.index import Indexer
from dsv4.model.numerics import Numerics
from dsv4.model.step import Frequencies, Step

TOTAL, PREFILL, WINDOW, TOPK = 300, 137, 32, 16
NUMERICS = {
    "noqat": Numerics("float32", "float32", "float32"),
    "qat": Numerics("float32", "fp8_ds_mla", "fp4"),
}
# The fixtures keep float32 in the rotary channels, where our rows hold bf16: half an ulp is at most 2^-8 of the
# value. Nothing else differs: outputs, which reach 1.8, move by 3.5e-3, and by 2e-6 where the rotary channels are kept.
BF16 = {"noqat": 0.0, "qat": 2.0**-8}
OUTPUT = {"noqat": 2e-6, "qat": 5e-3}


def config_of(args: dict[str, Any]) -> ModelConfig:
    return model_config(
        hidden_size=args["dim"],
        num_hidden_layers=1,
        num_attention_heads=args["n_heads"],
        head_dim=args["head_dim"],
        qk_rope_head_dim=args["rope_head_dim"],
        q_lora_rank=args["q_lora_rank"],
        o_lora_rank=args["o_lora_rank"],
        o_groups=args["o_groups"],
        sliding_window=args["window_size"],
        compress_ratios=tuple(args["compress_ratios"][:1]),
        index_n_heads=args["index_n_heads"],
        index_head_dim=args["index_head_dim"],
        index_topk=args["index_topk"],
        rms_norm_eps=args["norm_eps"],
        rope_theta=args["rope_theta"],
        compress_rope_theta=args["compress_rope_theta"],
        rope_scaling=RopeScaling(
            factor=args["rope_factor"],
            beta_fast=args["beta_fast"],
            beta_slow=args["beta_slow"],
            original_max_position_embeddings=args["original_seq_len"],
        ),
    )


@dataclass
class Run:
    """Outputs and selections of one request through the layer, and what it left behind."""

    ratio: int
    outputs: Tensor
    selected: list[set[int]]  # entries that each query read
    planner: Planner
    caches: Caches
    tensors: dict[str, Tensor]

    def slots(self, ratio: int) -> Tensor:
        request, rows = self.planner.requests["a"], BLOCK_TOKENS // ratio
        return torch.tensor([request.full[e // rows] * rows + e % rows for e in range(TOTAL // ratio)])


def run(ratio: int, kind: str, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> Run:
    with safe_open(FIXTURES / f"attn_r{ratio}_{kind}.safetensors", "pt") as file:
        config = config_of(json.loads(file.metadata()["args"]))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    numerics = NUMERICS[kind]
    source = DictSource({f"attn.{n[2:]}": t for n, t in tensors.items() if n.startswith("w.")})
    layer = Attention.take(source, config, numerics, "attn", ratio)
    assert source.taken == set(source.tensors)
    planner = Planner(config.sliding_window, full=3, swa=8, slots=2)
    caches = make_caches(config, numerics, planner)
    outputs, selected, first = [], [], 0
    chosen: dict[int, set[int]] = {}
    select = Indexer.select

    def recording(self: Indexer, queries: Any, tokens: Tensor, keys: Tensor, visible: Tensor) -> Tensor:
        found = select(self, queries, tokens, keys, visible)
        chosen.update({t: set(row) - {-1} for t, row in zip(tokens.tolist(), found.tolist(), strict=True)})
        return found

    monkeypatch.setattr(Indexer, "select", recording)
    for size in [*sizes, *[1] * (TOTAL - sum(sizes))]:
        chosen.clear()
        step = Step.of(planner.step([("a", [0] * size)]), config, Frequencies.of(config), caches.layouts)
        outputs.append(layer(tensors["x"][first : first + size], step, caches.layers[0]))
        for i in range(size):
            visible = (first + i + 1) // ratio if ratio else 0
            selected.append(chosen.get(i, set(range(visible))))
        first += size
    return Run(ratio, torch.cat(outputs), selected, planner, caches, tensors)


CASES = [(ratio, kind) for ratio in (0, 4, 128) for kind in ("noqat", "qat")]
SIZES = {"prefill": [TOTAL], "prefill then decode": [PREFILL], "chunks": [3, 1, 60, 64, 2, 90, 80]}


@pytest.mark.parametrize(("ratio", "kind"), CASES)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_the_layer_reproduces_the_official_code(
    monkeypatch: pytest.MonkeyPatch, ratio: int, kind: str, sizes: list[int]
) -> None:
    done = run(ratio, kind, sizes, monkeypatch)
    want = done.tensors
    assert (done.outputs - want["prefill_out"]).abs().max() <= OUTPUT[kind]
    assert (done.outputs[PREFILL:] - want["decode_out"][PREFILL:]).abs().max() <= OUTPUT[kind]
    keys = [{i - TOTAL for i in row if i >= TOTAL} for row in want["prefill_topk_idx"].tolist()]
    assert done.selected == keys
    ring = [{i - WINDOW for i in row if i >= WINDOW} for row in want["decode_topk_idx"].tolist()]
    assert done.selected[PREFILL:] == ring
    check_caches(done, kind)


def check_rows(rows: Tensor, want: Tensor, kind: str) -> None:
    """KV rows: 64 channels that are FP8 or nothing, then 64 rotary ones."""
    assert (rows - want)[:, :64].abs().max() <= 2e-6
    assert ((rows - want)[:, 64:].abs() <= want[:, 64:].abs() * BF16[kind] + 2e-6).all()


def check_caches(done: Run, kind: str) -> None:
    layer, layouts, want = done.caches.layers[0], done.caches.layouts, done.tensors
    request = done.planner.requests["a"]
    window = torch.tensor([done.planner._swa_slot(request, p) for p in range(TOTAL - WINDOW, TOTAL)])
    rows = gather(layer.swa, window, layouts.swa)
    check_rows(rows, want["window_ring_kv"][torch.arange(TOTAL - WINDOW, TOTAL) % WINDOW], kind)
    if done.ratio == 4:
        assert layer.c4 is not None
        assert layer.index is not None
        assert layer.c4_state is not None
        check_rows(gather(layer.c4, done.slots(4), layouts.c4), want["compressed_kv"], kind)
        assert (gather(layer.index, done.slots(4), layouts.index) - want["index_k"]).abs().max() <= 2e-6
        carried = layer.c4_state[request.state_slot][[p % 8 for p in range(TOTAL - 4, TOTAL)]]
        assert (carried[:, 0] - want["comp_state_kv"][:4]).abs().max() <= 2e-6
        assert (carried[:, 1] - want["comp_state_score"][:4]).abs().max() <= 2e-6
    if done.ratio == 128:
        assert layer.c128 is not None
        assert layer.c128_state is not None
        check_rows(gather(layer.c128, done.slots(128), layouts.c128), want["compressed_kv"], kind)
        pending = TOTAL % 128
        kv, score = want["comp_state_kv"][:pending], want["comp_state_score"][:pending]
        m = score.amax(0)
        weight = (score - m).exp()
        running = torch.stack((m, weight.sum(0), (weight * kv).sum(0)))
        assert (layer.c128_state[request.state_slot, 0] - running).abs().max() <= 2e-5


@pytest.mark.parametrize("ratio", [0, 4, 128])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_with_rotary_channels_in_float32_the_rounded_layer_matches_as_well(
    monkeypatch: pytest.MonkeyPatch, ratio: int, sizes: list[int]
) -> None:
    """Rows rounded to FP8 but stored whole: what is left of the difference is the order of additions."""
    whole = cache.store

    def store(pool: Tensor, slots: Tensor, rows: Tensor, layout: Layout) -> None:
        if layout.rope_dim:
            rows = torch.cat((fake_fp8(rows[:, :64], 64), rows[:, 64:]), 1)
        whole(pool, slots, rows, layout)

    monkeypatch.setattr(cache, "store", store)
    monkeypatch.setitem(NUMERICS, "qat", Numerics("float32", "float32", "fp4"))
    done = run(ratio, "qat", sizes, monkeypatch)
    assert (done.outputs - done.tensors["prefill_out"]).abs().max() <= 2e-6
    assert (done.outputs[PREFILL:] - done.tensors["decode_out"][PREFILL:]).abs().max() <= 2e-6


def test_unrounded_rows_of_the_same_layer_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tolerance of the rounded fixtures is small against what forgetting the rounding does."""
    done = run(0, "qat", [TOTAL], monkeypatch)
    with safe_open(FIXTURES / "attn_r0_noqat.safetensors", "pt") as file:
        unrounded = file.get_tensor("prefill_out")
    assert (done.outputs - done.tensors["prefill_out"]).abs().mean() * 4 < (done.outputs - unrounded).abs().mean()
