"""The two published collapses as scenarios that run in seconds, on any rule.

**Replayed prefixes** (vllm#43447). 2·BS distinct prefixes of 44,253 tokens in waves of BS, then all of them again. A
pool that holds every prefix many times over finds nothing in the second pass while window blocks queue behind them.
The core's pool has a vLLM pool's bytes.

**Small window pool** (sgl#26907: SWA ratio 0.015, 30 agent conversations, 8.18 % → 94.49 %). Conversations take turns
at random, each turn longer than the last one; the full pool holds all of them. The published run's lengths are not
known: ours are stated in `Turns`, so the figures are to be compared in kind. The core has both pools' bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from benches.replay.checkpoints import CheckpointRule
from benches.replay.core import CoreRule
from benches.replay.geometry import VLLM_STRIDE, sglang_token_bytes
from benches.replay.rule import PoolTooSmall, Rule, Score
from benches.replay.sglang import Keep, SglangRule
from benches.replay.trace import P, Request, request
from benches.replay.vllm import Retention, VllmRule

PREFIX_TOKENS = 44_253
CHAINS = 1 << 20  # block numbers per chain
PAPER_SHARE = 0.1  # of the paper rule's bytes, for checkpoints
SMALL_SHARE = 0.015  # as much of the core's, where it may not choose
POOLS = (1_500, 2_000, 2_500, 3_000, 3_500, 4_000, 8_000, 18_000, 36_000, 72_000, 76_000, 144_000, 152_000)  # blocks
RATIOS = (0.005, 0.007, 0.015, 0.05, 0.1, 0.3)
NUM_FULL = 4096  # pages that hold all conversations

Lines = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Turns:
    """Shape of the agent conversations: tokens at the start, tokens added and generated per turn."""

    conversations: int = 30
    turns: int = 12
    start: int = 8_192
    added: int = 1_536
    generated: int = 512
    seed: int = 26907


def chain(number: int, tokens: int) -> range:
    """The named blocks of a private prefix."""
    return range(number * CHAINS, number * CHAINS + tokens // P)


def replayed_prefixes(rule: Rule, batch: int, tokens: int = PREFIX_TOKENS) -> Score:
    """Second pass over 2·batch prefixes: tokens found and asked for."""
    prefixes = [request(chain(number, tokens), number, prompt=tokens) for number in range(2 * batch)]
    waves = [prefixes[:batch], prefixes[batch:]]
    for wave in waves:
        rule.together(wave)
    found = sum(sum(rule.together(wave)) for wave in waves)
    return Score(found, 2 * batch * tokens)


def conversations(shape: Turns) -> Iterator[Request]:
    """Turns in an order drawn from the seed; each prompt repeats the whole conversation before it."""
    order = [number for number in range(shape.conversations) for _ in range(shape.turns)]
    random.Random(shape.seed).shuffle(order)
    taken = [0] * shape.conversations
    for at, number in enumerate(order):
        tokens = shape.start + taken[number] * (shape.added + shape.generated)
        taken[number] += 1
        yield request(chain(number, tokens + shape.generated), at, prompt=tokens, output=shape.generated)


def small_window_pool(rule: Rule, shape: Turns | None = None) -> Score:
    """Tokens found over all turns."""
    found = asked = 0
    for turn in conversations(shape or Turns()):
        found += rule.request(turn)
        asked += turn.num_input_tokens
    return Score(found, asked)


def core_prefixes(num_blocks: int, batch: int) -> Score:
    """The replayed prefixes through the core, on the bytes of so many vLLM blocks."""
    return replayed_prefixes(CoreRule.planned(num_blocks * VLLM_STRIDE, batch), batch)


def core_conversations(ratio: float, num_full: int = NUM_FULL) -> Score:
    """The agent conversations through the core, on the bytes of SGLang's pools at that ratio."""
    return small_window_pool(CoreRule.planned(pools_bytes(ratio, num_full), Turns().conversations))


def pools_bytes(ratio: float, num_full: int = NUM_FULL) -> int:
    """What SGLang's full pool of so many pages and its SWA pool take together."""
    return int(num_full * P * sglang_token_bytes(ratio))


