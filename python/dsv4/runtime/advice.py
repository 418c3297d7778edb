"""Whether a budget runs what was asked for, what limits it, and what would help, with the numbers.

Every number comes from the planner that sizes the pools: it is asked again with other budgets.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from dsv4._core import Geometry, Limits, MemoryPlan, plan_memory
from dsv4.config.choices import Settings
from dsv4.config.engine import EngineConfig
from dsv4.config.model import ModelConfig
from dsv4.errors import ConfigError
from dsv4.model.caches import BLOCK_TOKENS
from dsv4.runtime.memory import Sizing, limits_of, useful_bytes

Term = Literal["full", "max_num_seqs", "kv_cache_memory_bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a budget is worth.

    fits            the pools run what was asked for, at least one request of max_model_len
    limiting_term   "full": full blocks run out first when requests are as long as may be
                    "max_num_seqs": memory serves all that the limits allow
                    "kv_cache_memory_bytes": nothing fits, or fewer requests run than the limits allow
    """

    fits: bool
    limiting_term: Term
    suggestions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A budget and its verdict; `plan` is None where not even one short request fits."""

    geometry: Geometry
    limits: Limits
    plan: MemoryPlan | None
    total_bytes: int
    verdict: Verdict


def judge(model: ModelConfig, sizing: Sizing) -> Judged:
    """Of pools that hold what was asked for."""
    limits, plan = sizing.limits, sizing.plan
    limiting: Term = "max_num_seqs"
    if plan.capacity(limits.max_model_len) < min(plan.sizes.state_slots, limits.max_num_requests):
        limiting = "full"
    elif plan.sizes.state_slots < limits.max_num_requests:
        limiting = "kv_cache_memory_bytes"
    verdict = Verdict(fits=True, limiting_term=limiting, suggestions=tuple(_improvements(model, sizing)))
    return Judged(geometry=sizing.geometry, limits=limits, plan=plan, total_bytes=sizing.total_bytes, verdict=verdict)


def judge_refused(
    config: EngineConfig, settings: Settings, model: ModelConfig, geometry: Geometry, refusal: ConfigError
) -> Judged:
    """Of a budget that `size_pools` refused. Raises the refusal again if more bytes would not cure it."""
    wanted = config.max_model_len or model.max_position_embeddings
    limits = limits_of(config, settings, model, wanted)
    total = config.kv_cache_memory_bytes or settings.recipe.limits.kv_cache_memory_bytes
    useful = useful_bytes(geometry, limits)
    if total >= useful or _planned(geometry, limits, useful) is None:
        raise refusal
    asked, what = (1, "one request") if config.max_model_len is None else (wanted, f"one request of {wanted} tokens")
    needed = fewest_bytes(geometry, limits, lambda found: found.max_request_tokens >= asked)
    suggestions = [f"set kv_cache_memory_bytes to at least {needed}, {needed - total} more: these run {what}"]
    plan = _planned(geometry, limits, total)
    if plan is not None:
        suggestions.append(
            f"or max_model_len to at most {most_tokens(geometry, limits, total)}, which these bytes hold"
        )
    verdict = Verdict(fits=False, limiting_term="kv_cache_memory_bytes", suggestions=tuple(suggestions))
    return Judged(geometry=geometry, limits=limits, plan=plan, total_bytes=total, verdict=verdict)


def _improvements(model: ModelConfig, sizing: Sizing) -> Iterator[str]:
    """What is less than the limits or the checkpoint allow, and the bytes that would change it."""
    geometry, limits, plan = sizing.geometry, sizing.limits, sizing.plan
    length, most = limits.max_model_len, limits.max_num_requests
    running = min(plan.sizes.state_slots, most)
    if _was_capped(sizing):
        wanted = model.max_position_embeddings
        needed = fewest_bytes(geometry, with_length(limits, wanted), lambda found: found.max_request_tokens >= wanted)
        yield (
            f"the context is capped at {length} tokens, which is what the pools hold; "
            f"with kv_cache_memory_bytes {needed} a request may have {wanted}"
        )
    if running < most:
        needed = fewest_bytes(geometry, limits, lambda found: found.sizes.state_slots >= most)
        yield f"{running} of max_num_seqs {most} requests run at once; all with kv_cache_memory_bytes {needed}"
    if plan.capacity(length) < running:
        each = plan.sizes.full_blocks // running * BLOCK_TOKENS
        needed = fewest_bytes(geometry, limits, lambda found: found.capacity(length) >= most)
        yield (
            f"{running} requests run at once with {each} tokens each, {plan.capacity(length)} with {length}; "
            f"all {most} may have {length} with kv_cache_memory_bytes {needed}"
        )


def fewest_bytes(geometry: Geometry, limits: Limits, enough: Callable[[MemoryPlan], bool]) -> int:
    """The smallest budget whose plan is `enough`, by bisection: more memory never serves less."""

    def serves(total_bytes: int) -> bool:
        plan = _planned(geometry, limits, total_bytes)
        return plan is not None and enough(plan)

    return bisect_left(range(useful_bytes(geometry, limits)), x=True, key=serves)


def most_tokens(geometry: Geometry, limits: Limits, total_bytes: int) -> int:
    """The longest request that a budget is planned for when it is asked for; at least a block must fit."""

    def is_too_long(tokens: int) -> bool:
        plan = _planned(geometry, with_length(limits, tokens), total_bytes)
        return plan is None or plan.max_request_tokens < tokens

    lengths = range(BLOCK_TOKENS, limits.max_model_len)
    return BLOCK_TOKENS - 1 + bisect_left(lengths, x=True, key=is_too_long)


def with_length(limits: Limits, max_model_len: int) -> Limits:
    """The same limits for requests of another length, which the queue can hold as well."""
    same = {name: getattr(limits, name) for name in dir(limits) if not name.startswith("_")}
    queued = max(limits.max_queued_tokens, max_model_len)
    return Limits(**same | {"max_model_len": max_model_len, "max_queued_tokens": queued})


def _was_capped(sizing: Sizing) -> bool:
    return any(each.name == "max_model_len" and each.reason == "what the pools hold" for each in sizing.choices)


def _planned(geometry: Geometry, limits: Limits, total_bytes: int) -> MemoryPlan | None:
    try:
        return plan_memory(geometry, limits, total_bytes)
    except ConfigError:
        return None
