"""Recipes: every load has a band, files are refused by what is wrong in them, and limits that were given win."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dsv4._core import Core, Limits, PoolSizes
from dsv4.config.choices import resolve
from dsv4.config.directory import DEMO
from dsv4.config.engine import EngineConfig
from dsv4.config.model import ModelConfig
from dsv4.config.recipe import names, recipe_of
from dsv4.errors import ConfigError
from dsv4.runtime.memory import geometry_of, size_pools
from dsv4.runtime.plan import numerics_of
from dsv4.runtime.recipe import core_recipe

LIMITS = "[limits]\nmax_num_seqs = 8\nmax_num_batched_tokens = 64\nkv_cache_memory_bytes = 9\nsingle_thread_bytes = 0\n"
BANDS = (
    '[[bands]]\nname = "a"\nmin_requests = 1\n[[bands]]\nname = "b"\nmin_requests = 4\nmax_num_batched_tokens = 16\n'
)


def limits(*, max_num_requests: int = 8, max_num_tokens: int = 64) -> Limits:
    return Limits(
        max_model_len=512,
        max_num_requests=max_num_requests,
        max_num_tokens=max_num_tokens,
        max_queued_requests=64,
        max_queued_tokens=65536,
        vocab_size=100,
    )


def core(path: str, of: Limits) -> Core:
    model = ModelConfig.load(DEMO)
    geometry = geometry_of(model, numerics_of(resolve(EngineConfig(), model)))
    return Core(geometry, PoolSizes(full_blocks=32, swa_blocks=64, state_slots=8), of, core_recipe(recipe_of(path), of))


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(LIMITS + BANDS)
    return str(path)


@pytest.mark.parametrize("name", names())
def test_every_recipe_of_the_package_is_followed_by_a_core_of_its_own_limits(name: str) -> None:
    model = ModelConfig.load(DEMO)
    settings = resolve(EngineConfig(recipe=name), model)
    sizing = size_pools(EngineConfig(recipe=name), settings, model, numerics_of(settings))
    follows = Core(sizing.geometry, sizing.plan.sizes, sizing.limits, core_recipe(settings.recipe, sizing.limits))
    assert f"recipe {name}, band {settings.recipe.bands[0].name}" in follows.explain_recipe()


def test_the_band_in_force_shapes_the_step_and_is_named_in_it(recipe: str) -> None:
    running = core(recipe, limits())
    memory = np.zeros(running.step_bytes // 4 + 16, np.int32)
    memory = memory[(-memory.ctypes.data % 64) // 4 :]
    for _ in range(4):
        running.submit([1] * 40, max_tokens=2)
    plan = running.plan(memory)
    assert plan is not None
    assert (plan.band, plan.num_tokens) == (1, 16)
    assert running.stats()["recipe_band"] == running.stats()["num_recipe_switches"] == 1
    assert "band b (4 requests or more)" in running.explain_recipe()


def test_limits_that_were_given_cut_the_bands_and_bands_take_them_where_they_say_nothing(recipe: str) -> None:
    few, many = core_recipe(recipe_of(recipe), limits(max_num_requests=3, max_num_tokens=8)).bands
    assert [(band.max_num_requests, band.max_num_tokens) for band in (few, many)] == [(3, 8), (3, 8)]
    few, many = core_recipe(recipe_of(recipe), limits(max_num_requests=100, max_num_tokens=1000)).bands
    assert (few.max_num_requests, few.max_num_tokens) == (100, 1000)
    assert many.max_num_tokens == 16


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (BANDS, "missing required field `limits`"),
        (LIMITS.replace("= 8", "= 0"), r"`int` >= 1 - at `\$.limits.max_num_seqs`"),
        (LIMITS.replace("= 8", "= 8.0"), r"at `\$.limits.max_num_seqs`"),
        (LIMITS + "chunk = 1\n", "unknown field `chunk`"),
        (LIMITS + BANDS.replace('name = "a"', ""), r"missing required field `name` - at `\$.bands\[0\]`"),
        (LIMITS + "[switching]\nmargin_percent = 100\n", r"< 100|<= 99"),
        ("[limits", "recipe mine: "),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_by_what_is_wrong_in_it(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        recipe_of(str(path))


def test_a_recipe_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no recipe 'h2000'; there are: cpu"):
        recipe_of("h2000")
    with pytest.raises(ConfigError, match="No such file"):
        recipe_of(str(tmp_path / "none.toml"))


def test_bands_that_cannot_work_are_refused_by_the_core_with_their_names(tmp_path: Path) -> None:
    for bands, complaint in (
        (BANDS.replace("min_requests = 1", "min_requests = 2"), "band, a, holds from 2 requests on"),
        (BANDS.replace("min_requests = 4", "min_requests = 1"), "band b holds from 1"),
        (BANDS.replace("= 16", "= 7"), "band b has max_num_tokens 7, less than its max_num_requests, 8"),
    ):
        path = tmp_path / f"{hash(bands)}.toml"
        path.write_text(LIMITS + bands)
        with pytest.raises(ConfigError, match=complaint):
            core(str(path), limits())
