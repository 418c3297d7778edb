"""From a configuration to the model on its device, and what is known of its weights."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dsv4.config.choices import Device
from dsv4.config.engine import EngineConfig
from dsv4.config.model import ModelConfig
from dsv4.errors import ConfigError
from dsv4.model.checkpoint import open_checkpoint
from dsv4.model.dummy import DummySource
from dsv4.model.model import DeepseekV4
from dsv4.model.numerics import Numerics
from dsv4.model.weights import TensorSource
from dsv4.runtime.plan import schema_bytes

if TYPE_CHECKING:
    from dsv4.model.gpu.model import GpuDeepseekV4

SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Where the weights are from: bytes in the checkpoint, seconds to load, and a digest that changes with them."""

    source: str
    num_bytes: int
    seconds: float
    digest: str


def load_network(
    config: EngineConfig, directory: Path, model: ModelConfig, numerics: Numerics, device: Device
) -> tuple[DeepseekV4 | GpuDeepseekV4, Weights]:
    """The model and its weights. Raises ConfigError where there is no such device, CheckpointError for the weights."""
    started = time.monotonic()
    with _source(config, directory, model) as (source, told, num_bytes, digest):
        network = _network(model, source, numerics, device)
        seconds = time.monotonic() - started
    return network, Weights(source=told, num_bytes=num_bytes, seconds=seconds, digest=digest)


@contextlib.contextmanager
def _source(config: EngineConfig, directory: Path, model: ModelConfig) -> Iterator[tuple[TensorSource, str, int, str]]:
    """Tensors, where they are from, their bytes and their digest."""
    if config.load_format == "dummy":
        seed = config.seed or 0
        digest = hashlib.sha256(f"dummy {seed} {model}".encode()).hexdigest()
        yield DummySource(model, seed, drafts=False), f"dummy, seed {seed}", schema_bytes(model), digest
        return
    with open_checkpoint(directory, model, progress=config.progress) as source:
        yield source, "safetensors", source.num_bytes, checkpoint_digest(directory)


def _network(
    model: ModelConfig, source: TensorSource, numerics: Numerics, device: Device
) -> DeepseekV4 | GpuDeepseekV4:
    if device == "cpu":
        return DeepseekV4(model, source, numerics)
    if not torch.cuda.is_available():
        raise ConfigError("device 'cuda': torch sees no GPU here; use 'cpu' or 'auto'")
    from dsv4.model.gpu.model import GpuDeepseekV4  # noqa: PLC0415 - Triton, which a CPU does without

    return GpuDeepseekV4(model, source, numerics, device)


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
