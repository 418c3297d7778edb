"""SGLang's rule as published: a radix tree over a full and an SWA pool whose sizes a start-up ratio fixes.

Per request: find the deepest live node; take pages chunk by chunk, evicting least recent first; give each chunk to the
tree; at the end give it the generated pages. What of a chunk's SWA the tree keeps is the variant:

    dense    all of it, until the SWA order evicts it, node by node                 (default until sgl#34653)
    kept     all of it, but eviction first thins inner nodes to a page every 81,920 (sgl#26907 as measured there)
    eager    the last page of each chunk: the others slid out and were given back   (sgl#27402, recipe switch)
    branch   as eager, and the page where the request left a known prefix           (sgl#34653, #34565)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benches.replay.geometry import sglang_token_bytes
from benches.replay.radix import Tree
from benches.replay.rule import Rule
from benches.replay.trace import P, Request

KEPT_TOKENS = 81_920
Keep = Literal["dense", "kept", "eager", "branch"]


@dataclass(eq=False)
class SglangRule(Rule):
    """One engine with pools of num_full and num_swa pages of 256 tokens.

    chunk   tokens per prefill chunk; shortened where two of them would not fit the SWA pool
    """

    num_full: int
    num_swa: int
    keep: Keep = "dense"
    chunk: int = 8192

    def __post_init__(self) -> None:
        self.tree = Tree(self.num_full, self.num_swa, KEPT_TOKENS // P if self.keep == "kept" else None)
        self._step = max(1, min(self.chunk // P, (self.num_swa - 1) // 2))

    @classmethod
    def of_bytes(cls, pool_bytes: int, ratio: float, keep: Keep, chunk: int = 8192) -> SglangRule:
        """The rule on a pool of so many bytes, split by SWA tokens per full token."""
        tokens = int(pool_bytes / sglang_token_bytes(ratio))
        return cls(tokens // P, int(tokens * ratio) // P, keep, chunk)

    def request(self, request: Request) -> int:
        chain, prompt = request.chain, request.num_prompt_tokens // P
        path = self.tree.walk(chain[: request.num_hit_blocks])
        matched = path[-1].end if path else 0
        while path and not path[-1].live:
            path.pop()
        hit = path[-1].end if path else 0
        self.tree.lock(path)
        for first in range(hit, prompt, self._step):
            self._chunk(chain, first, min(first + self._step, prompt), matched)
        self._generate(request, max(prompt, hit))
        self.tree.unlock()
        return P * hit

    def _chunk(self, chain: tuple[int, ...], first: int, last: int, branch: int) -> None:
        self.tree.take(last - first, last - first)
        self.tree.insert(chain[:last], first, self._keep(first, last, branch))

    def _keep(self, first: int, last: int, branch: int) -> list[tuple[int, int]]:
        """Page ranges of a chunk whose SWA goes to the tree."""
        if self.keep == "dense":
            return [(first, last)]
        if self.keep == "kept":  # a fresh leaf is split to one window (sgl#26919)
            return [(first, last - 1), (last - 1, last)]
        branched = self.keep == "branch" and first < branch < last
        return [(branch - 1, branch), (last - 1, last)] if branched else [(last - 1, last)]

    def _generate(self, request: Request, first: int) -> None:
        """The generated pages; at most two have SWA at a time, the last full one goes to the tree with it."""
        chain = request.chain
        new, swa = len(chain) - first, min(2, self.num_swa)
        partial = int((request.num_prompt_tokens + request.num_output_tokens) % P > 0)
        self.tree.take(new + partial, swa)
        self.tree.give_back(partial, swa - new)  # as if all new pages had SWA: insert gives back what is not kept
        if new:
            self.tree.insert(chain, first, [(len(chain) - 1, len(chain))])