def prefix_rows(batches: Sequence[int] = (4, 8)) -> list[tuple[str, str, str]]:
    """(scenario, rule, second-pass hit rate) around the published thresholds."""
    rows = []
    for batch in batches:
        whole = 18_000 * batch  # vllm's dense order needs about one wave's blocks: 105 · 44,253 / 256 · BS
        cases: tuple[tuple[Retention, str, tuple[int, ...]], ...] = (
            (Retention(dense=True), "vLLM dense", (2_500, whole // 2, whole, 19_000 * batch)),
            (Retention(), "vLLM latest", (2_000, 2_500, 4_000)),
        )
        for retention, name, sizes in cases:
            for size in sizes:
                rate = _rate(partial(replayed_prefixes, VllmRule(size, retention), batch))
                rows.append((f"2·{batch} prefixes", f"{name}, {size:,} blocks", rate))
        paper = CheckpointRule.of_bytes(1000 * batch * VLLM_STRIDE, PAPER_SHARE)
        rate = _rate(partial(replayed_prefixes, paper, batch))
        rows.append((f"2·{batch} prefixes", f"dsv4 on paper, bytes of {1000 * batch:,} blocks", rate))
        for size in (2_000, 2_500, 3_500, 4_000, whole):
            rate = _rate(partial(core_prefixes, size, batch))
            rows.append((f"2·{batch} prefixes", f"dsv4 core, bytes of {size:,} blocks", rate))
    return rows


def window_rows(ratios: Sequence[float] = (0.007, 0.015, 0.1)) -> list[tuple[str, str, str]]:
    """(scenario, rule, hit rate) of the agent conversations at each SWA ratio."""
    rows = []
    keeps: tuple[Keep, ...] = ("dense", "kept", "eager", "branch")
    for ratio in ratios:
        for keep in keeps:
            rate = _rate(partial(small_window_pool, SglangRule(NUM_FULL, int(NUM_FULL * ratio), keep)))
            rows.append((f"SWA ratio {ratio}", f"SGLang {keep}", rate))
        for name, spare_every in (("dsv4 on paper, same bytes", None), ("dsv4 on paper + spare, same bytes", 4096)):
            paper = CheckpointRule.of_bytes(pools_bytes(ratio), PAPER_SHARE, spare_every)
            rows.append((f"SWA ratio {ratio}", name, _rate(partial(small_window_pool, paper))))
        rows.append((f"SWA ratio {ratio}", "dsv4 core, same bytes", _rate(partial(core_conversations, ratio))))
        forced = CoreRule.of_bytes(pools_bytes(ratio), SMALL_SHARE)
        name = f"dsv4 core, same bytes, forced to {100 * SMALL_SHARE:g} % for checkpoints"
        rows.append((f"SWA ratio {ratio}", name, _rate(partial(small_window_pool, forced))))
    return rows


def prefix_lines(batches: Sequence[int] = (4, 8), sizes: Sequence[int] = POOLS) -> Lines:
    """Second-pass hit rate in % by pool size in vLLM's blocks, or the bytes of as many."""
    lines: Lines = {}
    for batch in batches:
        for name, retention in (("vLLM dense", Retention(dense=True)), ("vLLM latest", Retention())):
            score = [(size, partial(replayed_prefixes, VllmRule(size, retention), batch)) for size in sizes]
            lines[f"{name}, BS {batch}"] = _points(score)
        lines[f"dsv4 core, BS {batch}"] = _points([(size, partial(core_prefixes, size, batch)) for size in sizes])
    return lines


def window_lines(ratios: Sequence[float] = RATIOS) -> Lines:
    """Hit rate in % of the agent conversations by SGLang's SWA ratio in %, or the bytes it makes."""
    keeps: tuple[Keep, ...] = ("dense", "kept", "eager")
    lines: Lines = {}
    for keep in keeps:
        rules = [(100 * ratio, SglangRule(NUM_FULL, int(NUM_FULL * ratio), keep)) for ratio in ratios]
        lines[f"SGLang {keep}"] = _points([(x, partial(small_window_pool, rule)) for x, rule in rules])
    lines["dsv4 core"] = _points([(100 * ratio, partial(core_conversations, ratio)) for ratio in ratios])
    return lines


def _points(runs: Sequence[tuple[float, Callable[[], Score]]]) -> list[tuple[float, float]]:
    """A point per run that fits."""
    points = []
    for x, run in runs:
        try:
            points.append((float(x), 100 * run().rate))
        except PoolTooSmall:
            continue
    return points


def _rate(run: Callable[[], Score]) -> str:
    try:
        return f"{100 * run().rate:.2f} %"
    except PoolTooSmall:
        return "does not fit"
