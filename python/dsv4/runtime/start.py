"""From a configuration to a core and a runner on one device: settings, pools, weights, in that order.

    config.json ─▶ settings ─▶ pools sized ─▶ weights ─▶ pools allocated ─▶ core + runner

Everything that can be refused is refused before a weight is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dsv4._core import Core
from dsv4.config.choices import Choice, Settings, resolve
from dsv4.config.directory import resolve_model
from dsv4.config.engine import EngineConfig
from dsv4.config.model import ModelConfig
from dsv4.model.caches import Caches
from dsv4.model.model import DeepseekV4
from dsv4.runtime.memory import Sizing, allocate_pools, pool_bytes, size_pools
from dsv4.runtime.plan import ServingPlan, Subject, checked_numerics, plan_of
from dsv4.runtime.recipe import core_recipe
from dsv4.runtime.runner import ModelRunner
from dsv4.runtime.step import Runner
from dsv4.runtime.weights import Weights, load_network

if TYPE_CHECKING:
    from dsv4.model.gpu.model import GpuDeepseekV4


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """One model on one device, ready to run plans."""

    core: Core
    runner: Runner
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
    numerics = checked_numerics(settings, model)
    sizing = size_pools(config, settings, model, numerics)
    network, weights = load_network(config, directory, model, numerics, settings.device)
    caches = allocate_pools(model, numerics, sizing.plan, settings.device)
    core = Core(sizing.geometry, sizing.plan.sizes, sizing.limits, core_recipe(settings.recipe, sizing.limits))
    num_threads, threads = choose_threads(weights.num_bytes, settings)
    return Loaded(
        core=core,
        runner=_runner(network, caches, core, settings, sizing, num_threads),
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


def _runner(
    network: DeepseekV4 | GpuDeepseekV4,
    caches: Caches,
    core: Core,
    settings: Settings,
    sizing: Sizing,
    num_threads: int,
) -> Runner:
    if isinstance(network, DeepseekV4):
        return ModelRunner(network, caches, core, num_threads=num_threads, num_steps=settings.max_steps_in_flight)
    from dsv4.runtime.gpu.runner import GpuRunner  # noqa: PLC0415 - Triton, which a CPU does without

    runner = GpuRunner(
        network,
        caches,
        core,
        max_rows=settings.max_num_seqs,
        vocab_size=network.config.vocab_size,
        num_steps=settings.max_steps_in_flight,
    )
    if settings.cuda_graphs:
        runner.capture(max_seq_len=sizing.limits.max_model_len)
    return runner
