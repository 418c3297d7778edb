"""Neither published collapse exists in the core: the real one, under the scenarios in which the rules show them."""

from __future__ import annotations

import numpy as np
import pytest
from benches.replay import notes, traps
from benches.replay.core import CoreRule, prompt, spell
from benches.replay.geometry import VLLM_STRIDE
from benches.replay.trace import P, request
from benches.replay.traps import Turns, conversations, core_conversations, core_prefixes, replayed_prefixes
from benches.replay.vllm import Retention, VllmRule


@pytest.mark.parametrize(("batch", "num_blocks"), [(4, 2_500), (8, 4_000), (4, 72_000)])
def test_replayed_prefixes_are_found_in_the_bytes_where_dense_finds_none(batch: int, num_blocks: int) -> None:
    assert replayed_prefixes(VllmRule(num_blocks, Retention(dense=True)), batch).rate == 0.0
    assert core_prefixes(num_blocks, batch).rate > 0.99


def test_replayed_prefixes_leave_the_core_whole() -> None:
    core = CoreRule.planned(2_500 * VLLM_STRIDE, 4)
    assert replayed_prefixes(core, 4).rate > 0.99
    core.core.audit()
    assert core.core.stats()["num_evicted_blocks"] == 0
    assert core.core.stats()["num_preemptions"] == 0


@pytest.mark.parametrize("ratio", [0.007, 0.015, 0.1])
def test_agents_keep_their_windows_in_the_bytes_of_any_ratio(ratio: float) -> None:
    assert core_conversations(ratio).rate > 0.87


def test_a_wave_finds_for_each_request_what_it_would_find_alone() -> None:
    core = CoreRule.planned(2_000_000_000, 3)
    first = [request((number, number + 1, number + 2), number) for number in (10, 20, 30)]
    assert core.together(first) == [0, 0, 0]
    assert core.together([first[2], request((7,), 7), first[0]]) == [3 * P, 0, 3 * P]
    core.core.audit()


def test_what_is_generated_is_what_the_next_turn_asks_for() -> None:
    # Two blocks of prompt and one of output, of which the core never computes the last token.
    core = CoreRule.planned(2_000_000_000, 1)
    turn, following = conversations(Turns(conversations=1, turns=2, start=512, added=256, generated=256))
    assert core.request(turn) == 0
    assert core.request(following) == 2 * P
    longer = request(turn.blocks, 0, prompt=512, output=257)  # the next token makes the third block whole
    core = CoreRule.planned(2_000_000_000, 1)
    core.request(longer)
    assert core.request(following) == 3 * P


def test_output_is_spelled_behind_the_prompt() -> None:
    asked = request((5, 6, 7), 0, prompt=2 * P, output=P)
    assert np.array_equal(spell(asked)[: 2 * P], prompt(asked))
    assert spell(asked)[2 * P] == 7
    assert len(spell(asked)) == 3 * P


def test_the_figures_of_the_traps_show_the_core_beside_the_rules() -> None:
    prefixes = traps.prefix_lines((4,), (2_500, 76_000))
    assert prefixes["vLLM dense, BS 4"][0] == (2_500.0, 0.0)
    assert prefixes["dsv4 core, BS 4"][0][1] > 99
    figures = notes.collapses(prefixes, traps.window_lines((0.015,)))
    assert set(figures) == {"replay_prefixes.svg", "replay_windows.svg"}
    assert all("dsv4 core" in figure for figure in figures.values())
