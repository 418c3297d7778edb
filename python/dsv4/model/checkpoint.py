"""A model directory opened for reading: every tensor accounted for first, then read one at a time.

    open_checkpoint(directory, config)     headers of all shards -> accounting -> CheckpointSource
    source.take(name)                      pread of exactly that tensor's bytes into memory of its own

Nothing is memory-mapped: mapped pages would count as the process's memory until the kernel takes them back, and a file
that is cut while it is mapped kills the process. A read of it raises.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from dsv4.config.model import ModelConfig
from dsv4.config.shards import StoredTensor, listed, read_tensors
from dsv4.errors import CheckpointError
from dsv4.model.progress import Progress
from dsv4.model.schema import TensorSpec, expected, scale_name

TORCH_DTYPES = {
    "F4": torch.uint8,  # two values to a byte, as the other names of MXFP4 have it
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "I32": torch.int32,
    "I64": torch.int64,
}


class CheckpointSource:
    """The tensors of one checkpoint, each read when it is taken. A context manager: the files are open inside.

    Tensors of drafts (mtp.*) are absent while drafting is off.
    """

    def __init__(self, tensors: Mapping[str, StoredTensor], config: ModelConfig, progress: Progress | None) -> None:
        self._tensors, self._config, self._progress = dict(tensors), config, progress
        self._files: dict[Path, int] = {}
        self._taken: set[str] = set()
        self.num_bytes = sum(tensor.num_bytes for tensor in tensors.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files and ends the progress bar. Tensors that were taken stay."""
        while self._files:
            os.close(self._files.popitem()[1])
        if self._progress is not None:
            self._progress.close()

    def names(self) -> Iterator[str]:
        """All tensors, scales included."""
        return iter(self._tensors)

    def has(self, name: str) -> bool:
        """Whether the checkpoint has the tensor."""
        return name in self._tensors

    def take(self, name: str) -> Tensor:
        """The tensor as it is stored, in memory of its own on the CPU.

        E4M3 is float8_e4m3fn, E8M0 is float8_e8m0fnu (or uint8, or powers of two in float32, as the file has it),
        packed MXFP4 is int8 or uint8 [N, K / 2]. CheckpointError when it is not there or the file was cut meanwhile.
        """
        stored = self._tensors.get(name)
        if stored is None:
            raise CheckpointError(f"the checkpoint has no tensor {name}, or it belongs to a draft that is off")
        data = torch.empty(stored.num_bytes, dtype=torch.uint8)
        self._read(stored, data.numpy().data)
        shape = (*stored.shape[:-1], stored.shape[-1] // 2) if stored.dtype == "F4" else stored.shape
        tensor = data.view(TORCH_DTYPES[stored.dtype]).view(shape)
        _check_values(name, tensor, self._config)
        if self._progress is not None and name not in self._taken:
            self._progress.add(stored.num_bytes)
        self._taken.add(name)
        return tensor

    def _read(self, stored: StoredTensor, into: memoryview) -> None:
        done = 0
        try:
            if stored.path not in self._files:
                self._files[stored.path] = os.open(stored.path, os.O_RDONLY | os.O_CLOEXEC)
            while done < len(into):
                count = os.preadv(self._files[stored.path], [into[done:]], stored.offset + done)
                if count == 0:
                    raise CheckpointError(
                        f"{stored.path} ended within {stored.name}, after {done} of {len(into)} bytes: it was cut"
                    )
                done += count
        except OSError as error:
            raise CheckpointError(f"{stored.path} cannot be read at {stored.name}: {error}") from error


def open_checkpoint(
    directory: Path, config: ModelConfig, *, drafts: bool = False, progress: bool = False
) -> CheckpointSource:
    """Accounts for every tensor of the directory and opens it.

    drafts    whether the tensors of the draft (mtp.*) can be taken; they are accounted for in any case
    progress  a bar on stderr, with bytes and time left, as tensors are taken

    Raises one CheckpointError that lists what is missing, unexpected, misshapen or of a wrong dtype.
    """
    stored = read_tensors(directory)
    problems = account(stored, config)
    if problems:
        raise CheckpointError(f"{directory} is not what its config.json says:\n  " + "\n  ".join(problems))
    wanted = {name: tensor for name, tensor in stored.items() if drafts or not name.startswith("mtp.")}
    total = sum(tensor.num_bytes for tensor in wanted.values())
    return CheckpointSource(wanted, config, Progress(total, f"loading {directory.name}") if progress else None)


def account(stored: Mapping[str, StoredTensor], config: ModelConfig) -> list[str]:
    """What of a checkpoint is not as the schema has it: one line per kind of problem, with names; empty if all is."""
    missing: list[str] = []
    misshapen: list[str] = []
    dtypes: list[str] = []
    known: set[str] = set()
    experts: dict[str, str] = {}
    for name, spec in expected(config).items():
        known.add(name)
        tensor = stored.get(name)
        if tensor is None:
            missing.append(name)
            known.add(scale_name(name))  # its scale may be there, and is not unexpected
            continue
        form = spec.form(tensor.dtype)
        if form is None:
            dtypes.append(f"{name} is {tensor.dtype}, not {_allowed(spec)}")
            continue
        if tensor.shape != form.shape:
            misshapen.append(f"{name} is {_shape(tensor.shape)}, not {_shape(form.shape)} ({tensor.dtype})")
        if ".experts." in name:
            block = name.partition(".ffn.")[0]
            first = experts.setdefault(block, form.format)
            if form.format != first:
                dtypes.append(f"{name} is {form.format} among {first} experts")
        if form.scale_shape is None:
            continue
        scale = scale_name(name)
        known.add(scale)
        found = stored.get(scale)
        if found is None:
            missing.append(f"{scale} (of {tensor.dtype} {name})")
            continue
        if found.dtype not in form.scale_dtypes:
            dtypes.append(f"{scale} is {found.dtype}, not {' or '.join(form.scale_dtypes)}")
        if found.shape != form.scale_shape:
            misshapen.append(f"{scale} is {_shape(found.shape)}, not {_shape(form.scale_shape)}")
    unexpected = sorted(name for name in stored if name not in known)
    kinds = (
        ("missing", missing),
        ("unexpected", unexpected),
        ("misshapen", misshapen),
        ("of a wrong dtype", dtypes),
    )
    return [f"{kind}, {listed(names)}" for kind, names in kinds if names]


def _allowed(spec: TensorSpec) -> str:
    return " or ".join(dict.fromkeys(dtype for form in spec.forms for dtype in form.dtypes))


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _check_values(name: str, tensor: Tensor, config: ModelConfig) -> None:
    """What a header cannot show and a wrong value of which would not even fail: expert ids and scales."""
    if name.endswith(".tid2eid") and tensor.numel():
        low, high = int(tensor.min()), int(tensor.max())
        if low < 0 or high >= config.n_routed_experts:
            experts = config.n_routed_experts
            raise CheckpointError(f"{name} holds expert ids {low}..{high}; the model has experts 0..{experts - 1}")
    if name.endswith(".scale") and tensor.dtype is not torch.float32 and bool((tensor.view(torch.uint8) == 255).any()):
        raise CheckpointError(f"{name} holds the E8M0 byte 255, which is not a number")
    if name.endswith(".scale") and tensor.dtype is torch.float32:
        mantissa, _ = torch.frexp(tensor)
        if not bool((mantissa == 0.5).all()):
            raise CheckpointError(f"{name} holds scales that are no powers of two; FP8 weights need E8M0 values")
