"""From a configuration to a core and a runner on one device: settings, pools, weights, in that order.

    config.json ─▶ settings ─▶ pools sized ─▶ weights ─▶ pools allocated ─▶ core + runner

Everything that can be refused is refused before a weight is read.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from dsv4._core import Core
from dsv4.config.choices import Choice, Settings, resolve
from dsv4.config.directory import resolve_model
from dsv4.config.engine import EngineConfig
from dsv4.config.model import ModelConfig
from dsv4.model.checkpoint import open_checkpoint
from dsv4.model.dummy import DummySource
from dsv4.model.model import DeepseekV4
from dsv4.model.numerics import Numerics
from dsv4.runtime.memory import Sizing, allocate_pools, pool_bytes, size_pools
from dsv4.runtime.plan import ServingPlan, Subject, numerics_of, plan_of, schema_bytes
from dsv4.runtime.recipe import core_recipe
from dsv4.runtime.runner import ModelRunner

SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Where the weights are from: bytes in the checkpoint, seconds to load, and a digest that changes with them."""

    source: str
    num_bytes: int
    seconds: float
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """One model on one device, ready to run plans."""

    core: Core
    runner: ModelRunner
    directory: Path
    model: ModelConfig
    settings: Settings
    sizing: Sizing
    weights: Weights
    threads: Choice
    pool_bytes: dict[str, int]

    @property
    def choices(self) -> tuple[Choice, ...]:
        """Every automatic choice, in the order in which it was made."""
        return (*self.settings.choices, *self.sizing.choices, self.threads)

    def plan(self) -> ServingPlan:
        """What this model's pools serve: the numbers that a dry run of the same configuration printed."""
        weights = (self.weights.num_bytes, self.weights.source)
        subject = Subject(directory=self.directory, model=self.model, settings=self.settings, weights=weights)
        return plan_of(subject, self.sizing)


def load(config: EngineConfig) -> Loaded:
    """Loads everything. Raises ConfigError or CheckpointError; nothing is held then."""
    directory = resolve_model(config.model)
    model = ModelConfig.load(directory)
    settings = resolve(config, model)
    numerics = numerics_of(settings)
    sizing = size_pools(config, settings, model, numerics)
    network, weights = _load_weights(config, directory, model, numerics)
    caches = allocate_pools(model, numerics, sizing.plan, settings.device)
    core = Core(sizing.geometry, sizing.plan.sizes, sizing.limits, core_recipe(settings.recipe, sizing.limits))
    num_threads, threads = choose_threads(weights.num_bytes, settings)
    return Loaded(
        core=core,
        runner=ModelRunner(network, caches, core, num_threads=num_threads, num_steps=settings.max_steps_in_flight),
        directory=directory,
        model=model,
        settings=settings,
        sizing=sizing,
        weights=weights,
        threads=threads,
        pool_bytes=pool_bytes(caches),
    )


def choose_threads(weights_bytes: int, settings: Settings) -> tuple[int, Choice]:
    """One thread for a small model, torch's own number for the others."""
    if weights_bytes < settings.recipe.limits.single_thread_bytes:
        return 1, Choice("num_threads", "1", "auto", f"recipe {settings.recipe.name}, for small weights")
    num_threads = torch.get_num_threads()
    return num_threads, Choice("num_threads", str(num_threads), "auto", "torch's own number")


def _load_weights(
    config: EngineConfig, directory: Path, model: ModelConfig, numerics: Numerics
) -> tuple[DeepseekV4, Weights]:
    started = time.monotonic()
    if config.load_format == "dummy":
        seed = config.seed or 0
        network = DeepseekV4(model, DummySource(model, seed, drafts=False), numerics)
        digest = hashlib.sha256(f"dummy {seed} {model}".encode()).hexdigest()
        seconds = time.monotonic() - started
        weights = Weights(source=f"dummy, seed {seed}", num_bytes=schema_bytes(model), seconds=seconds, digest=digest)
        return network, weights
    with open_checkpoint(directory, model, progress=config.progress) as source:
        network = DeepseekV4(model, source, numerics)
        seconds = time.monotonic() - started
        weights = Weights(
            source="safetensors", num_bytes=source.num_bytes, seconds=seconds, digest=checkpoint_digest(directory)
        )
    return network, weights


def checkpoint_digest(directory: Path) -> str:
    """SHA-256 over config.json and, of every shard, its size, its first and its last mebibyte.

    Enough to tell checkpoints apart, and to change with a re-quantised one; no proof against forgery.
    """
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    for path in sorted(directory.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as shard:
            digest.update(shard.read(SAMPLE_BYTES))
            shard.seek(max(0, size - SAMPLE_BYTES))
            digest.update(shard.read(SAMPLE_BYTES))
    return digest.hexdigest()
