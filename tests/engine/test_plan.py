"""The dry run's numbers: the paper's bytes per token, the allocation's bytes to the last one, and advice that holds."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.engine.gates import assert_free

from dsv4 import LLM, EngineConfig
from dsv4.config.choices import resolve
from dsv4.config.directory import DEMO
from dsv4.config.model import ModelConfig
from dsv4.config.shards import read_tensors
from dsv4.engine.null import null_parts
from dsv4.engine.plan import as_table, plan
from dsv4.errors import CheckpointError, ConfigError, Misuse
from dsv4.model.caches import Caches, allocate
from dsv4.runtime.memory import pool_bytes
from dsv4.runtime.plan import ServingPlan, numerics_of

CONFIGS = Path(__file__).parents[1] / "data" / "deepseek_v4" / "configs"
GIB = 1 << 30
GROUP = {"c4": "full", "index": "full", "c128": "full", "swa": "swa", "c4_state": "state", "index_state": "state",
         "c128_state": "state"}  # fmt: skip
SMALL = EngineConfig(kv_cache_memory_bytes=32 << 20, max_num_seqs=4, max_model_len=1024, max_num_batched_tokens=128)


def directory(tmp_path: Path, name: str, **changes: Any) -> Path:
    """A directory with nothing but a config.json: a published one, or the demo's."""
    source = DEMO / "config.json" if name == "demo" else CONFIGS / f"{name}.json"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(json.loads(source.read_text()) | changes))
    return folder


def planned(folder: Path, **settings: Any) -> ServingPlan:
    return plan(EngineConfig(model=str(folder), **settings))


def allocated(folder: Path, found: ServingPlan, device: str, **settings: Any) -> Caches:
    """What `allocate` makes of the planned blocks, with the formats of the same settings."""
    model = ModelConfig.load(folder)
    numerics = numerics_of(resolve(EngineConfig(model=str(folder), **settings), model))
    full, swa, state = (pool.blocks for pool in found.pools)
    return allocate(model, numerics, num_full_blocks=full, num_swa_blocks=swa, num_slots=state, device=device)


def by_group(pools: Mapping[str, int]) -> dict[str, int]:
    found = dict.fromkeys(("full", "swa", "state"), 0)
    for name, num_bytes in pools.items():
        found[GROUP[name]] += num_bytes
    return found


def numbers(text: str) -> list[int]:
    return [int(each) for each in re.findall(r"\d+", text)]


@pytest.mark.parametrize(
    ("name", "index", "per_token", "padding"),
    [
        ("V4-Flash.config", "fp4", 3514.25, 49.0),
        ("V4-Flash.config", "fp8", 3850.25, 49.0),
        ("V4-Flash-0731.config.RECONSTRUCTED", "fp4", 3514.25, 49.0),
        ("V4-Pro.config", "fp4", 5031.4375, 75.3125),
        ("V4-Pro.config", "fp8", 5511.4375, 75.3125),
    ],
)
def test_a_token_costs_the_published_bytes_and_its_pages_padding(
    tmp_path: Path, name: str, index: Any, per_token: float, padding: float
) -> None:
    found = planned(directory(tmp_path, name), indexer_dtype=index, kv_cache_memory_bytes=8 * GIB)
    assert (found.bytes_per_token, found.padding_bytes_per_token) == (per_token, padding)
    full = found.pools[0]
    assert full.block_bytes == 256 * (per_token + padding)


@pytest.mark.parametrize(("name", "layers", "fixed"), [("V4-Flash.config", 43, 6_672_960), ("V4-Pro.config", 61, 0)])
def test_a_request_costs_three_window_blocks_and_a_slot_whatever_its_length(
    tmp_path: Path, name: str, layers: int, fixed: int
) -> None:
    found = planned(directory(tmp_path, name), kv_cache_memory_bytes=8 * GIB)
    _, swa, state = found.pools
    assert swa.block_bytes == layers * 37_440  # a page of 64 rows of 584 bytes, padded to a multiple of 576
    assert found.per_request_fixed_bytes == 3 * swa.block_bytes + state.block_bytes
    assert fixed in (0, found.per_request_fixed_bytes)


