"""Pools of device memory, sized once from the model, the limits and the budget, and allocated in one go."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import Tensor

from dsv4._core import Geometry, Limits, MemoryPlan, plan_memory
from dsv4.config.choices import Choice, Settings
from dsv4.config.engine import EngineConfig
from dsv4.config.model import ModelConfig
from dsv4.errors import ConfigError
from dsv4.model.caches import BLOCK_TOKENS, SWA_BLOCK_TOKENS, Caches, allocate, geometry_numbers
from dsv4.model.numerics import Numerics


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """How the pools were sized, and the limits that follow.

    total_bytes   the budget; the pools together take no more
    """

    geometry: Geometry
    limits: Limits
    plan: MemoryPlan
    total_bytes: int
    choices: tuple[Choice, ...]


def size_pools(config: EngineConfig, settings: Settings, model: ModelConfig, numerics: Numerics) -> Sizing:
    """Chooses the context and the bytes together. Raises ConfigError with the numbers when they do not fit."""
    geometry = geometry_of(model, numerics)
    wanted = config.max_model_len or model.max_position_embeddings
    limits = limits_of(config, settings, model, wanted)
    useful = useful_bytes(geometry, limits)
    if config.kv_cache_memory_bytes is not None:
        total, memory = config.kv_cache_memory_bytes, ("given", "as given")
    elif useful <= settings.recipe.limits.kv_cache_memory_bytes:
        total, memory = useful, ("auto", f"all that {settings.max_num_seqs} requests of {wanted} tokens can use")
    else:
        total, memory = settings.recipe.limits.kv_cache_memory_bytes, ("auto", f"recipe {settings.recipe.name}")
    plan = plan_memory(geometry, limits, total)
    length = min(wanted, plan.max_request_tokens)
    if length < wanted:
        if config.max_model_len is not None:
            raise ConfigError(
                f"max_model_len is {wanted}, and pools of {total} bytes hold requests of {length} tokens; "
                f"set kv_cache_memory_bytes (with {useful} bytes every running request may be that long)"
            )
        limits = limits_of(config, settings, model, length)
        plan = plan_memory(geometry, limits, total)
    capped = "max_position_embeddings" if length == wanted else "what the pools hold"
    choices = (
        Choice("kv_cache_memory_bytes", str(total), "given" if memory[0] == "given" else "auto", memory[1]),
        Choice(
            "max_model_len",
            str(length),
            "given" if config.max_model_len is not None else "auto",
            "as given" if config.max_model_len is not None else capped,
        ),
        Choice(
            "max_num_queued_tokens",
            str(limits.max_queued_tokens),
            "given" if config.max_num_queued_tokens is not None else "auto",
            "as given" if config.max_num_queued_tokens is not None else "16 x max_model_len",
        ),
    )
    return Sizing(geometry=geometry, limits=limits, plan=plan, total_bytes=total, choices=choices)


def useful_bytes(geometry: Geometry, limits: Limits) -> int:
    """Bytes with which every running request may be as long as the limits allow; more would lie idle.

    Full blocks for each, its fixed part (window and state), the window blocks of one step's chunks, and poison blocks;
    with a prefix cache as much again, for what is cached.
    """
    blocks = limits.max_num_requests * -(-limits.max_model_len // BLOCK_TOKENS)
    step_blocks = -(-limits.max_num_tokens // SWA_BLOCK_TOKENS) + limits.max_num_requests + 2
    return (2 if limits.prefix_cache else 1) * (
        (blocks + 1) * geometry.full_block_bytes
        + (limits.max_num_requests + 1) * geometry.request_fixed_bytes
        + step_blocks * geometry.swa_block_bytes
    )


def geometry_of(model: ModelConfig, numerics: Numerics) -> Geometry:
    """What the core counts in: bytes per block, slot and token of this model. Drafts have no pools yet."""
    return Geometry(**asdict(geometry_numbers(model, numerics)))


def limits_of(config: EngineConfig, settings: Settings, model: ModelConfig, max_model_len: int) -> Limits:
    """The limits with requests of `max_model_len` tokens. Raises ConfigError for a queue too short for one."""
    queued_tokens = config.max_num_queued_tokens
    if queued_tokens is not None and queued_tokens < max_model_len:
        raise ConfigError(
            f"max_num_queued_tokens is {queued_tokens}, less than max_model_len, {max_model_len}: the longest request "
            "could never wait; raise the first or lower the second"
        )
    return Limits(
        max_model_len=max_model_len,
        max_num_requests=settings.max_num_seqs,
        max_num_tokens=settings.max_num_batched_tokens,
        max_queued_requests=settings.max_num_queued_reqs,
        max_queued_tokens=16 * max_model_len if queued_tokens is None else queued_tokens,
        vocab_size=model.vocab_size,
        prefix_cache=config.enable_prefix_caching,
        checkpoint_tokens=config.prefix_cache_retention_interval,
        max_steps_in_flight=settings.max_steps_in_flight,
    )


def allocate_pools(model: ModelConfig, numerics: Numerics, plan: MemoryPlan, device: str) -> Caches:
    """The pools of a plan, zeroed, poison blocks on top."""
    sizes = plan.sizes
    return allocate(
        model,
        numerics,
        num_full_blocks=sizes.full_blocks,
        num_swa_blocks=sizes.swa_blocks,
        num_slots=sizes.state_slots,
        device=device,
    )


def pool_bytes(caches: Caches) -> dict[str, int]:
    """Bytes of each kind of pool over all layers."""
    found: dict[str, int] = {}
    for layer in caches.layers:
        for name in ("swa", "c4", "index", "c128", "c4_state", "index_state", "c128_state"):
            pool: Tensor | None = getattr(layer, name)
            if pool is not None:
                found[name] = found.get(name, 0) + pool.numel() * pool.element_size()
    return found
