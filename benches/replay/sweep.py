"""Every rule over every pool size: who finds how much of a trace, and how much of the bounds that is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benches.replay.bound import choices, full_bound, window_bound
from benches.replay.checkpoints import CheckpointRule
from benches.replay.core import CoreRule
from benches.replay.geometry import GB, full_block_bytes, sglang_swa_bytes, window_bytes
from benches.replay.rule import PoolTooSmall, Rule, replay
from benches.replay.sglang import Keep, SglangRule
from benches.replay.trace import Request
from benches.replay.vllm import Retention, VllmRule

SIZES_GB = (5, 10, 20, 50, 100, 200)
SHARES = (0.005, 0.015, 0.05, 0.1, 0.2, 0.3)
CORE_SHARES = (0.1, 0.15, 0.2)
SPARE_TOKENS = 4096

Build = Callable[[int], Rule]


@dataclass(frozen=True)
class Contender:
    """A rule at any pool size; a family's members differ in their SWA share alone, which the label tells."""

    family: str
    label: str
    build: Build

    @property
    def name(self) -> str:
        return f"{self.family}, {self.label}" if self.label else self.family


@dataclass(frozen=True)
class Row:
    """Hit rates of one contender in the order of the sizes; None where a prompt does not fit the pool."""

    name: str
    family: str
    rates: tuple[float | None, ...]


def contenders() -> list[Contender]:
    """vLLM has one pool and no share; SGLang's is SWA tokens per full token, the paper rule's is of bytes."""
    found = [
        Contender("vLLM dense", "", _vllm(Retention(dense=True))),
        Contender("vLLM latest", "", _vllm(Retention())),
        Contender("vLLM latest + 4,096", "", _vllm(Retention(every=4096))),
        Contender("vLLM latest + junctions", "", _vllm(Retention(junctions=True))),
    ]
    keeps: tuple[Keep, ...] = ("dense", "kept", "branch")
    for keep in keeps:
        for ratio in SHARES:
            label = f"ratio {100 * ratio:g} % = {100 * sglang_swa_bytes(ratio):.0f} % of bytes"
            found.append(Contender(f"SGLang {keep}", label, _sglang(keep, ratio)))
    for family, spare_every in (("dsv4 on paper", None), ("dsv4 on paper + spare", SPARE_TOKENS)):
        found += [Contender(family, f"{100 * share:g} % of bytes", _paper(share, spare_every)) for share in SHARES]
    found += [Contender("dsv4 core", f"{100 * share:g} % of bytes", _core(share)) for share in CORE_SHARES]
    return found


def _vllm(retention: Retention) -> Build:
    return lambda pool_bytes: VllmRule.of_bytes(pool_bytes, retention)


def _sglang(keep: Keep, ratio: float) -> Build:
    return lambda pool_bytes: SglangRule.of_bytes(pool_bytes, ratio, keep)


def _paper(share: float, spare_every: int | None) -> Build:
    return lambda pool_bytes: CheckpointRule.of_bytes(pool_bytes, share, spare_every)


def _core(share: float) -> Build:
    return lambda pool_bytes: CoreRule.of_bytes(pool_bytes, share)


def bounds(requests: Sequence[Request], sizes_gb: Sequence[int], steps: int = 2000) -> list[Row]:
    """The full bound and the window bound, as hit rates; the lower one of the two holds for every rule with windows."""
    asked, block = sum(request.num_input_tokens for request in requests), full_block_bytes()
    known = choices(requests)
    full = [full_bound(requests, size * GB // block) / asked for size in sizes_gb]
    window = [
        min(rate, window_bound(requests, size * GB / block, window_bytes() / block, steps=steps, known=known) / asked)
        for size, rate in zip(sizes_gb, full, strict=True)
    ]
    return [Row("bound, windows cost nothing", "", tuple(full)), Row("bound, with windows", "", tuple(window))]


def unlimited(requests: Sequence[Request], sizes_gb: Sequence[int]) -> Row:
    """The paper rule without a limit: what is lost to prefixes that fork for the first time, whatever the pool."""
    rate = replay(CheckpointRule(1 << 40, 1 << 40), requests).rate
    return Row("dsv4 on paper, unlimited", "", (rate,) * len(sizes_gb))


def measure(requests: Sequence[Request], sizes_gb: Sequence[int], build: Build) -> tuple[float | None, ...]:
    """One contender's hit rates."""
    rates: list[float | None] = []
    for size in sizes_gb:
        try:
            rates.append(replay(build(size * GB), requests).rate)
        except PoolTooSmall:
            rates.append(None)
    return tuple(rates)


def rows(requests: Sequence[Request], sizes_gb: Sequence[int] = SIZES_GB) -> Iterator[Row]:
    """One row per contender, as soon as it is measured."""
    for contender in contenders():
        yield Row(contender.name, contender.family, measure(requests, sizes_gb, contender.build))


def best_of(found: Sequence[Row]) -> list[Row]:
    """Per family the best rate at each size, over its shares."""
    families = dict.fromkeys(row.family for row in found)
    best = []
    for family in families:
        columns = zip(*(row.rates for row in found if row.family == family), strict=True)
        rates = (max((rate for rate in column if rate is not None), default=None) for column in columns)
        best.append(Row(family, family, tuple(rates)))
    return best
