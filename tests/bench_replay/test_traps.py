"""The published collapses happen where they were published and end where their fixes end them."""

from __future__ import annotations

from benches.replay.checkpoints import CheckpointRule
from benches.replay.geometry import VLLM_STRIDE, sglang_token_bytes
from benches.replay.sglang import Keep, SglangRule
from benches.replay.traps import Turns, conversations, replayed_prefixes, small_window_pool
from benches.replay.vllm import Retention, VllmRule


def test_dense_vllm_needs_a_waves_blocks_to_find_anything_again() -> None:
    # Ten blocks a prefix, two at a time: one wave takes 105 · 10 · 2 = 2,100 blocks.
    def rate(num_blocks: int, *, dense: bool) -> float:
        return replayed_prefixes(VllmRule(num_blocks, Retention(dense=dense), 256), 2, tokens=2_570).rate

    assert rate(2_000, dense=True) == 0.0
    assert rate(2_300, dense=True) == 2560 / 2570
    assert rate(400, dense=False) == 2560 / 2570


def test_the_published_prefixes_collapse_and_return_at_the_published_sizes() -> None:
    assert replayed_prefixes(VllmRule(72_000, Retention(dense=True)), 4).rate == 0.0
    assert replayed_prefixes(VllmRule(76_000, Retention(dense=True)), 4).rate > 0.99
    assert replayed_prefixes(VllmRule(2_500), 4).rate > 0.99
    assert replayed_prefixes(VllmRule(4_000), 8).rate > 0.99


def test_windows_that_are_no_checkpoint_cost_the_paper_rule_nothing() -> None:
    paper = CheckpointRule.of_bytes(4_000 * VLLM_STRIDE, 0.1)
    assert replayed_prefixes(paper, 8).rate > 0.99


def test_agents_lose_their_windows_at_ratio_0_015_and_keep_them_when_eviction_thins() -> None:
    def rate(keep: Keep, ratio: float) -> float:
        return small_window_pool(SglangRule(4096, int(4096 * ratio), keep)).rate

    assert rate("dense", 0.015) < 0.1
    assert rate("kept", 0.015) > 0.8
    assert rate("kept", 0.007) < rate("kept", 0.015)
    paper = CheckpointRule.of_bytes(int(4096 * 256 * sglang_token_bytes(0.015)), 0.1, 4096)
    assert small_window_pool(paper).rate > 0.8
    # Plain recency spends its checkpoints on turns that have been passed, but comes nowhere near dense.
    assert small_window_pool(CheckpointRule(paper.num_blocks, paper.num_checkpoints)).rate > 0.6


def test_a_conversation_repeats_what_it_generated() -> None:
    shape = Turns(conversations=2, turns=3, start=512, added=256, generated=256)
    turns = list(conversations(shape))
    assert len(turns) == 6
    first = [turn for turn in turns if turn.blocks[0] == 0]
    assert [turn.num_prompt_tokens for turn in first] == [512, 1024, 1536]
    assert first[1].blocks[: len(first[0].blocks)] == first[0].blocks
    assert len(first[0].blocks) == 3
