"""What the safetensors files of a model directory say they hold, checked before a byte of weights is believed.

A shard is [8 bytes: length N of the header, little-endian][N bytes: JSON][data], and the header maps a tensor's name
to its dtype, its shape and the range of its bytes in the data. Ranges must fill the data exactly: no hole, no overlap,
no byte too few.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dsv4.config.directory import parse_json, read_json, within
from dsv4.config.fields import shown
from dsv4.errors import CheckpointError

INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
DTYPE_BITS = {
    "F4": 4, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8,
    "F16": 16, "BF16": 16, "I16": 16, "U16": 16, "F32": 32, "I32": 32, "U32": 32, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies. dtype is safetensors' name; `offset` and `num_bytes` count from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    num_bytes: int


def tensor_names(directory: Path) -> frozenset[str]:
    """Names of all tensors, from the index where there is one; empty for a directory without shards."""
    if (directory / INDEX).exists():
        return frozenset(read_index(directory))
    return frozenset(name for path in shard_paths(directory) for name in read_header(directory, path))


def shard_paths(directory: Path) -> list[Path]:
    """The *.safetensors of the directory, in order of name; CheckpointError when a numbered one is missing."""
    try:
        paths = sorted(directory.glob("*.safetensors"))
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be read: {error}") from error
    numbered = [found for path in paths if (found := re.fullmatch(r".*-(\d{5})-of-(\d{5})\.safetensors", path.name))]
    if numbered:
        count, present = int(numbered[0][2]), {int(found[1]) for found in numbered}
        missing = sorted(set(range(1, count + 1)) - present)
        if missing:
            first = ", ".join(map(str, missing[:10]))
            raise CheckpointError(f"{directory} lacks {len(missing)} of {count} shards: number {first}")
    return paths


def read_index(directory: Path) -> dict[str, str]:
    """Tensor name -> shard's file name. A file name is a plain one, so that no index leads out of the directory."""
    where = directory / INDEX
    weights = read_json(directory, INDEX).get("weight_map")
    if not isinstance(weights, dict):
        raise CheckpointError(f"{where}: weight_map is {shown(weights)}, not an object")
    for name, file in weights.items():
        plain = isinstance(file, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\.safetensors", file)
        if not plain:
            raise CheckpointError(f"{where}: {name} is in {shown(file)}, which is no name of a shard in this directory")
    return weights


def read_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of the directory, from the headers of the shards that the index names (all where there is none).

    Raises CheckpointError when there is no shard, when one is missing, truncated or lies about its ranges, when a
    tensor is in two shards, and when index and headers disagree.
    """
    index = read_index(directory) if (directory / INDEX).exists() else None
    paths = shard_paths(directory) if index is None else [directory / name for name in sorted(set(index.values()))]
    if not paths:
        raise CheckpointError(f"{directory} has no *.safetensors")
    absent = [path.name for path in paths if not path.exists()]
    if absent:
        raise CheckpointError(f"{directory} lacks {len(absent)} of {len(paths)} shards: {', '.join(absent[:10])}")
    tensors: dict[str, StoredTensor] = {}
    for path in paths:
        for name, tensor in read_header(directory, path).items():
            if name in tensors:
                raise CheckpointError(f"{name} is in two shards: {tensors[name].path.name} and {path.name}")
            tensors[name] = tensor
    if index is not None:
        _check_index(directory, index, tensors)
    return tensors


def _check_index(directory: Path, index: dict[str, str], tensors: dict[str, StoredTensor]) -> None:
    found = {name: tensor.path.name for name, tensor in tensors.items()}
    wrong = [
        f"{name} (index: {index.get(name, 'nowhere')}, shards: {found.get(name, 'nowhere')})"
        for name in sorted(index.keys() | found.keys())
        if index.get(name) != found.get(name)
    ]
    if wrong:
        raise CheckpointError(f"{directory / INDEX} disagrees with the shards on {listed(wrong)}")


def listed(items: list[str], shown_at_most: int = 20) -> str:
    """Count and names, for a message."""
    rest = len(items) - shown_at_most
    more = f", and {rest} more" if rest > 0 else ""
    return f"{len(items)}: {', '.join(items[:shown_at_most])}{more}"


def read_header(directory: Path, path: Path) -> dict[str, StoredTensor]:
    """The tensors of one shard."""
    real = within(directory, path)
    size = real.stat().st_size
    with real.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or 8 + length > size:
            raise CheckpointError(f"{path} is truncated: {size} bytes, but its header alone ends at byte {8 + length}")
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(f"{path} has a header of {length} bytes; at most {MAX_HEADER_BYTES} are read")
        header = parse_json(file.read(length), f"the header of {path}")
    header.pop("__metadata__", None)
    tensors = [_stored(path, real, name, entry, 8 + length) for name, entry in header.items()]
    _check_ranges(path, tensors, 8 + length, size)
    return {tensor.name: tensor for tensor in tensors}


def _stored(path: Path, real: Path, name: str, entry: object, data_start: int) -> StoredTensor:
    where = f"the header of {path}: {shown(name)}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(f"{where} is {shown(entry)}, not dtype, shape and data_offsets")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(f"{where} has the dtype {shown(dtype)}; known are {', '.join(DTYPE_BITS)}")
    shape, offsets = tuple(_sizes(entry["shape"], where)), tuple(_sizes(entry["data_offsets"], where))
    if len(shape) > 8 or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where} has the shape {shown(shape)} and the data_offsets {shown(offsets)}")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        claim = f"{dtype} {list(shape)} needs {bits / 8:g} bytes, its data_offsets {list(offsets)} hold"
        raise CheckpointError(f"{where} lies about its shape: {claim} {offsets[1] - offsets[0]}")
    return StoredTensor(name, dtype, shape, real, data_start + offsets[0], offsets[1] - offsets[0])


def _sizes(values: object, where: str) -> Iterator[int]:
    for value in values if isinstance(values, list) else (values,):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
            raise CheckpointError(f"{where} has {shown(values)} where a list of sizes belongs")
        yield value


def _check_ranges(path: Path, tensors: list[StoredTensor], start: int, size: int) -> None:
    """Ranges follow each other from the end of the header to the end of the file."""
    end = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.num_bytes)):
        if tensor.offset != end:
            kind = "overlaps its neighbour" if tensor.offset < end else "leaves a hole before it"
            raise CheckpointError(
                f"the header of {path}: {tensor.name} at byte {tensor.offset} {kind} (expected {end})"
            )
        end += tensor.num_bytes
    if end != size:
        kind = "is truncated" if size < end else "has bytes that belong to no tensor"
        raise CheckpointError(f"{path} {kind}: {size} bytes, its header accounts for {end}")
