"""What dsv4's prefix cache is specified to do, on paper: a yardstick for the core, not the core.

    full blocks     one LRU; a request touches its chain from the deepest block up, so the victim is always a leaf
    checkpoints     their own LRU and their own share of the pool; made at the end of a prompt, of a generation and at
                    fork points; evicted without the blocks below, dropped with the block they stand on

Window blocks that are no checkpoint take nothing from either list. A fork point is noticed when a request leaves a
prefix deeper than the checkpoint it could resume from.

Beyond the specification, `spare_every` keeps a second list of checkpoints, evicted before all others: those that their
own conversation has gone past (unless other prefixes left there too), and one every so many computed tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise

from benches.replay.geometry import checkpoint_bytes, full_block_bytes, running_bytes
from benches.replay.rule import PoolTooSmall, Rule
from benches.replay.trace import P, Request


@dataclass(eq=False)
class CheckpointRule(Rule):
    """num_blocks full blocks and num_checkpoints window checkpoints.

    spare_every   None: one list as specified; tokens between spare checkpoints; 0: only those that were passed
    """

    num_blocks: int
    num_checkpoints: int
    spare_every: int | None = None

    def __post_init__(self) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()  # least recent first, as the two below
        self._checkpoints: OrderedDict[int, None] = OrderedDict()
        self._spare: OrderedDict[int, None] = OrderedDict()
        self._following: dict[int, int | None] = {}  # the block behind each; None where there are several

    @classmethod
    def of_bytes(cls, pool_bytes: int, share: float, spare_every: int | None = None) -> CheckpointRule:
        """The rule on a pool of so many bytes: checkpoints have a share of what the running request leaves."""
        left = pool_bytes - running_bytes()
        windows = int(left * share)
        return cls((left - windows) // full_block_bytes(), windows // checkpoint_bytes(), spare_every)

    def request(self, request: Request) -> int:
        chain = request.chain
        if len(chain) > self.num_blocks:
            raise PoolTooSmall(f"{len(chain)} blocks wanted, the pool has {self.num_blocks}")
        matched = 0
        while matched < request.num_hit_blocks and chain[matched] in self._blocks:
            matched += 1
        hit = matched
        while hit and chain[hit - 1] not in self._checkpoints and chain[hit - 1] not in self._spare:
            hit -= 1
        self._touch(chain)
        if self.spare_every:
            step = self.spare_every // P
            for depth in range(hit + step - hit % step, len(chain), step):
                self._remember(chain[depth - 1], spare=True)
        for depth in sorted({hit, matched, request.num_hit_blocks, len(chain)} - {0}):
            passed = depth < len(chain) and self._following[chain[depth - 1]] is not None
            self._remember(chain[depth - 1], spare=passed and self.spare_every is not None)
        while len(self._checkpoints) + len(self._spare) > self.num_checkpoints:
            (self._spare or self._checkpoints).popitem(last=False)
        return P * hit

    def _touch(self, chain: tuple[int, ...]) -> None:
        """The chain's blocks are the most recent, its first block most of all; what does not fit goes."""
        for block, following in pairwise(chain):
            if self._following.setdefault(block, following) != following:
                self._following[block] = None
        for block in reversed(chain):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self.num_blocks:
            victim, _ = self._blocks.popitem(last=False)
            for table in (self._checkpoints, self._spare, self._following):
                table.pop(victim, None)

    def _remember(self, block: int, *, spare: bool) -> None:
        """A checkpoint here, the most recent of its list."""
        self._checkpoints.pop(block, None)
        self._spare.pop(block, None)
        (self._spare if spare else self._checkpoints)[block] = None
