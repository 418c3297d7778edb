"""What a configuration gives, before a weight is read or a byte is allocated: the numbers of a dry run.

    config.json ─▶ settings ─▶ pools, sized by the function that sizes them at start ─▶ ServingPlan
    headers of the shards, or the schema where there is no shard ─▶ weights_bytes

A plan says what the KV pools hold and serve. Whether weights, activations and pools fit one device together is not
asked: of these terms only the weights and the pools are computed yet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from dsv4._core import Geometry, Limits, MemoryPlan
from dsv4.config.choices import Choice, Settings, resolve
from dsv4.config.directory import resolve_model
from dsv4.config.engine import EngineConfig
from dsv4.config.model import ModelConfig
from dsv4.config.shards import DTYPE_BITS, shard_paths
from dsv4.errors import ConfigError
from dsv4.model.caches import BLOCK_TOKENS, geometry_numbers
from dsv4.model.checkpoint import open_checkpoint
from dsv4.model.gpu.dimensions import check_dimensions
from dsv4.model.numerics import Numerics
from dsv4.model.schema import layout
from dsv4.runtime.advice import Judged, Verdict, judge, judge_refused
from dsv4.runtime.memory import Sizing, geometry_of, size_pools

CONTEXTS = (1024, 4096, 8192, 65_536, 262_144, 1_048_576)


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """One group of blocks over all layers; `num_bytes` includes its poison block: (blocks + 1) x block_bytes."""

    name: str
    blocks: int
    block_bytes: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many requests of `context` tokens, prompt and output, run at once, and what each of them takes."""

    context: int
    max_concurrent: int
    request_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPlan:
    """What a configuration gives.

    weights_bytes            as they are stored, drafts apart; `weights_source` says where the number is from
    kv_cache_memory_bytes    the budget; the pools together take no more
    max_num_seqs             requests that may run at once by the limits; the pools may run fewer
    pools                    full, swa and state; empty when not even one short request fits
    transient_reserve_bytes  the part of swa that is kept for the chunks of the steps in flight
    per_request_fixed_bytes  window and state of a running request, whatever its length
    bytes_per_token          rows of compressed KV and index
    padding_bytes_per_token  what comes on top, because pages are padded
    verdict                  whether the budget runs what was asked for, what limits it, what would help
    choices                  every setting with its value, where it is from, and why
    """

    directory: Path
    weights_bytes: int
    weights_source: str
    kv_cache_memory_bytes: int
    max_model_len: int
    max_num_seqs: int
    pools: tuple[PoolPlan, ...]
    transient_reserve_bytes: int
    per_request_fixed_bytes: int
    bytes_per_token: float
    padding_bytes_per_token: float
    capacity: tuple[Capacity, ...]
    verdict: Verdict
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The model that is planned for, under its settings; `weights` are bytes, and where the number is from."""

    directory: Path
    model: ModelConfig
    settings: Settings
    weights: tuple[int, str]


def plan_serving(config: EngineConfig) -> ServingPlan:
    """Plans what `load` would load. Raises ConfigError or CheckpointError for what no memory would cure."""
    directory = resolve_model(config.model)
    model = ModelConfig.load(directory)
    settings = resolve(config, model)
    weights = stored_weights(config, directory, model)
    subject = Subject(directory=directory, model=model, settings=settings, weights=weights)
    numerics = checked_numerics(settings, model)
    try:
        sizing = size_pools(config, settings, model, numerics)
    except ConfigError as refusal:
        judged = judge_refused(config, settings, model, geometry_of(model, numerics), refusal)
        return _plan(subject, judged, settings.choices)
    return plan_of(subject, sizing)


def plan_of(subject: Subject, sizing: Sizing) -> ServingPlan:
    """The plan of pools that were sized."""
    return _plan(subject, judge(subject.model, sizing), (*subject.settings.choices, *sizing.choices))


def numerics_of(settings: Settings) -> Numerics:
    """The formats that the settings chose."""
    return Numerics(settings.dtype, settings.kv_cache_dtype, settings.indexer_dtype)


def checked_numerics(settings: Settings, model: ModelConfig) -> Numerics:
    """The formats that the settings chose. Raises UnsupportedModel if the device has no kernels for them."""
    numerics = numerics_of(settings)
    if settings.device == "cuda":
        check_dimensions(model, numerics)
    return numerics


def stored_weights(config: EngineConfig, directory: Path, model: ModelConfig) -> tuple[int, str]:
    """Bytes of the weights that `load` would read, and where the number is from. Reads headers only."""
    if config.load_format == "dummy":
        return schema_bytes(model), f"dummy, seed {config.seed or 0}"
    if not shard_paths(directory):
        return schema_bytes(model), "schema: there are no shards; an official checkpoint of this config"
    with open_checkpoint(directory, model) as source:
        return source.num_bytes, "safetensors"


def schema_bytes(model: ModelConfig) -> int:
    """Bytes of an official checkpoint of this shape, without its drafts."""
    return sum(
        math.prod(shape) * DTYPE_BITS[dtype] // 8
        for name, (dtype, shape) in layout(model, "official").items()
        if not name.startswith("mtp.")
    )


def row_bytes_per_token(model: ModelConfig, numerics: Numerics) -> float:
    """n4 (row + index row) / 4 + n128 row / 128: the bytes of a token's rows, without what pads their pages."""
    numbers = geometry_numbers(model, numerics)
    row = numbers.kv_data_bytes + numbers.kv_scale_bytes
    index_row = numbers.index_data_bytes + numbers.index_scale_bytes
    return numbers.ratios.count(4) * (row + index_row) / 4 + numbers.ratios.count(128) * row / 128


def _plan(subject: Subject, judged: Judged, choices: tuple[Choice, ...]) -> ServingPlan:
    geometry, limits, plan = judged.geometry, judged.limits, judged.plan
    rows = row_bytes_per_token(subject.model, numerics_of(subject.settings))
    weights_bytes, weights_source = subject.weights
    return ServingPlan(
        directory=subject.directory,
        weights_bytes=weights_bytes,
        weights_source=weights_source,
        kv_cache_memory_bytes=judged.total_bytes,
        max_model_len=limits.max_model_len,
        max_num_seqs=limits.max_num_requests,
        pools=() if plan is None else _pools(geometry, plan),
        transient_reserve_bytes=0 if plan is None else plan.transient_swa_blocks * geometry.swa_block_bytes,
        per_request_fixed_bytes=geometry.request_fixed_bytes,
        bytes_per_token=rows,
        padding_bytes_per_token=geometry.bytes_per_token - rows,
        capacity=() if plan is None else _capacity(geometry, limits, plan),
        verdict=judged.verdict,
        choices=choices,
    )


def _pools(geometry: Geometry, plan: MemoryPlan) -> tuple[PoolPlan, ...]:
    sizes = plan.sizes
    return (
        PoolPlan("full", sizes.full_blocks, geometry.full_block_bytes, plan.full_bytes),
        PoolPlan("swa", sizes.swa_blocks, geometry.swa_block_bytes, plan.swa_bytes),
        PoolPlan("state", sizes.state_slots, geometry.state_slot_bytes, plan.state_bytes),
    )


def _capacity(geometry: Geometry, limits: Limits, plan: MemoryPlan) -> tuple[Capacity, ...]:
    most = limits.max_model_len
    return tuple(
        Capacity(
            context,
            plan.capacity(context),
            -(-context // BLOCK_TOKENS) * geometry.full_block_bytes + geometry.request_fixed_bytes,
        )
        for context in (*(each for each in CONTEXTS if each < most), most)
    )
