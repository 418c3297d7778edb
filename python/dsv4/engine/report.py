"""What was chosen at start, for people (ten lines) and for machines (info metrics, the fingerprint)."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import TYPE_CHECKING

from dsv4._core import build_info
from dsv4.config.engine import EngineConfig
from dsv4.config.model import ModelConfig
from dsv4.engine.kernels import kernel_set, told
from dsv4.engine.metrics import Facts
from dsv4.engine.text.render import EFFORTS
from dsv4.types import EngineInfo

if TYPE_CHECKING:
    from dsv4.runtime.start import Loaded

DRAFTS = {
    "none": "off: the checkpoint carries no draft",
    "mtp": "off: the checkpoint carries MTP; drafting comes later",
    "dspark": "off: the checkpoint carries DSpark; its target model is served, drafting comes later",
}


def describe(config: EngineConfig, loaded: Loaded) -> tuple[EngineInfo, Facts]:
    """What an engine over this model tells about itself."""
    model, limits, settings = loaded.model, loaded.sizing.limits, loaded.settings
    name = config.served_model_name or ("demo" if config.model == "demo" else loaded.directory.resolve().name)
    default_effort = config.default_reasoning_effort
    if default_effort == "auto":
        default_effort = "high" if model.generation == "preview" else "low"  # the ones without a prefix
    numerics = f"{settings.dtype}/{settings.kv_cache_dtype}/{settings.indexer_dtype}"
    info = EngineInfo(
        served_name=name,
        max_model_len=limits.max_model_len,
        vocab_size=model.vocab_size,
        generation=model.generation,
        efforts=EFFORTS[model.generation],
        default_effort=default_effort,
        fingerprint=fingerprint(loaded.weights.digest, version("dsv4"), kernel_set(settings.device), numerics),
        report=tuple(_lines(config, loaded, name)),
    )
    return info, _facts(loaded, name)


def fingerprint(digest: str, release: str, kernels: str, numerics: str) -> str:
    """A short hash that changes with the weights, the release, the kernels or the numerics, and with nothing else."""
    parts = f"{digest} {release} {kernels} {numerics}"
    return "fp_" + hashlib.sha256(parts.encode()).hexdigest()[:12]


def _lines(config: EngineConfig, loaded: Loaded, name: str) -> list[tuple[str, str]]:
    """The startup report: ten lines, and on a GPU one more for every op."""
    model, settings, weights, limits = loaded.model, loaded.settings, loaded.weights, loaded.sizing.limits
    reasons = {choice.name: f"{choice.source}: {choice.reason}" for choice in loaded.choices}
    numerics = f"{settings.dtype}, KV rows {settings.kv_cache_dtype}, index rows {settings.indexer_dtype}"
    context = f"context {limits.max_model_len} ({reasons['max_model_len']})"
    recipe = f"recipe {settings.recipe.name} of {len(settings.recipe.bands)} bands"
    bounds = f"{settings.max_num_seqs} running, {settings.max_num_batched_tokens} tokens a step ({recipe})"
    thinking = "on" if config.default_thinking else "off"
    ops = told(settings.device)
    kernels, more = ("; ".join(f"{op}: {by}" for op, by in ops), []) if len(ops) == 1 else (f"{len(ops)} ops", ops)
    return [
        ("model", f"{name} ({loaded.directory}), {_shape(model)}"),
        ("device", f"{settings.device} ({reasons['device']}), {_threads(loaded)}"),
        ("dtype", f"{numerics} ({reasons['dtype']})"),
        ("pools", f"{_pools(loaded)} ({reasons['kv_cache_memory_bytes']})"),
        ("kernels", f"{kernel_set(settings.device)}, {kernels}"),
        *((f"- {op}", by) for op, by in more),
        ("limits", f"{context}, {bounds}, {limits.max_queued_requests} queued"),
        ("parsers", f"DSML tools and reasoning, generation {model.generation}, thinking {thinking} by default"),
        ("drafting", DRAFTS[model.draft]),
        ("capacity", f"requests at once by context: {_capacity(loaded)}"),
        ("weights", f"{weights.source}, {_size(weights.num_bytes)}, taken in {weights.seconds:.1f} s"),
    ]


def _threads(loaded: Loaded) -> str:
    chosen = loaded.threads
    return f"{chosen.value} thread{'s' if chosen.value != '1' else ''} ({chosen.source}: {chosen.reason})"


def _pools(loaded: Loaded) -> str:
    sizes, geometry = loaded.sizing.plan.sizes, loaded.sizing.geometry
    groups = (
        f"{sizes.full_blocks} full blocks of {_size(geometry.full_block_bytes)}",
        f"{sizes.swa_blocks} swa of {_size(geometry.swa_block_bytes)}",
        f"{sizes.state_slots} state slots of {_size(geometry.state_slot_bytes)}",
    )
    return f"{_size(sum(loaded.pool_bytes.values()))}: {', '.join(groups)}"


def _capacity(loaded: Loaded) -> str:
    most = loaded.sizing.limits.max_model_len
    contexts = [context for context in (1024, 8192, 65_536, 1_048_576) if context < most]
    return ", ".join(f"{loaded.sizing.plan.capacity(context)} x {context}" for context in (*contexts, most))


def _shape(model: ModelConfig) -> str:
    kinds = {
        ratio: model.compress_ratios.count(ratio)
        for ratio in sorted(set(model.compress_ratios[: model.num_hidden_layers]))
    }
    names = {0: "window", 4: "C4", 128: "C128"}
    layers = ", ".join(f"{count} {names.get(ratio, ratio)}" for ratio, count in kinds.items())
    return f"{model.num_hidden_layers} layers ({layers}), {model.n_routed_experts} experts"


def _facts(loaded: Loaded, name: str) -> Facts:
    sizes, geometry = loaded.sizing.plan.sizes, loaded.sizing.geometry
    blocks = {"full": sizes.full_blocks, "swa": sizes.swa_blocks, "state": sizes.state_slots}
    return Facts(
        served_name=name,
        build={"version": version("dsv4"), "core": build_info, "kernels": kernel_set(loaded.settings.device)},
        cache={
            "block_size": "256",
            "swa_block_size": "64",
            "cache_dtype": loaded.settings.kv_cache_dtype,
            "indexer_dtype": loaded.settings.indexer_dtype,
            "num_gpu_blocks": str(sizes.full_blocks),
            "full_block_bytes": str(geometry.full_block_bytes),
            "swa_block_bytes": str(geometry.swa_block_bytes),
            "state_slot_bytes": str(geometry.state_slot_bytes),
        },
        settings={choice.name: f"{choice.value} ({choice.source})" for choice in loaded.choices},
        kernels=told(loaded.settings.device),
        pool_blocks=blocks,
        pool_bytes=loaded.pool_bytes,
        recipe=loaded.settings.recipe.name,
        bands=tuple(band.name for band in loaded.settings.recipe.bands),
    )


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
