"""Recipes: the settings that fit a device, as data in the package (`config/recipes/<device>.toml`)."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Limits that are taken where none are given.

    max_num_seqs            most requests running at once
    max_num_batched_tokens  token budget of one step
    max_steps_in_flight     steps that are planned and not done
    kv_cache_memory_bytes   most bytes for all pools together
    single_thread_bytes     a checkpoint with fewer bytes of weights is computed by one thread
    """

    name: str
    max_num_seqs: int
    max_num_batched_tokens: int
    max_steps_in_flight: int
    kv_cache_memory_bytes: int
    single_thread_bytes: int


@functools.cache
def recipe_of(device: str) -> Recipe:
    """The recipe of a kind of device, such as "cpu"."""
    text = (files("dsv4.config") / "recipes" / f"{device}.toml").read_text(encoding="utf-8")
    return Recipe(name=device, **tomllib.loads(text)["limits"])
