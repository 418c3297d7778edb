"""The automatic choices, made once at start: every setting with its value, where it is from, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from dsv4.config.engine import Dtype, EngineConfig, IndexerDtype, KvCacheDtype
from dsv4.config.model import ModelConfig
from dsv4.config.recipe import Recipe, recipe_of
from dsv4.errors import ConfigError

MOST_STEPS_IN_FLIGHT = 2

Device = Literal["cpu", "cuda"]
RECIPES = {"cpu": "cpu", "cuda": "h200"}
"""The recipe of each device, where none is named."""

Source = Literal["given", "auto", "default"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One setting as it was resolved."""

    name: str
    value: str
    source: Source
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is decided before the pools are sized; `choices` tells the same to people."""

    device: Device
    dtype: Literal["bfloat16", "float32"]
    kv_cache_dtype: Literal["fp8_ds_mla", "bf16", "float32"]
    indexer_dtype: Literal["fp4", "fp8", "float32"]
    max_num_seqs: int
    max_num_batched_tokens: int
    max_num_queued_reqs: int
    max_steps_in_flight: int
    cuda_graphs: bool
    recipe: Recipe
    choices: tuple[Choice, ...]


def resolve(config: EngineConfig, model: ModelConfig) -> Settings:
    """Everything that needs no memory plan. Raises ConfigError naming the setting, the number and what to do."""
    _check_ranges(config, model)
    found: list[Choice] = []

    def choose(name: str, given: object, automatic: object, why: str, *, auto: object = None) -> object:
        taken = given != auto
        value = given if taken else automatic
        found.append(Choice(name, str(value), "given" if taken else "auto", "as given" if taken else why))
        return value

    device = cast("Device", choose("device", config.device, "cpu", "a GPU is used when it is asked for", auto="auto"))
    dtype = choose("dtype", config.dtype, "bfloat16", "what the official code computes in", auto="auto")
    kv, index = _row_formats(config)
    choose("kv_cache_dtype", config.kv_cache_dtype, kv, "follows dtype", auto="auto")
    choose("indexer_dtype", config.indexer_dtype, index, "follows dtype", auto="auto")
    name = cast("str", choose("recipe", config.recipe, RECIPES[device], "the device's own", auto="auto"))
    recipe = recipe_of(name)
    tokens_given = config.max_num_batched_tokens
    limits = recipe.limits
    most = limits.max_num_seqs if tokens_given is None else min(limits.max_num_seqs, tokens_given)
    seqs = choose("max_num_seqs", config.max_num_seqs, most, f"recipe {recipe.name}")
    num_seqs = cast("int", seqs)
    budget = max(limits.max_num_batched_tokens, num_seqs)
    tokens = choose("max_num_batched_tokens", tokens_given, budget, f"recipe {recipe.name}")
    queue = 1 if config.max_num_queued_reqs == 0 else config.max_num_queued_reqs  # every request passes through it
    queued = choose("max_num_queued_reqs", queue, 4 * num_seqs, "4 x max_num_seqs")
    num_tokens = cast("int", tokens)
    steps = choose(
        "max_steps_in_flight", config.max_steps_in_flight, recipe.limits.max_steps_in_flight, f"recipe {recipe.name}"
    )
    on_gpu = device == "cuda"
    asked = config.cuda_graphs if on_gpu else None
    graphs = choose("cuda_graphs", asked, on_gpu, "decode steps are replayed" if on_gpu else "there is no GPU")
    if num_tokens < num_seqs:
        raise ConfigError(
            f"max_num_batched_tokens is {num_tokens} and max_num_seqs {num_seqs}: a step needs room for one token of "
            f"every running request; raise the first or lower the second"
        )
    return Settings(
        device=device,
        dtype=cast("Literal['bfloat16', 'float32']", dtype),
        kv_cache_dtype=kv,
        indexer_dtype=index,
        max_num_seqs=num_seqs,
        max_num_batched_tokens=num_tokens,
        max_num_queued_reqs=cast("int", queued),
        max_steps_in_flight=cast("int", steps),
        cuda_graphs=cast("bool", graphs),
        recipe=recipe,
        choices=tuple(found),
    )


def _row_formats(
    config: EngineConfig,
) -> tuple[Literal["fp8_ds_mla", "bf16", "float32"], Literal["fp4", "fp8", "float32"]]:
    """The formats of cached rows: packed ones under bfloat16, nothing rounded under float32."""
    exact = config.dtype == "float32"
    kv: KvCacheDtype = config.kv_cache_dtype
    index: IndexerDtype = config.indexer_dtype
    if kv == "auto":
        kv = "float32" if exact else "fp8_ds_mla"
    if index == "auto":
        index = "float32" if exact else "fp4"
    return kv, index


def _check_ranges(config: EngineConfig, model: ModelConfig) -> None:
    for name, value, allowed in (
        ("device", config.device, ("auto", *_words(Device))),
        ("dtype", config.dtype, _words(Dtype)),
        ("kv_cache_dtype", config.kv_cache_dtype, _words(KvCacheDtype)),
        ("indexer_dtype", config.indexer_dtype, _words(IndexerDtype)),
        ("load_format", config.load_format, ("auto", "safetensors", "dummy")),
        ("default_reasoning_effort", config.default_reasoning_effort, ("auto", "low", "high", "max")),
    ):
        if value not in allowed:
            raise ConfigError(f"{name} is {value!r}; it is one of {', '.join(allowed)}")
    for name, number, least in (
        ("max_model_len", config.max_model_len, 2),
        ("kv_cache_memory_bytes", config.kv_cache_memory_bytes, 1),
        ("max_num_seqs", config.max_num_seqs, 1),
        ("max_num_batched_tokens", config.max_num_batched_tokens, 1),
        ("max_steps_in_flight", config.max_steps_in_flight, 1),
        ("max_num_queued_reqs", config.max_num_queued_reqs, 0),
        ("max_num_queued_tokens", config.max_num_queued_tokens, 0),
        ("max_output_queue_items", config.max_output_queue_items, 1),
    ):
        if number is not None and number < least:
            raise ConfigError(f"{name} is {number}; it is at least {least}")
    if config.max_steps_in_flight is not None and config.max_steps_in_flight > MOST_STEPS_IN_FLIGHT:
        raise ConfigError(f"max_steps_in_flight is {config.max_steps_in_flight}; it is at most {MOST_STEPS_IN_FLIGHT}")
    if config.max_model_len is not None and config.max_model_len > model.max_position_embeddings:
        raise ConfigError(
            f"max_model_len is {config.max_model_len}; the checkpoint's positions end at "
            f"{model.max_position_embeddings} (max_position_embeddings)"
        )
    if config.default_reasoning_effort == "low" and model.generation == "preview":
        raise ConfigError("default_reasoning_effort is 'low', which this checkpoint's encoder does not know; use auto")


def _words(literal: object) -> tuple[str, ...]:
    return cast("tuple[str, ...]", getattr(literal, "__args__", ()))
