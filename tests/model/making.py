"""Checkpoints for tests: small configs in config.json's words, float weights in every published format, broken shards.

raw = config_json(hidden_size=128)
config = ModelConfig.parse(raw)
write_model(directory, raw, "official", seed=1)                   random weights, as the released checkpoints hold them
weights = float_weights(config, seed=1)                           name -> float32, nothing quantised
DictSource(dict(stored(weights, config, "official")))             the same numbers, rounded into a format
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsv4.config.model import ModelConfig
from dsv4.kernels.quant.reference import E4M3_MAX, FP8_AMAX_FLOOR, ceil_log2_bytes, e8m0_values, pack_fp4
from dsv4.model.checkpoint import TORCH_DTYPES
from dsv4.model.dummy import DummySource
from dsv4.model.schema import MXFP4_BLOCK, WEIGHT_BLOCK, Flavour, expected, flavoured, flavoured_dtype, scale_name
from dsv4.model.writing import write_checkpoint

FLAVOURS: tuple[Flavour, ...] = ("official", "base", "bf16", "fp32")
CONFIGS = Path(__file__).parents[1] / "data" / "deepseek_v4" / "configs"


def published(name: str) -> dict[str, Any]:
    """A published config.json, by the start of its file's name: "V4-Flash.config"."""
    (path,) = CONFIGS.glob(f"{name}*.json")
    raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return raw


def config_json(**overrides: object) -> dict[str, object]:
    """A small config with every layer kind: window, C4 and C128, hash and score routing. None removes a key."""
    small: dict[str, object] = {
        "vocab_size": 96,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "head_dim": 128,
        "qk_rope_head_dim": 64,
        "q_lora_rank": 32,
        "o_lora_rank": 16,
        "o_groups": 2,
        "sliding_window": 32,
        "compress_ratios": [0, 4, 128, 4, 0],
        "index_n_heads": 16,
        "index_topk": 16,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 32,
        "num_hash_layers": 2,
        "max_position_embeddings": 8192,
    }
    raw = copy.deepcopy(published("V4-Flash.config")) | small | overrides
    return {key: value for key, value in raw.items() if value is not None}


def write_model(directory: Path, raw: Mapping[str, object], flavour: Flavour, seed: int = 0, num_mtp: int = 0) -> None:
    """config.json, shards and index of random weights."""
    config = ModelConfig.parse(raw, num_mtp_layers=num_mtp)
    source = DummySource(config, seed, flavour=flavour)
    (directory / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    write_checkpoint(directory, config, ((name, source.take(name)) for name in source.names()))


def float_weights(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """Every weight in float32 (tid2eid in int64), as `--load-format dummy` makes them unquantised."""
    source = DummySource(config, seed, flavour="fp32")
    return {name: source.take(name) for name in source.names()}


def stored(weights: Mapping[str, Tensor], config: ModelConfig, flavour: Flavour) -> Iterator[tuple[str, Tensor]]:
    """Float weights, rounded into the tensors of a checkpoint: weight and scale where the flavour quantises."""
    for name, spec in expected(config).items():
        form = flavoured(spec, flavour)
        dtype = TORCH_DTYPES[flavoured_dtype(form, flavour)]
        if form.format in ("plain", "table"):
            yield name, weights[name].to(dtype)
            continue
        values, exponents = quantise_mxfp4(weights[name]) if form.format == "mxfp4" else quantise_fp8(weights[name])
        yield name, values.view(dtype)
        scale = e8m0_values(exponents) if flavour == "base" else exponents.view(torch.float8_e8m0fnu)
        yield scale_name(name), scale


def quantise_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [N, K] -> E4M3 [N, K] and E8M0 bytes [ceil(N / 128), ceil(K / 128)], the smallest scale that fits."""
    rows, columns = weight.shape
    grid = -(-rows // WEIGHT_BLOCK), -(-columns // WEIGHT_BLOCK)
    padded = torch.zeros(grid[0] * WEIGHT_BLOCK, grid[1] * WEIGHT_BLOCK)
    padded[:rows, :columns] = weight
    blocks = padded.view(grid[0], WEIGHT_BLOCK, grid[1], WEIGHT_BLOCK)
    amax = blocks.abs().amax((1, 3), keepdim=True).clamp_min(FP8_AMAX_FLOOR)
    exponents = ceil_log2_bytes(amax / E4M3_MAX)
    values = (blocks / e8m0_values(exponents)).view(padded.shape)[:rows, :columns]
    return values.to(torch.float8_e4m3fn), exponents.to(torch.uint8).view(grid)


def quantise_mxfp4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [N, K] -> bytes [N, K / 2] and E8M0 bytes [N, K / 32]."""
    return pack_fp4(weight, MXFP4_BLOCK)


class DictSource:
    """A source of tensors that are in memory already."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    def has(self, name: str) -> bool:
        return name in self.tensors

    def take(self, name: str) -> Tensor:
        return self.tensors[name]


def write_shard(path: Path, header: object, data: bytes = b"", length: int | None = None) -> None:
    """A file in the shape of a shard, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def write_sparse_model(
    directory: Path, raw: Mapping[str, object], tensors: Mapping[str, tuple[str, int, tuple[int, ...]]]
) -> None:
    """A checkpoint of zeros that takes no room on the disk: name -> dtype, bytes, shape."""
    header, end = {}, 0
    for name, (dtype, num_bytes, shape) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + num_bytes]}
        end += num_bytes
    path = directory / "model.safetensors"
    write_shard(path, header)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + end)
    (directory / "config.json").write_text(json.dumps(raw), encoding="utf-8")
