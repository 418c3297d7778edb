"""Dummy weights: the same for a seed and a name wherever and whenever, of the right scale, in the format asked for."""

from __future__ import annotations

import random

import pytest
import torch
from tests.model.making import FLAVOURS, config_json
from tests.model.stepping import Planner, make_caches

from dsv4.config.model import ModelConfig
from dsv4.errors import CheckpointError
from dsv4.kernels.quant.reference import dequantise_fp8, dequantise_mxfp4
from dsv4.model.checkpoint import TORCH_DTYPES
from dsv4.model.dummy import CHUNK, DummySource, draw, integers
from dsv4.model.model import DeepseekV4
from dsv4.model.numerics import FLOAT32
from dsv4.model.schema import Flavour, expected, layout, scale_name

CONFIG = ModelConfig.parse(config_json(), num_mtp_layers=1)
PINNED_DRAW = [
    [-0.6292263865470886, -0.9336907267570496, -0.6901192665100098],
    [-0.09472224861383438, 1.1501986980438232, 0.9201589822769165],
]
PINNED_INTEGERS = [127, 461, 737, 259, 448, 395]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_tensor_has_the_dtype_and_shape_of_its_flavour(flavour: Flavour) -> None:
    source, held = DummySource(CONFIG, 1, flavour=flavour), layout(CONFIG, flavour)
    assert list(source.names()) == list(held)
    for name, (dtype, shape) in held.items():
        tensor = source.take(name)
        assert (tensor.dtype, tuple(tensor.shape)) == (TORCH_DTYPES[dtype], shape), name
        assert tensor.is_contiguous(), name
        assert bool(tensor.float().isfinite().all()), name


def test_a_tensor_depends_on_seed_and_name_alone(rng: random.Random) -> None:
    first, second, other = DummySource(CONFIG, 7), DummySource(CONFIG, 7), DummySource(CONFIG, 8)
    names = list(first.names())
    expected_bytes = {name: first.take(name).view(torch.uint8) for name in names}
    rng.shuffle(names)
    same_elsewhere = 0
    for name in names:
        assert torch.equal(second.take(name).view(torch.uint8), expected_bytes[name]), name
        same_elsewhere += torch.equal(other.take(name).view(torch.uint8), expected_bytes[name])
    assert same_elsewhere <= sum(name.endswith(".scale") for name in names)  # a scale of one block has few values
    w1 = [first.take(f"layers.{i}.ffn.experts.{e}.w1.weight") for i in range(4) for e in range(8)]
    assert len({bytes(tensor.view(torch.uint8).numpy().tobytes()) for tensor in w1}) == 32


def test_the_numbers_are_the_same_on_every_machine() -> None:
    assert draw(4, "embed.weight", (2, 3)).tolist() == PINNED_DRAW
    assert integers(4, "t", (6,), 1000).tolist() == PINNED_INTEGERS
    assert torch.equal(draw(4, "a", (CHUNK + 3,))[:CHUNK], draw(4, "a", (CHUNK,)))


def test_draws_have_mean_zero_and_variance_one() -> None:
    x = draw(0, "x", (1000, 1000))
    assert abs(float(x.mean())) < 0.005
    assert abs(float(x.var()) - 1) < 0.01
    assert float(x.abs().max()) < 3.5
    assert abs(float((x[:, 1:] * x[:, :-1]).mean())) < 0.005


@pytest.mark.parametrize("flavour", ["official", "base"])
def test_a_quantised_weight_has_the_spread_of_the_plain_one(flavour: Flavour) -> None:
    config = ModelConfig.parse(config_json(hidden_size=256, moe_intermediate_size=256, q_lora_rank=256))
    quantised, plain = DummySource(config, 3, flavour=flavour), DummySource(config, 3, flavour="fp32")
    variances: dict[str, list[float]] = {"fp8": [], "mxfp4": []}
    scales = set()
    for name in expected(config):
        if scale_name(name) == name or not quantised.has(scale_name(name)):
            continue
        weight, scale = quantised.take(name), quantised.take(scale_name(name))
        fp8 = weight.dtype is torch.float8_e4m3fn
        value = dequantise_fp8(weight, scale) if fp8 else dequantise_mxfp4(weight, scale)
        variances["fp8" if fp8 else "mxfp4"].append(float(value.var() / plain.take(name).var()))
        assert not fp8 or float(weight.float().abs().max()) < 448, name
        scales.update(scale.float().flatten().tolist())
    # A weight of few blocks has the luck of its scales, a factor of 1/2, 1 or 2; over many it evens out.
    assert 0.8 < sum(variances["fp8"]) / len(variances["fp8"]) < 1.2
    assert max(variances["fp8"]) / min(variances["fp8"]) > 2
    assert all(0.75 < variance < 1.35 for variance in variances["mxfp4"])  # E2M1 is coarse
    assert bool(variances["mxfp4"]) == (flavour == "official")
    assert len(scales) >= 4


def test_hash_tables_hold_distinct_experts_and_reach_all() -> None:
    for experts, chosen in ((8, 3), (8, 8), (5, 1), (16, 4)):
        config = ModelConfig.parse(config_json(n_routed_experts=experts, num_experts_per_tok=chosen))
        table = DummySource(config, 2).take("layers.1.ffn.gate.tid2eid")
        assert table.shape == (96, chosen)
        assert (int(table.min()), int(table.max())) == (0, experts - 1)
        assert bool((table.sort(1).values.diff(dim=1) > 0).all()), (experts, chosen)


def test_what_the_checkpoint_would_not_have_is_not_made() -> None:
    source = DummySource(CONFIG, 0, flavour="bf16", drafts=False)
    for name in ("mtp.0.e_proj.weight", "layers.0.attn.wkv.scale", "layers.0.ffn.gate.bias", "x"):
        assert not source.has(name)
        with pytest.raises(CheckpointError, match=name):
            source.take(name)


@pytest.mark.parametrize("num_layers", [4, 32])
def test_activations_stay_of_order_one_through_any_depth(num_layers: int, seed: int) -> None:
    ratios = [(0, 4, 128, 4)[i % 4] for i in range(num_layers)]
    config = ModelConfig.parse(config_json(num_hidden_layers=num_layers, compress_ratios=ratios))
    planner = Planner(config.sliding_window, full=2, swa=8, slots=1)
    caches = make_caches(config, FLOAT32, planner)
    tokens = integers(seed, "tokens", (200,), config.vocab_size).tolist()
    out = DeepseekV4(config, DummySource(config, seed), FLOAT32).forward(
        planner.step([("a", tokens)], sample="all"), caches
    )
    assert 0.5 < float(out.streams.square().mean().sqrt()) < 4
    assert 1.5 < float(out.logits.std()) < 4