@pytest.mark.parametrize("name", ["V4-Flash.config", "V4-Pro.config"])
@pytest.mark.parametrize(
    "settings",
    [
        {"kv_cache_memory_bytes": 80 * GIB, "max_num_seqs": 1024, "max_num_batched_tokens": 8192},
        {"kv_cache_memory_bytes": 12_345_678_901, "indexer_dtype": "fp8", "kv_cache_dtype": "bf16"},
        {"kv_cache_memory_bytes": 3 * GIB, "dtype": "float32", "max_model_len": 100_000},
    ],
)
def test_the_plan_of_a_published_config_is_the_allocation_to_the_byte(
    tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    folder = directory(tmp_path, name)
    found = planned(folder, **settings)
    assert found.verdict.fits
    assert {pool.name: pool.num_bytes for pool in found.pools} == by_group(
        pool_bytes(allocated(folder, found, "meta", **settings))
    )
    left = settings["kv_cache_memory_bytes"] - sum(pool.num_bytes for pool in found.pools)
    assert 0 <= left < found.pools[0].block_bytes


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({}, {"kv_cache_memory_bytes": 40_000_001}),
        ({}, {"kv_cache_memory_bytes": 24 << 20, "kv_cache_dtype": "bf16", "indexer_dtype": "fp8"}),
        ({}, {"kv_cache_memory_bytes": 30 << 20, "dtype": "float32", "max_num_batched_tokens": 64}),
        ({"compress_ratios": [0, 0, 0, 0, 0, 0, 0]}, {"max_num_seqs": 2, "max_model_len": 512}),
        ({"sliding_window": 64, "head_dim": 192, "compress_ratios": [128, 128, 4, 128, 0, 4]}, {"max_num_seqs": 3}),
    ],
)
def test_a_small_plan_is_allocated_to_the_byte_and_to_the_block(
    tmp_path: Path, changes: dict[str, Any], settings: dict[str, Any]
) -> None:
    settings = {"max_num_seqs": 4, "max_model_len": 4096, **settings}
    folder = directory(tmp_path, "demo", num_hidden_layers=6, **{"compress_ratios": [0, 4, 128, 4, 128, 4], **changes})
    found = planned(folder, **settings)
    caches = allocated(folder, found, "cpu", **settings)
    assert {pool.name: pool.num_bytes for pool in found.pools} == by_group(pool_bytes(caches))
    blocks = {pool.name: pool.blocks for pool in found.pools}
    for layer in caches.layers:
        for pool, group in GROUP.items():
            tensor = getattr(layer, pool)
            assert tensor is None or len(tensor) == blocks[group] + 1


