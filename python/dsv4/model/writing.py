"""Writes a checkpoint in the official layout: one shard per layer, named and indexed as the released ones are."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from dsv4.config.model import ModelConfig
from dsv4.config.shards import INDEX
from dsv4.model.schema import shard_number


def write_checkpoint(directory: Path, config: ModelConfig, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Shards and index of `tensors`, in any order. All are in memory at once: for checkpoints that fit there."""
    shards: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors:
        shards[shard_number(name, config)][name] = tensor.contiguous()
    files: dict[str, str] = {}
    total = 0
    for position, number in enumerate(sorted(shards), start=1):
        file = f"model-{position:05}-of-{len(shards):05}.safetensors"
        save_file(shards[number], directory / file, metadata={"format": "pt"})
        (directory / file).chmod(0o644)  # the writer leaves it to its owner alone
        files |= dict.fromkeys(shards[number], file)
        total += sum(tensor.nbytes for tensor in shards[number].values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
