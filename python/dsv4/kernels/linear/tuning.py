"""How a product is cut: pure functions of its shape, and the cuts that were measured to be better, kept as data.

Two kinds of choices. The number of splits of K is part of the numerics, so it depends on the weight alone. Tiles,
stages and warps change no bit; they may depend on the number of rows and on what `tuned.json` says of a device.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import NamedTuple

NUM_SMS = 132  # of an H100 or H200; a number of splits must not depend on the card


class Cut(NamedTuple):
    """Tile of outputs, rows and channels; stages of the pipeline, warps; band of tiles, 0 for `few_rows`.

    serial  1: a program of `few_rows` does all segments of K, as `many_rows` always does
    """

    bn: int
    bt: int
    bk: int
    stages: int
    warps: int
    band: int = 8
    serial: int = 0


def num_splits(N: int, K: int, groups: int) -> int:
    """Segments of K of a weight [groups, N, K]: about one wave of tiles of 128, segments of 512 channels or more."""
    splits = 1
    while (
        groups * N * splits <= 64 * NUM_SMS and K % (2 * splits * 128) == 0 and K // (2 * splits) >= 512 and splits < 8
    ):
        splits *= 2
    return splits


ROW_CLASSES = (16, 64, 256, 1024, 8192)
"""Numbers of rows that cuts are tuned for; a product takes the first that holds its rows, or the last."""


@functools.cache
def _tuned() -> dict[str, list[int]]:
    """kind, N, K, groups, row class -> a cut; measured on an H100 or H200 by benches/kernels/tune_linear.py."""
    text = resources.files(__package__).joinpath("tuned.json").read_text()
    found: dict[str, list[int]] = json.loads(text)
    return found


def key(kind: int, N: int, K: int, groups: int, rows: int) -> str:
    """The name of a product in `tuned.json`."""
    return f"{kind} {N} {K} {groups} {rows}"


def row_class(T: int) -> int:
    """The row class of T rows."""
    return next((rows for rows in ROW_CLASSES if rows >= T), ROW_CLASSES[-1])


@functools.cache
def cut_of(kind: int, N: int, K: int, groups: int, rows: int) -> Cut:
    """The cut for `rows`, a row class."""
    found = _tuned().get(key(kind, N, K, groups, rows))
    return Cut(*found) if found is not None else default_cut(kind, N, K, groups, rows)


def default_cut(kind: int, N: int, K: int, groups: int, rows: int) -> Cut:
    """A cut for what nobody measured: kind 0 multiplies FP8, 1 and 2 bf16, whose tiles are twice as large."""
    channels = 128 if kind == 0 else 64
    if rows <= 64:
        wide = groups * N * num_splits(N, K, groups) >= 128 * NUM_SMS and rows <= 16
        return Cut(128 if wide else 64, rows, channels, 6, 4, 0)
    if rows <= 256:
        return Cut(128, 64, channels, 4, 4)
    return Cut(128, 128, channels, 4, 8)
