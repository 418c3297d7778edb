"""The dry run: what a configuration gives, for people (a table) and for machines (an object). No GPU, no weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dsv4.config.engine import EngineConfig

if TYPE_CHECKING:
    from dsv4.runtime.plan import ServingPlan


def plan(config: EngineConfig) -> ServingPlan:
    """Plans what an engine of this configuration would allocate.

    `verdict.fits` says whether that works. Raises ConfigError or CheckpointError for what no memory would cure.
    """
    from dsv4.runtime.plan import plan_serving  # noqa: PLC0415 - torch is paid for when something is asked of it

    return plan_serving(config)


def as_json(found: ServingPlan) -> dict[str, Any]:
    """The plan in JSON's types. What is not computed yet has no key."""
    return {
        "model": str(found.directory),
        "weights_bytes": found.weights_bytes,
        "weights_source": found.weights_source,
        "kv_cache_memory_bytes": found.kv_cache_memory_bytes,
        "max_model_len": found.max_model_len,
        "max_num_seqs": found.max_num_seqs,
        "pools": [
            {"name": pool.name, "blocks": pool.blocks, "block_bytes": pool.block_bytes, "bytes": pool.num_bytes}
            for pool in found.pools
        ],
        "transient_reserve_bytes": found.transient_reserve_bytes,
        "per_request_fixed_bytes": found.per_request_fixed_bytes,
        "bytes_per_token": found.bytes_per_token,
        "padding_bytes_per_token": found.padding_bytes_per_token,
        "capacity": [asdict(row) for row in found.capacity],
        "fits": found.verdict.fits,
        "limiting_term": found.verdict.limiting_term,
        "suggestions": list(found.verdict.suggestions),
        "settings": {
            choice.name: {"value": choice.value, "source": choice.source, "reason": choice.reason}
            for choice in found.choices
        },
    }


def as_table(found: ServingPlan) -> list[str]:
    """The same for people."""
    verdict = found.verdict
    fixed = found.per_request_fixed_bytes
    rows = [
        ("model", str(found.directory)),
        ("weights", f"{_bytes(found.weights_bytes)}, {found.weights_source}"),
        ("kv budget", f"{_bytes(found.kv_cache_memory_bytes)}{_why(found, 'kv_cache_memory_bytes')}"),
        ("context", f"{found.max_model_len:,} tokens{_why(found, 'max_model_len')}"),
        ("running", f"at most {found.max_num_seqs:,} requests{_why(found, 'max_num_seqs')}"),
        ("per token", f"{found.bytes_per_token:,.2f} B of rows + {found.padding_bytes_per_token:,.2f} B of padding"),
        ("per request", f"{_bytes(fixed)}, whatever its length"),
        *_pool_rows(found),
        *_capacity_rows(found),
        ("fits", f"{'yes' if verdict.fits else 'no'}; limited by {verdict.limiting_term}"),
        *(("", suggestion) for suggestion in verdict.suggestions),
        ("not counted", "activations, graphs, communication buffers, the indexer's logits"),
    ]
    return [f"{name:<12} {value}".rstrip() for name, value in rows]


def _pool_rows(found: ServingPlan) -> Iterator[tuple[str, str]]:
    """One row a group, numbers in columns; bytes include the poison block of each."""
    if not found.pools:
        return
    yield "pools", f"{'':<6}{'blocks':>12}{'bytes each':>14}{'bytes':>20}  with a poison block each"
    for pool in found.pools:
        yield "", f"{pool.name:<6}{pool.blocks:>12,}{pool.block_bytes:>14,}{pool.num_bytes:>20,}"
    yield "", f"{'all':<6}{'':>26}{sum(pool.num_bytes for pool in found.pools):>20,}"
    yield "transient", f"{_bytes(found.transient_reserve_bytes)} of swa, for the chunks of a step"


def _capacity_rows(found: ServingPlan) -> Iterator[tuple[str, str]]:
    if not found.capacity:
        return
    yield "capacity", f"{'context':>12}{'at once':>12}{'bytes each':>18}"
    for row in found.capacity:
        yield "", f"{row.context:>12,}{row.max_concurrent:>12,}{row.request_bytes:>18,}"


def _why(found: ServingPlan, name: str) -> str:
    reasons = (f" ({choice.source}: {choice.reason})" for choice in found.choices if choice.name == name)
    return next(reasons, "")


def _bytes(count: int) -> str:
    unit, size = ("GiB", 1 << 30) if count >= 1 << 30 else ("MiB", 1 << 20)
    return f"{count:,} B ({count / size:.2f} {unit})"
