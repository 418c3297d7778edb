"""The core under the replay: what it finds is what its tokens say, block by block."""

from __future__ import annotations

import random

import numpy as np
from benches.replay.checkpoints import CheckpointRule
from benches.replay.core import CoreRule, prompt
from benches.replay.geometry import GB
from benches.replay.rule import replay
from benches.replay.trace import P, prompt_tokens, request


def test_prompts_are_spelled_as_the_trace_spells_them() -> None:
    for asked in (request((7, 65_537, 3), 5), request((), 2, prompt=600), request((1,), 0, prompt=P)):
        assert np.array_equal(prompt(asked), prompt_tokens(asked))


def test_a_repeated_prompt_is_found_up_to_its_last_boundary_and_a_forked_one_after_it_forked_once() -> None:
    core = CoreRule.of_bytes(2 * GB, 0.2)
    assert core.request(request((1, 2, 3), 0)) == 0
    assert core.request(request((1, 2, 3), 1)) == 3 * P
    assert core.request(request((1, 2, 9), 2)) == 0  # blocks 1 and 2 are there, a window before 9 is not
    assert core.request(request((1, 2, 10), 3)) == 2 * P
    core.core.audit()


def test_with_room_for_everything_the_core_finds_what_the_rule_on_paper_finds() -> None:
    rng = random.Random(20251125)
    requests = []
    chains: list[tuple[int, ...]] = [()]
    for number in range(60):
        chain = (*rng.choice(chains), *(1000 + 10 * number + i for i in range(rng.randint(1, 4))))
        chains.append(chain)
        requests.append(request(chain, number))
    core, paper = CoreRule.of_bytes(4 * GB, 0.5), CheckpointRule(1 << 30, 1 << 30)
    found = [(core.request(each), paper.request(each)) for each in requests]
    assert [ours for ours, _ in found] == [theirs for _, theirs in found]
    assert sum(ours for ours, _ in found) > 0
    assert replay(core, requests).rate > 0.5
