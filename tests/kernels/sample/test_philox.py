"""Counter-based draws: the published vectors, and independence of everything but seed, choice and position."""

from __future__ import annotations

import numpy as np
import pytest

from dsv4.errors import Violation
from dsv4.kernels.sample.philox import philox, uniforms


def words(*values: int) -> tuple[np.ndarray, ...]:
    return tuple(np.array([value], dtype=np.uint64) for value in values)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # known answers of the Random123 distribution, kat_vectors, philox4x32 10
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_published_vectors_hold(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]) -> None:
    found = philox(words(*counter), words(*key))  # type: ignore[arg-type]
    assert tuple(int(word[0]) for word in found) == expected


def draws(seeds: list[int], choices: list[int], positions: list[int]) -> list[float]:
    as_array = [np.array(values, dtype=np.int64) for values in (seeds, choices, positions)]
    return list(uniforms(*as_array).tolist())


def test_a_draw_does_not_depend_on_who_else_draws() -> None:
    rows = [(seed, choice, position) for seed in (-5, 0, 2**63 - 1) for choice in (0, 3) for position in (0, 1, 4000)]
    together = draws(*map(list, zip(*rows, strict=True)))
    alone = [draws([s], [c], [p])[0] for s, c, p in rows]
    backwards = draws(*map(list, zip(*rows[::-1], strict=True)))[::-1]
    assert together == alone == backwards


def test_seed_choice_and_position_each_change_the_draw() -> None:
    base = draws([7], [0], [0])
    assert len({base[0], *draws([8], [0], [0]), *draws([7], [1], [0]), *draws([7], [0], [1])}) == 4
    assert draws([-(2**63)], [0], [0]) != draws([2**63 - 1], [0], [0])


def test_draws_are_uniform() -> None:
    count = 200_000
    positions = np.arange(count)
    found = uniforms(np.full(count, 11), np.zeros(count, dtype=np.int64), positions)
    assert 0.0 <= found.min() < found.max() < 1.0
    observed, _ = np.histogram(found, bins=100, range=(0.0, 1.0))
    chi_square = float(((observed - count / 100) ** 2 / (count / 100)).sum())
    assert 50 < chi_square < 160  # 99 degrees of freedom: mean 99, standard deviation 14
    assert abs(float(np.corrcoef(found[:-1], found[1:])[0, 1])) < 0.01


def test_arguments_of_different_lengths_are_refused() -> None:
    with pytest.raises(Violation, match="one seed"):
        uniforms(np.zeros(2, dtype=np.int64), np.zeros(1, dtype=np.int64), np.zeros(2, dtype=np.int64))
