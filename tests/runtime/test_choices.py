"""The automatic choices: each with its value, its source and a reason; what cannot work is refused by name."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from dsv4.config.choices import resolve
from dsv4.config.directory import DEMO
from dsv4.config.engine import EngineConfig
from dsv4.config.model import ModelConfig
from dsv4.config.recipe import recipe_of
from dsv4.errors import ConfigError

MODEL = ModelConfig.parse(json.loads((DEMO / "config.json").read_text()))


def config(**settings: Any) -> EngineConfig:
    return EngineConfig(**settings)


def test_nothing_given_means_the_documented_choices() -> None:
    found = resolve(config(), MODEL)
    assert (found.device, found.dtype, found.kv_cache_dtype, found.indexer_dtype) == (
        "cpu", "bfloat16", "fp8_ds_mla", "fp4",
    )  # fmt: skip
    recipe = recipe_of("cpu").limits
    assert found.max_num_seqs == recipe.max_num_seqs
    assert found.max_num_batched_tokens == recipe.max_num_batched_tokens
    assert found.max_num_queued_reqs == 4 * recipe.max_num_seqs
    assert all(choice.source == "auto" and choice.reason for choice in found.choices)
    assert len({choice.name for choice in found.choices}) == len(found.choices)


def test_what_was_given_is_taken_and_said_to_be_given() -> None:
    found = resolve(config(max_num_seqs=3, device="cpu", kv_cache_dtype="bf16", indexer_dtype="fp8"), MODEL)
    assert (found.max_num_seqs, found.kv_cache_dtype, found.indexer_dtype) == (3, "bf16", "fp8")
    given = {choice.name for choice in found.choices if choice.source == "given"}
    assert given == {"max_num_seqs", "device", "kv_cache_dtype", "indexer_dtype"}


def test_float32_activations_bring_float32_rows() -> None:
    found = resolve(config(dtype="float32"), MODEL)
    assert (found.dtype, found.kv_cache_dtype, found.indexer_dtype) == ("float32", "float32", "float32")


def test_limits_that_were_half_given_fit_each_other() -> None:
    assert resolve(config(max_num_batched_tokens=8), MODEL).max_num_seqs == 8
    assert resolve(config(max_num_seqs=1000), MODEL).max_num_batched_tokens == 1000


@pytest.mark.parametrize(
    ("device", "asked", "wanted"),
    [
        ("cpu", True, ("False", "auto", "there is no GPU")),
        ("cuda", None, ("True", "auto", "decode steps are replayed")),
        ("cuda", False, ("False", "given", "as given")),
        ("cuda", True, ("True", "given", "as given")),
    ],
)
def test_graphs_are_captured_where_there_is_a_gpu_unless_they_are_not_wanted(
    device: str, asked: bool | None, wanted: tuple[str, str, str]
) -> None:
    found = resolve(config(device=device, cuda_graphs=asked), MODEL)
    assert found.cuda_graphs is (wanted[0] == "True")
    (choice,) = (choice for choice in found.choices if choice.name == "cuda_graphs")
    assert (choice.value, choice.source, choice.reason) == wanted


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"device": "cuda:1"}, "device is 'cuda:1'; it is one of auto, cpu, cuda"),
        ({"device": "tpu"}, "device is 'tpu'; it is one of auto, cpu, cuda"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype is 'fp8'"),
        ({"indexer_dtype": "int4"}, "indexer_dtype is 'int4'"),
        ({"load_format": "pt"}, "load_format is 'pt'"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0; it is at least 1"),
        ({"max_model_len": 1}, "max_model_len is 1; it is at least 2"),
        ({"max_model_len": 1 << 20}, r"max_model_len is 1048576; the checkpoint's positions end at 65536"),
        ({"max_num_seqs": 64, "max_num_batched_tokens": 32}, "max_num_batched_tokens is 32 and max_num_seqs 64"),
        ({"max_output_queue_items": 0}, "max_output_queue_items is 0"),
        ({"default_reasoning_effort": "low"}, "this checkpoint's encoder does not know"),
        ({"default_reasoning_effort": "ultra"}, "default_reasoning_effort is 'ultra'"),
    ],
)
def test_what_cannot_work_is_refused_by_name(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        resolve(config(**settings), MODEL)


def test_the_new_generation_knows_low() -> None:
    model = dataclasses.replace(MODEL, generation="0731")
    assert resolve(config(default_reasoning_effort="low"), model)
