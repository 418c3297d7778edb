"""Counter-based random numbers: the same (seed, choice, position) gives the same number, on any device, in any order.

Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC'11); ten rounds, multipliers and Weyl
constants as published there. Key = the 64 bits of the seed, counter = (position, choice, 0, 0). Nothing has a state, so
a draw does not depend on the batch, on preemption, or on a restart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsv4.kernels.contract import expect

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)
_ROUNDS = 10

Words = NDArray[np.uint64]
"""Values below 2^32, kept in 64 bits so that products do not overflow."""


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> tuple[Words, Words, Words, Words]:
    """Four words from a counter of four and a key of two; elementwise over arrays of one shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0 = _MULTIPLIERS[0] * c0
        p1 = _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> _WORD) ^ c1 ^ k0, p1 & _LOW, (p0 >> _WORD) ^ c3 ^ k1, p0 & _LOW
        k0 = (k0 + _WEYL[0]) & _LOW
        k1 = (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def uniforms(seeds: NDArray[np.int64], choices: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Numbers in [0, 1), multiples of 2^-53.

    seeds      [B] int64, every value is a seed of its own
    choices    [B] int64, 0 <= choice < 2^32: index among the choices of one prompt
    positions  [B] int64, 0 <= position < 2^32: tokens generated before this one
    """
    expect(seeds.shape == choices.shape == positions.shape, "one seed, choice and position per row")
    key = seeds.astype(np.int64).view(np.uint64)
    zero = np.zeros_like(key)
    counter = (positions.astype(np.uint64), choices.astype(np.uint64), zero, zero)
    w0, w1, _, _ = philox(counter, (key & _LOW, key >> _WORD))
    bits = (w0 << np.uint64(21)) | (w1 >> np.uint64(11))
    return bits.astype(np.float64) * 2.0**-53
