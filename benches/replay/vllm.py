"""vLLM's rule as published: five cache groups over one pool of equal blocks, one free queue in LRU order.

    take from the front          give back at the end
    ┌───────┐ ◀── loose ◀── [run][run][run] … [run] ◀──┐     a hashed block stays findable while it queues
    │ taken │ ─────────── request runs ────────────────┘     loose: blocks without a hash; only `Retention` other
    └───────┘                                                than dense puts them in front

Per 256 tokens a request takes 1 main block, 2 x 4 SWA blocks, 64 C4-state and 32 C128-state blocks. A hit at a boundary
(multiple of 256, the lcm) needs all main blocks below it, and of the others those that cover the last window: 4 + 2 +
16 = 22. The hybrid coordinator takes the longest boundary that every group has. So we queue runs of blocks that live
and die together: a main block, the 22 of a boundary, the other 82. A run loses its meaning with its first block taken.

Window blocks that slid out are given back before the next chunk, all others when the request ends, last block first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benches.replay.geometry import VLLM_STRIDE
from benches.replay.rule import PoolTooSmall, Rule
from benches.replay.trace import P, Request

WINDOW_BLOCKS = 2 * 2 + 2 + 16
STEADY_BLOCKS = 3 + 3 + 3 + 17  # what the four windowed groups hold of a running request
PASSING_BLOCKS = 2 * 4 + P // 4 + P // 8 - WINDOW_BLOCKS


@dataclass(frozen=True)
class Retention:
    """At which boundaries the window blocks get a hash.

    dense      every one (the default before vllm#52216); blocks without use go to the end of the queue as well
    every      multiples of so many tokens, besides the last boundary of the prompt; 0: none
    junctions  also where a request leaves a prefix whose main blocks it found (vllm#47782)
    """

    dense: bool = False
    every: int = 0
    junctions: bool = False


@dataclass(eq=False, slots=True)
class Run:
    """Blocks given back together; count falls as they are taken, holders counts running requests."""

    block: int
    count: int
    holders: int = 1


@dataclass(slots=True)
class Running:
    """What one request holds: main runs in order, the window run of its last boundary, loose blocks of a partial."""

    request: Request
    mains: list[Run]
    window: Run | None
    passed: list[Run | int]
    hit: int
    junction: int
    partial: int = 0


@dataclass(eq=False)
class VllmRule(Rule):
    """One engine; num_blocks of VLLM_STRIDE bytes each."""

    num_blocks: int
    retention: Retention = field(default_factory=Retention)
    chunk: int = 2048

    def __post_init__(self) -> None:
        self._loose = self.num_blocks
        self._num_free = self.num_blocks
        self._queue: OrderedDict[Run, None] = OrderedDict()
        self._mains: dict[int, Run] = {}
        self._windows: dict[int, Run] = {}

    @classmethod
    def of_bytes(cls, pool_bytes: int, retention: Retention, chunk: int = 2048) -> VllmRule:
        """The rule on a pool of so many bytes."""
        return cls(pool_bytes // VLLM_STRIDE, retention, chunk)

    def request(self, request: Request) -> int:
        return self.together([request])[0]

    def together(self, wave: Sequence[Request]) -> list[int]:
        """One token budget a step: the prompts of a wave are computed one after another, all end together."""
        running = [self._start(request) for request in wave]
        for one in running:
            self._compute(one)
        for one in running:
            self._finish(one)
        return [P * one.hit for one in running]

    def num_queued(self) -> int:
        """Blocks that no request holds, counted anew."""
        return self._loose + sum(run.count for run in self._queue)

    def _start(self, request: Request) -> Running:
        chain, limit = request.blocks, request.num_hit_blocks
        matched = 0
        while matched < limit and chain[matched] in self._mains:
            matched += 1
        hit = matched
        while hit and chain[hit - 1] not in self._windows:
            hit -= 1
        mains = [self._hold(self._mains[block]) for block in chain[:hit]]
        window = self._hold(self._windows[chain[hit - 1]]) if hit else None
        return Running(request, mains, window, [], hit, matched if matched > hit else 0)

    def _compute(self, one: Running) -> None:
        """Prompt in chunks, output in blocks; the window slides before each."""
        chain = one.request.chain
        for first, last in self._chunks(one):
            self._slide(one)
            self._take((last - first) * (1 + WINDOW_BLOCKS + PASSING_BLOCKS))
            for depth in range(first, last):
                block = chain[depth]
                one.mains.append(self._name(self._mains, block, 1))
                if one.window is not None:
                    one.passed.append(one.window)
                one.passed.append(PASSING_BLOCKS)
                kept = self._kept(one, depth + 1)
                one.window = self._name(self._windows, block, WINDOW_BLOCKS) if kept else Run(-1, WINDOW_BLOCKS)
        self._slide(one)
        tokens = (one.request.num_prompt_tokens + one.request.num_output_tokens) % P
        if not tokens:
            return
        wanted = 1 + 2 * -(-tokens // 64) + -(-tokens // 4) + -(-tokens // 8)
        self._take(wanted)
        one.partial = min(wanted, 1 + STEADY_BLOCKS - WINDOW_BLOCKS)  # the boundary's window is held to the end
        self._give_back_unnamed(wanted - one.partial)

    def _chunks(self, one: Running) -> Iterator[tuple[int, int]]:
        """Ranges of full blocks: the prompt's by chunk, the generated ones singly."""
        prompt, total = one.request.num_prompt_tokens // P, len(one.request.chain)
        step = max(1, self.chunk // P)
        for first in range(one.hit, prompt, step):
            yield first, min(first + step, prompt)
        for first in range(max(prompt, one.hit), total):
            yield first, first + 1

    def _kept(self, one: Running, depth: int) -> bool:
        """Whether the window that ends at this many blocks gets a hash."""
        rule, last = self.retention, (one.request.num_prompt_tokens - 1) // P
        at_interval = rule.every > 0 and depth * P % rule.every == 0
        return rule.dense or depth == last or at_interval or (rule.junctions and depth == one.junction)

    def _slide(self, one: Running) -> None:
        """Gives back what the window has passed, last first."""
        for run in reversed(one.passed):
            if isinstance(run, int):
                self._give_back_unnamed(run)
            else:
                self._drop(run)
        one.passed.clear()

    def _finish(self, one: Running) -> None:
        if one.partial:
            self._give_back_unnamed(one.partial)
        for run in reversed(one.mains):
            self._drop(run)
        if one.window is not None:
            self._drop(one.window)

    def _hold(self, run: Run) -> Run:
        if run.holders == 0:
            del self._queue[run]
            self._num_free -= run.count
        run.holders += 1
        return run

    def _drop(self, run: Run) -> None:
        run.holders -= 1
        if run.holders:
            return
        if run.block < 0:
            self._give_back_unnamed(run.count)
        else:
            self._queue[run] = None
            self._num_free += run.count

    def _give_back_unnamed(self, count: int) -> None:
        """Blocks nobody can find: to the front, or to the end as dense retention had it."""
        self._num_free += count
        if self.retention.dense and count:
            self._queue[Run(-1, count, holders=0)] = None
        else:
            self._loose += count

    def _name(self, table: dict[int, Run], block: int, count: int) -> Run:
        """A held run that can be found; a copy found earlier keeps its place in the queue, without a name."""
        run = table[block] = Run(block, count)
        return run

    def _take(self, count: int) -> None:
        """Takes blocks from the front of the queue; whoever owned them is found no more."""
        if count > self._num_free:
            raise PoolTooSmall(f"{count} blocks wanted, {self._num_free} of {self.num_blocks} left")
        self._num_free -= count
        loose = min(count, self._loose)
        self._loose -= loose
        count -= loose
        while count:
            run = next(iter(self._queue))
            if run.block >= 0:
                self._forget(run)
            taken = min(count, run.count)
            run.count -= taken
            count -= taken
            if not run.count:
                del self._queue[run]

    def _forget(self, run: Run) -> None:
        for table in (self._mains, self._windows):
            if table.get(run.block) is run:
                del table[run.block]
        run.block = -1
