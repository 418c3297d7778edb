"""A preempted request goes on bit for bit: the real model computes again what its lost blocks held."""

from __future__ import annotations

import os

import pytest
from tests.model.test_invariance import NUMERICS
from tests.runtime.test_prefix import Engine, equals_a_miss, prompt

from dsv4._core import PoolSizes

NUMERIC = NUMERICS["fp8 rows, fp4 index"]
NUM_TOKENS = 530
"""More than the 512 that admission reserves, so that the first request outgrows its blocks and takes the second's."""


@pytest.mark.skipif("DSV4_NIGHTLY" not in os.environ, reason="takes most of a minute; DSV4_NIGHTLY=1 runs it")
def test_what_a_preempted_request_computes_again_is_what_it_lost(seed: int) -> None:
    first, second = prompt(250, seed), prompt(10, seed + 1)
    engine = Engine(NUMERIC, cache=False, sizes=PoolSizes(full_blocks=6, swa_blocks=80, state_slots=4))
    numbers = engine.submit(first, NUM_TOKENS), engine.submit(second, NUM_TOKENS)
    while engine.step() is not None:
        pass
    engine.core.audit()
    assert engine.core.stats()["num_preemptions"] == 1
    for number, ids in zip(numbers, (first, second), strict=True):
        equals_a_miss(engine, number, NUMERIC, ids, NUM_TOKENS)
