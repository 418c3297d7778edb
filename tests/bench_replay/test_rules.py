"""Traces small enough to work out by hand."""

from __future__ import annotations

import random

import pytest
from benches.replay.checkpoints import CheckpointRule
from benches.replay.rule import PoolTooSmall, Rule
from benches.replay.sglang import SglangRule
from benches.replay.trace import request
from benches.replay.vllm import Retention, VllmRule
from tests.bench_replay import forest

A, B, C = (1, 2), (11, 12), (21, 22)
A3, B3, C3 = (1, 2, 3), (11, 12, 13), (21, 22, 23)


def found(rule: Rule, *chains: tuple[int, ...]) -> list[int]:
    return [rule.request(request(chain, number)) for number, chain in enumerate(chains)]


# vLLM, 250 blocks, chunks of one block. A request takes 105, 105 and 5 for its last token; 82 come back before the
# second 105, 82 + 22 before the 5. What A leaves, front first: 35 never used, 82, 82, W1 22, 5, M2, M1, W2 22.


def test_vllm_dense_loses_a_prefix_to_two_others_in_a_pool_that_holds_ten() -> None:
    # B takes 35 + 70, 12 + 82 + 11 of W1, 5 of W1: M2, M1 and W2 stay.
    assert found(VllmRule(250, Retention(dense=True), 256), A, B, A) == [0, 0, 512]
    # C takes 6 of W1, 5, then M2, M1, W2 and 70 of B's: A is gone; 12, 82, 11 of B's W1, 5 of it: B stays.
    assert found(VllmRule(250, Retention(dense=True), 256), A, B, C, B) == [0, 0, 0, 512]
    assert found(VllmRule(250, Retention(dense=True), 256), A, B, C, A) == [0, 0, 0, 0]


def test_vllm_selective_reuses_what_nobody_can_find_first() -> None:
    # Each prefix keeps 2 + 22 blocks; 250 - 72 leaves more than the 133 that a request needs at once.
    assert found(VllmRule(250, Retention(), 256), A, B, C, A) == [0, 0, 0, 512]


def test_vllm_hits_end_where_every_group_has_its_window() -> None:
    # Only the end of A3 has one; a prompt that leaves it after two blocks has main blocks but no window.
    assert found(VllmRule(900, Retention(), 256), A3, (1, 2, 9), A3) == [0, 0, 768]
    # A junction is remembered when it is left, so the third prompt finds it.
    assert found(VllmRule(900, Retention(junctions=True), 256), A3, (1, 2, 9), (1, 2, 8)) == [0, 0, 512]
    # Dense has every window, and a multiple of 512 has one with an interval of 512.
    assert found(VllmRule(900, Retention(dense=True), 256), A3, (1, 2, 9)) == [0, 512]
    assert found(VllmRule(900, Retention(every=512), 256), A3, (1, 2, 9)) == [0, 512]


def test_vllm_refuses_what_does_not_fit() -> None:
    with pytest.raises(PoolTooSmall, match="210 blocks wanted, 100 of 100 left"):
        found(VllmRule(100), A)


# SGLang, pages of one block.


def test_sglang_dense_drops_a_whole_prefix_for_windows_though_the_full_pool_has_room() -> None:
    # 20 full pages hold everything. SWA 7: A3 takes 3. B3 takes 3, the page to generate into wants 2 of the 1 left:
    # the least recent node is A3, a leaf, and goes altogether.
    rule = SglangRule(20, 7, "dense")
    assert found(rule, A3, B3) == [0, 0]
    assert rule.tree.num_full == 20 - 3
    assert found(rule, B3, A3) == [768, 0]


def test_sglang_eager_keeps_the_last_window_of_each() -> None:
    assert found(SglangRule(20, 7, "eager"), A3, B3, C3, A3) == [0, 0, 0, 768]


def test_sglang_needs_a_live_window_where_the_hit_ends() -> None:
    assert found(SglangRule(20, 7, "eager"), A3, (1, 2, 9), (1, 2, 8)) == [0, 0, 0]
    assert found(SglangRule(20, 7, "branch"), A3, (1, 2, 9), (1, 2, 8)) == [0, 0, 512]


def test_sglang_evicts_full_leaves_first() -> None:
    # 8 full pages, one kept for the token being generated: A3 and B3 fit, C3 evicts the least recent leaf. With chunks
    # of one page A3's nodes are pages, and the third alone makes room for 21, its second for 22, its first for 23.
    rule = SglangRule(8, 20, "dense", chunk=256)
    assert found(rule, A3, B3) == [0, 0]
    assert found(rule, (21,)) == [0]
    assert rule.tree.num_full == 1
    assert found(rule, A3) == [512 + 256]
    assert found(rule, (31, 32)) == [0]
    assert found(rule, B3) == [256]


