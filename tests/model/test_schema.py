"""The schema reproduces the published checkpoints: tensor counts, bytes, and the forms that a weight may have."""

from __future__ import annotations

import math

import pytest
from tests.model.making import FLAVOURS, config_json, published

from dsv4.config.model import ModelConfig
from dsv4.config.shards import DTYPE_BITS
from dsv4.model.schema import expected, layout, shard_number

Held = dict[str, tuple[str, tuple[int, ...]]]


def num_bytes(held: Held) -> int:
    return sum(math.prod(shape) * DTYPE_BITS[dtype] // 8 for dtype, shape in held.values())


@pytest.mark.parametrize(
    ("name", "num_mtp", "tensors", "total", "drafts"),
    [
        ("V4-Flash.config", 1, 69_187, 159_609_485_896, 1_575),
        ("V4-Flash-0731", 0, 72_317, 166_878_536_440, 4_705),
        ("V4-Pro.config", 1, 145_116, 864_704_792_696, None),
        ("V4-Pro-0813", 0, 149_782, 892_727_580_904, None),
    ],
)
def test_published_tensor_counts_and_bytes_are_reproduced(
    name: str, num_mtp: int, tensors: int, total: int, drafts: int | None
) -> None:
    held = layout(ModelConfig.parse(published(name), num_mtp_layers=num_mtp), "official")
    assert (len(held), num_bytes(held)) == (tensors, total)
    if drafts is not None:
        assert sum(tensor.startswith("mtp.") for tensor in held) == drafts


def test_a_pruned_copy_of_0731_with_160_experts_has_45_821_tensors() -> None:
    config = ModelConfig.parse(published("V4-Flash-0731") | {"n_routed_experts": 160})
    assert len(layout(config, "official")) == 45_821


def test_published_parameter_counts_are_reproduced() -> None:
    for name, backbone, mtp in (("V4-Flash.config", 284.332, 6.610), ("V4-Pro.config", 1572.997, 25.840)):
        config = ModelConfig.parse(published(name), num_mtp_layers=1)
        count = {True: 0, False: 0}
        for tensor, spec in expected(config).items():
            if not tensor.endswith("tid2eid"):
                count[tensor.startswith("mtp.")] += math.prod(spec.shape)
        assert (round(count[False] / 1e9, 3), round(count[True] / 1e9, 3)) == (backbone, mtp)


def test_official_shapes_and_dtypes_of_flash() -> None:
    held = layout(ModelConfig.parse(published("V4-Flash.config"), num_mtp_layers=1), "official")
    assert held["layers.7.attn.wo_a.weight"] == ("F8_E4M3", (8192, 4096))
    assert held["layers.7.attn.wo_a.scale"] == ("F8_E8M0", (64, 32))
    assert held["layers.2.attn.indexer.wq_b.scale"] == ("F8_E8M0", (64, 8))
    assert held["layers.0.ffn.experts.255.w2.weight"] == ("I8", (4096, 1024))
    assert held["layers.0.ffn.experts.255.w2.scale"] == ("F8_E8M0", (4096, 64))
    assert held["layers.2.attn.compressor.ape"] == ("F32", (4, 1024))
    assert held["layers.3.attn.compressor.ape"] == ("F32", (128, 512))
    assert held["layers.2.ffn.gate.tid2eid"] == ("I64", (129280, 6))
    assert held["layers.3.ffn.gate.bias"] == ("F32", (256,))
    assert held["mtp.0.hc_head_fn"] == ("F32", (4, 16384))
    assert "layers.2.ffn.gate.bias" not in held
    assert "layers.3.attn.indexer.wq_b.weight" not in held
    assert "layers.0.attn.compressor.ape" not in held


def test_every_flavour_holds_the_same_weights() -> None:
    config = ModelConfig.parse(config_json(), num_mtp_layers=1)
    weights = set(expected(config))
    for flavour in FLAVOURS:
        held = layout(config, flavour)
        scales = {name for name in held if name.endswith(".scale")}
        assert set(held) - scales == weights
        assert bool(scales) == (flavour in ("official", "base"))
        assert {held[name][0] for name in scales} <= {"F32" if flavour == "base" else "F8_E8M0"}
    assert layout(config, "base")["layers.0.ffn.experts.0.w1.weight"] == ("F8_E4M3", (32, 64))
    assert layout(config, "bf16")["layers.0.ffn.experts.0.w1.weight"] == ("BF16", (32, 64))
    assert layout(config, "bf16")["layers.0.attn.attn_sink"] == ("F32", (4,))
    assert {dtype for dtype, _ in layout(config, "fp32").values()} == {"F32", "I64"}


def test_shards_are_numbered_as_the_official_ones() -> None:
    config = ModelConfig.parse(published("V4-Flash.config"), num_mtp_layers=1)
    numbers = [shard_number(name, config) for name in expected(config)]
    assert set(numbers) == set(range(1, 47))
    places = ("embed.weight", "layers.0.attn_norm.weight", "layers.42.hc_ffn_fn", "head.weight", "norm.weight")
    assert [shard_number(name, config) for name in places] == [1, 2, 44, 45, 45]
    assert shard_number("mtp.0.norm.weight", config) == 46
    dspark = ModelConfig.parse(published("V4-Flash-0731"))
    assert max(shard_number(name, dspark) for name in expected(dspark)) == 48