def test_capacity_counts_the_requests_whose_blocks_there_are(tmp_path: Path) -> None:
    found = planned(directory(tmp_path, "V4-Flash.config"), kv_cache_memory_bytes=20 * GIB, max_num_seqs=300)
    full, _, state = found.pools
    assert [row.context for row in found.capacity] == [1024, 4096, 8192, 65_536, 262_144, 1_048_576]
    for row in found.capacity:
        blocks = row.context // 256
        assert row.max_concurrent == min(300, state.blocks, full.blocks // blocks)
        assert row.request_bytes == blocks * full.block_bytes + found.per_request_fixed_bytes
    assert [row.max_concurrent for row in found.capacity] == sorted(
        (row.max_concurrent for row in found.capacity), reverse=True
    )


def test_without_shards_the_schema_gives_the_weights(tmp_path: Path) -> None:
    found = planned(directory(tmp_path, "V4-Flash.config"), kv_cache_memory_bytes=GIB)
    assert found.weights_source.startswith("schema: ")
    assert found.weights_bytes == 156_015_698_140  # the released checkpoint without its MTP block: 156.0 GB
    demo = planned(directory(tmp_path, "demo"))
    assert demo.weights_bytes == plan(EngineConfig()).weights_bytes


def test_with_shards_their_headers_give_the_weights() -> None:
    found = plan(EngineConfig())
    assert found.weights_source == "safetensors"
    stored = read_tensors(DEMO)
    assert found.weights_bytes == sum(
        tensor.num_bytes for name, tensor in stored.items() if not name.startswith("mtp.")
    )


def test_drafts_are_not_counted_because_they_are_not_loaded(tmp_path: Path) -> None:
    found = planned(directory(tmp_path, "V4-Flash-0731.config.RECONSTRUCTED"), kv_cache_memory_bytes=GIB)
    assert found.weights_bytes == 156_015_698_140  # three DSpark stages apart, it is V4-Flash
    dummy = plan(EngineConfig(load_format="dummy", seed=7))
    assert (dummy.weights_bytes, dummy.weights_source) == (plan(EngineConfig()).weights_bytes, "dummy, seed 7")


def test_a_missing_shard_is_no_matter_of_memory(tmp_path: Path) -> None:
    folder = shutil.copytree(DEMO, tmp_path / "demo")
    (folder / "model-00004-of-00009.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks 1 of 9 shards: number 4"):
        planned(folder)


def test_a_context_that_does_not_fit_is_told_with_bytes_and_tokens_that_do(tmp_path: Path) -> None:
    folder = directory(tmp_path, "V4-Flash.config")
    asked: dict[str, Any] = {"max_model_len": 500_000, "max_num_seqs": 8}
    found = planned(folder, kv_cache_memory_bytes=GIB, **asked)
    assert (found.verdict.fits, found.verdict.limiting_term) == (False, "kv_cache_memory_bytes")
    assert found.pools
    assert found.capacity[-1].max_concurrent == 0
    bytes_advice, tokens_advice = found.verdict.suggestions
    needed, more, _ = numbers(bytes_advice)
    assert needed - more == GIB
    assert planned(folder, kv_cache_memory_bytes=needed, **asked).verdict.fits
    assert not planned(folder, kv_cache_memory_bytes=needed - 1, **asked).verdict.fits
    (tokens,) = numbers(tokens_advice)
    assert planned(folder, kv_cache_memory_bytes=GIB, max_num_seqs=8, max_model_len=tokens).verdict.fits
    assert not planned(folder, kv_cache_memory_bytes=GIB, max_num_seqs=8, max_model_len=tokens + 1).verdict.fits


def test_bytes_for_nothing_at_all_have_no_pools_and_name_the_least(tmp_path: Path) -> None:
    folder = directory(tmp_path, "V4-Flash.config")
    found = planned(folder, kv_cache_memory_bytes=1000)
    assert (found.pools, found.capacity, found.verdict.fits) == ((), (), False)
    (needed, more) = numbers(found.verdict.suggestions[0])
    assert needed - more == 1000
    assert planned(folder, kv_cache_memory_bytes=needed).verdict.fits
    assert not planned(folder, kv_cache_memory_bytes=needed - 1).verdict.fits
    assert "fits         no; limited by kv_cache_memory_bytes" in as_table(found)


def test_the_bytes_in_every_suggestion_do_what_it_says(tmp_path: Path) -> None:
    folder = directory(tmp_path, "V4-Flash.config")
    found = planned(folder, kv_cache_memory_bytes=GIB, max_num_seqs=512, max_num_batched_tokens=512)
    capped, running, longest = found.verdict.suggestions
    assert found.verdict.limiting_term == "full"
    claims: tuple[tuple[str, Callable[[ServingPlan], bool]], ...] = (
        (capped, lambda other: other.max_model_len == 1_048_576),
        (running, lambda other: other.pools[2].blocks == 512),
        (longest, lambda other: other.capacity[-1].max_concurrent == 512),
    )
    for suggestion, claim in claims:
        needed = numbers(suggestion.partition("kv_cache_memory_bytes")[2])[0]
        same: dict[str, Any] = {"max_num_seqs": 512, "max_num_batched_tokens": 512}
        if suggestion is not capped:
            same["max_model_len"] = found.max_model_len
        outcomes = [claim(planned(folder, kv_cache_memory_bytes=total, **same)) for total in (needed - 1, needed)]
        assert outcomes == [False, True], suggestion


def test_enough_memory_is_limited_by_the_limits_and_needs_no_advice() -> None:
    found = plan(EngineConfig())
    assert found.verdict.limiting_term == "max_num_seqs"
    assert found.verdict.suggestions == ()


def test_fewer_requests_than_the_limits_allow_are_limited_by_the_bytes() -> None:
    found = plan(EngineConfig(kv_cache_memory_bytes=24 << 20, max_model_len=1024))
    assert found.capacity[-1].max_concurrent == found.pools[2].blocks < found.max_num_seqs
    assert found.verdict.limiting_term == "kv_cache_memory_bytes"
    (suggestion,) = found.verdict.suggestions
    enough = plan(EngineConfig(kv_cache_memory_bytes=numbers(suggestion)[-1], max_model_len=1024))
    assert enough.capacity[-1].max_concurrent == found.max_num_seqs


def test_what_no_memory_would_cure_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_num_queued_tokens is 100, less than max_model_len, 1024"):
        plan(replace(SMALL, max_num_queued_tokens=100))
    with pytest.raises(ConfigError, match=r"swa_blocks is 31250097; .* at most 8388606 can be numbered"):
        plan(EngineConfig(max_num_batched_tokens=2_000_000_000, kv_cache_memory_bytes=8 << 40))
    with pytest.raises(CheckpointError, match="does not exist"):
        plan(EngineConfig(model="/nowhere/at/all"))


def test_a_running_engine_has_the_plan_of_its_dry_run_and_its_pools() -> None:
    with LLM("demo", config=SMALL) as llm:
        assert llm.plan() == plan(SMALL)
        pools = {pool.name: pool for pool in llm.plan().pools}
        stats = llm.stats()
        assert {name: pool.blocks for name, pool in pools.items()} == {
            name: stats[f"{name}_capacity"] for name in pools
        }
        assert by_group(llm._front.facts.pool_bytes) == {name: pool.num_bytes for name, pool in pools.items()}
        assert_free(stats)


def test_parts_made_by_hand_have_no_plan() -> None:
    with LLM.over(null_parts(lambda _draw, _position: 65)) as llm, pytest.raises(Misuse, match="nothing was planned"):
        llm.plan()