def test_sglang_never_evicts_what_the_running_request_stands_on() -> None:
    assert found(SglangRule(4, 3, "dense", chunk=256), A3) == [0]
    with pytest.raises(PoolTooSmall, match="full pool is held"):
        found(SglangRule(3, 20, "dense", chunk=256), A3)
    with pytest.raises(PoolTooSmall, match="SWA pool is held"):
        found(SglangRule(20, 2, "dense", chunk=256), A3)


def test_sglang_thins_old_windows_before_it_drops_the_latest() -> None:
    dense, kept = SglangRule(40, 9, "dense", chunk=256), SglangRule(40, 9, "kept", chunk=256)
    long = tuple(range(100, 108))  # 3 + 8 + 2 pages of SWA in 9: dense takes all of A3's, kept the inner nodes'
    assert found(dense, A3, long, A3) == [0, 0, 0]
    assert found(kept, A3, long, A3) == [0, 0, 768]


# dsv4 on paper


def test_paper_rule_evicts_the_deepest_block_of_the_least_recent_prefix() -> None:
    # A window everywhere: of A3 block 3 goes first.
    assert found(CheckpointRule(5, 8, 256), A3, B3, A3) == [0, 0, 512]
    # After (1,) the order is 2, 12, 11, 1: block 21 takes the place of 2.
    rule = CheckpointRule(num_blocks=4, num_checkpoints=8)
    assert found(rule, A, B, (1,), (21,), B, A) == [0, 0, 0, 0, 512, 256]


def test_paper_rule_forgets_checkpoints_without_blocks_and_blocks_without_checkpoints_find_nothing() -> None:
    rule = CheckpointRule(num_blocks=100, num_checkpoints=1)
    assert found(rule, A3, B3, A3, A3) == [0, 0, 0, 768]


def test_paper_rule_evicts_a_checkpoint_that_its_conversation_has_passed_before_another() -> None:
    longer, retried = (*A3, 4, 5), (*A3, 9)
    # Of three checkpoints the second turn makes A3's the most recent but one. C3 evicts B3's in the list as specified;
    # A3's where it is spare.
    assert found(CheckpointRule(100, 3), B3, A3, longer, C3, B3) == [0, 0, 768, 0, 0]
    assert found(CheckpointRule(100, 3, 0), B3, A3, longer, C3, B3) == [0, 0, 768, 0, 768]
    # A fork is not spare: once retried has left A3 elsewhere, longer's end is the least recent.
    assert found(CheckpointRule(100, 3, 0), A3, longer, retried, C3, (*A3, 8)) == [0, 768, 768, 0, 768]


def test_paper_rule_keeps_spare_checkpoints_only_where_there_is_room() -> None:
    # One every two blocks: a prompt that leaves A3 after two of them finds them, the first time.
    assert found(CheckpointRule(100, 4, 512), A3, (1, 2, 9)) == [0, 512]
    assert found(CheckpointRule(100, 4, 0), A3, (1, 2, 9)) == [0, 0]
    # B3's end takes the place of A3's spare one, not of its end.
    assert found(CheckpointRule(100, 2, 512), A3, B3, (1, 2, 9)) == [0, 0, 0]
    assert found(CheckpointRule(100, 2, 512), A3, B3, A3) == [0, 0, 768]


# All of them


@pytest.mark.parametrize("keep", ["dense", "kept", "eager", "branch"])
def test_sglang_pages_are_in_the_tree_or_left(keep: str, rng: random.Random) -> None:
    rule = SglangRule(60, 24, keep, chunk=512)  # type: ignore[arg-type]
    for one in forest.trace(rng, num_requests=300, most=20):
        rule.request(one)
        full, swa = rule.tree.held()
        assert (full + rule.tree.num_full, swa + rule.tree.num_swa) == (60, 24)
        assert min(rule.tree.num_full, rule.tree.num_swa) >= 0


@pytest.mark.parametrize("retention", [Retention(dense=True), Retention(), Retention(junctions=True)], ids=str)
def test_vllm_blocks_all_come_back(retention: Retention, rng: random.Random) -> None:
    rule = VllmRule(900, retention, chunk=512)
    requests = forest.trace(rng, num_requests=300, most=20)
    for at in range(0, len(requests), 3):
        rule.together(requests[at : at + 3])
        assert rule.num_queued() == 900
