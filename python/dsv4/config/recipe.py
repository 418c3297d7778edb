"""Recipes: the settings that fit a device and a load, as data (`config/recipes/<name>.toml`, or a file of your own).

[limits]                          what the engine is sized for, where nothing else is given
max_num_seqs = 32

[[bands]]                         in force from min_requests requests (running or waiting) on
name = "few"
min_requests = 1                  the first band starts at 1; what a band does not name is the engine's own limit
"""

from __future__ import annotations

import functools
import tomllib
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec

from dsv4.errors import ConfigError

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]


class Band(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits while at least `min_requests` requests are here; None: the engine's own."""

    name: str
    min_requests: _Count
    max_num_seqs: _Count | None = None
    max_num_batched_tokens: _Count | None = None
    num_speculative_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None


class RecipeLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine is sized for where nothing else is given.

    max_num_seqs            most requests running at once
    max_num_batched_tokens  token budget of one step
    max_steps_in_flight     steps that are planned and not done
    kv_cache_memory_bytes   most bytes for all pools together
    single_thread_bytes     a checkpoint with fewer bytes of weights is computed by one thread
    """

    max_num_seqs: _Count
    max_num_batched_tokens: _Count
    max_steps_in_flight: Annotated[int, msgspec.Meta(ge=1, le=2)] = 1
    kv_cache_memory_bytes: _Count
    single_thread_bytes: Annotated[int, msgspec.Meta(ge=0)]


class Switching(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A band is left downwards after `dwell_steps` steps in a row that are `margin_percent` below its edge."""

    dwell_steps: _Count = 16
    margin_percent: Annotated[int, msgspec.Meta(ge=0, lt=100)] = 25


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits, and how they change with the load; `name` is the file's."""

    limits: RecipeLimits
    bands: tuple[Band, ...] = (Band(name="all", min_requests=1),)
    switching: Switching = Switching()
    name: str = ""


def names() -> list[str]:
    """The recipes of the package."""
    return sorted(item.name.removesuffix(".toml") for item in _package().iterdir() if item.name.endswith(".toml"))


@functools.cache
def recipe_of(name: str) -> Recipe:
    """A recipe of the package by its name, or any by the path of its file. Raises ConfigError naming what is wrong."""
    if name in names():
        return _parsed(name, (_package() / f"{name}.toml").read_text(encoding="utf-8"))
    if not name.endswith(".toml"):
        known = ", ".join(names())
        raise ConfigError(f"there is no recipe {name!r}; there are: {known}; or give the path of a .toml file")
    try:
        text = Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {name}: {error}") from error
    return _parsed(Path(name).stem, text)


def _package() -> Traversable:
    return files("dsv4.config") / "recipes"


def _parsed(name: str, text: str) -> Recipe:
    try:
        return msgspec.convert({**tomllib.loads(text), "name": name}, Recipe)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"recipe {name}: {error}") from error
