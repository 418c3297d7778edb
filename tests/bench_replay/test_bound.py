"""Nobody finds more than the bounds, and where the optimum can be worked out, the bounds are right."""

from __future__ import annotations

import itertools
import random

import pytest
from benches.replay.bound import choices, full_bound, window_bound
from benches.replay.checkpoints import CheckpointRule
from benches.replay.geometry import full_block_bytes, window_bytes
from benches.replay.rule import Rule, replay
from benches.replay.sglang import SglangRule
from benches.replay.trace import Request, request
from benches.replay.vllm import Retention, VllmRule
from tests.bench_replay import forest

S, W = full_block_bytes(), window_bytes()


def best_by_search(requests: list[Request], pool: float, window: float) -> int:
    """Blocks found by the best choice of one depth per request, all tried."""
    seen: dict[int, int] = {}
    options: list[list[list[tuple[int, float]]]] = []  # per request: per depth the (prev, weight) that it holds
    for number, one in enumerate(requests):
        depths: list[list[tuple[int, float]]] = [[]]
        for block in one.blocks[: one.num_hit_blocks]:
            if block not in seen:
                break
            blocks = [(prev, 1.0) for prev, weight in depths[-1] if weight == 1.0]
            depths.append([*blocks, (seen[block], 1.0), (seen[block], window + 1e-12)])
        options.append(depths)
        seen.update(dict.fromkeys(one.blocks, number))
    best = 0
    for picked in itertools.product(*(range(len(depths)) for depths in options)):
        if sum(picked) <= best:
            continue
        held = [0.0] * len(requests)
        for number, depth in enumerate(picked):
            for prev, weight in options[number][depth]:
                for gap in range(prev, number):
                    held[gap] += weight
        if max(held) <= pool + 1e-6:
            best = sum(picked)
    return best


def test_of_two_prefixes_in_turn_one_block_finds_one() -> None:
    turns = [request(chain, number) for number, chain in enumerate([(1,), (2,), (1,), (2,)])]
    assert full_bound(turns, 1) == 256
    assert full_bound(turns, 2) == 512
    assert full_bound(turns, 0) == 0


def test_belady_bypasses_what_never_returns() -> None:
    turns = [request(chain, number) for number, chain in enumerate([(1, 2), (3, 4), (5, 6), (1, 2)])]
    assert full_bound(turns, 2) == 512
    assert full_bound(turns, 1) == 256


def test_a_window_as_large_as_a_block_halves_what_fits() -> None:
    turns = [request(chain, number) for number, chain in enumerate([(1,), (2,), (1,), (2,)])]
    # In the middle gap both blocks and both windows overlap: of 2 blocks' room one hit uses all.
    assert 256 <= window_bound(turns, 2.0, 1.0) <= 1.02 * 256


def test_runs_are_the_blocks_last_seen_together() -> None:
    turns = [request(chain, number) for number, chain in enumerate([(1, 2, 3), (1, 9), (1, 2, 3)])]
    runs = choices(turns)
    assert runs.request.tolist() == [1, 2, 2]
    assert runs.prev.tolist() == [0, 1, 0]
    assert runs.blocks.tolist() == [1, 1, 2]
    assert runs.starts.tolist() == [0, 1]


@pytest.mark.parametrize("attempt", range(12))
def test_bounds_hold_what_search_finds(attempt: int, rng: random.Random) -> None:
    requests = forest.trace(rng, num_requests=7, most=4)
    pool = rng.randint(1, 8)
    optimum = 256 * best_by_search(requests, pool, 0.0)
    assert full_bound(requests, pool) == optimum
    assert window_bound(requests, pool, 0.0, steps=300) >= optimum - 1e-3
    window = rng.choice((0.5, 1.0, 3.3))
    assert window_bound(requests, pool, window, steps=300) >= 256 * best_by_search(requests, pool, window) - 1e-3


def test_the_window_bound_comes_down_to_belady_where_windows_cost_nothing(rng: random.Random) -> None:
    requests = forest.trace(rng, num_requests=400, most=30)
    for pool in (10, 40, 120):
        exact = full_bound(requests, pool)
        assert exact - 1e-3 <= window_bound(requests, pool, 0.0, steps=1500) <= 1.03 * exact


def rules(pool_bytes: int) -> list[Rule]:
    keeps = ("dense", "kept", "eager", "branch")
    retentions = (Retention(dense=True), Retention(), Retention(every=512), Retention(junctions=True))
    return [
        *(SglangRule.of_bytes(pool_bytes, ratio, keep, 512) for keep in keeps for ratio in (0.1, 0.3)),  # type: ignore[arg-type]
        *(VllmRule.of_bytes(pool_bytes, retention, 256) for retention in retentions),
        *(CheckpointRule.of_bytes(pool_bytes, 0.1, spare_every) for spare_every in (None, 0, 512)),
    ]


@pytest.mark.parametrize("num_blocks", [240, 500, 1000])
def test_no_rule_finds_more_than_the_bounds(num_blocks: int, rng: random.Random) -> None:
    requests = forest.trace(rng, num_requests=400, most=60)
    pool_bytes = num_blocks * S
    most = min(full_bound(requests, num_blocks), window_bound(requests, num_blocks, W / S, steps=300))
    found = [replay(rule, requests).num_hit_tokens for rule in rules(pool_bytes)]
    assert max(found) <= most
    assert min(found) > 0
