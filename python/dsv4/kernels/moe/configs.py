"""How the grouped products are cut at each size: data, measured on an H200; no entry changes a bit of any result."""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """One program's share: weight rows by pairs, its warps, and how many steps of 128 channels are on their way.

    registers  the most of a thread, so that more programs fit on a multiprocessor; 0: as many as the compiler takes
    """

    rows: int
    pairs: int
    warps: int
    stages: int
    registers: int = 0


# Up to this many pairs per expert on average: (w13, w2). Blocks of pairs are cut once, so both share `pairs`.
_FP8 = (
    (0.03, (Tile(64, 16, 4, 4), Tile(64, 16, 4, 4))),
    (0.06, (Tile(128, 16, 4, 3), Tile(64, 16, 4, 4))),
    (8.0, (Tile(128, 16, 4, 3), Tile(128, 16, 4, 3))),
    (48.0, (Tile(128, 32, 4, 3, 168), Tile(128, 32, 4, 3, 168))),
    (float("inf"), (Tile(128, 64, 4, 3), Tile(128, 64, 4, 3))),
)
_BF16 = (
    (0.03, (Tile(64, 16, 4, 4), Tile(64, 16, 4, 5))),
    (0.06, (Tile(128, 16, 4, 3), Tile(64, 16, 4, 5))),
    (8.0, (Tile(128, 16, 4, 4), Tile(128, 16, 4, 4))),
    (48.0, (Tile(128, 32, 4, 3), Tile(128, 32, 4, 3))),
    (float("inf"), (Tile(128, 128, 4, 3), Tile(256, 128, 8, 3))),
)


def tiles_of(activations: str, num_pairs: int, E: int) -> tuple[Tile, Tile]:
    """Tiles of the two products for `num_pairs` pairs of E experts."""
    table = _FP8 if activations == "w4a8" else _BF16
    return next(tiles for most, tiles in table if num_pairs <= most * E)
