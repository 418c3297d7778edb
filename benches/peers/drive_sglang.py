"""SGLang's prefix tree over its full + SWA allocator, CPU tensors, no model: `drive_sglang python` or `… rust`.

Run by `python -m benches.peers` under an interpreter that has SGLang; the word chooses the tree's core. Its scheduler
needs model workers, so a "step" here is the allocator's part alone: one alloc_decode for the whole batch.
"""

from __future__ import annotations

import itertools
import platform
import sys
from array import array
from collections.abc import Callable
from functools import partial
from time import perf_counter_ns as now

import sglang
import torch
from benches.peers import load, wire
from benches.peers.load import Round
from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler

PAGE = 256
NUMBERS = itertools.count()


class Engine:
    """One tree on pools of so many tokens; rows of two bytes, since nobody reads them."""

    def __init__(self, backend: str, full_tokens: int, swa_tokens: int) -> None:
        set_global_server_args_for_scheduler(ServerArgs(model_path="dummy", page_size=PAGE))
        pool = SWAKVPool(
            size=full_tokens,
            size_swa=swa_tokens,
            page_size=PAGE,
            dtype=torch.bfloat16,
            head_num=1,
            head_dim=1,
            swa_attention_layer_ids=[0],
            full_attention_layer_ids=[1],
            device="cpu",
        )
        self.allocator = SWATokenToKVPoolAllocator(
            size=full_tokens,
            size_swa=swa_tokens,
            page_size=PAGE,
            dtype=torch.bfloat16,
            device="cpu",
            kvcache=pool,
            need_sort=False,
        )
        table = ReqToTokenPool(size=8, max_context_len=load.LONG, device="cpu", enable_memory_saver=False)
        self.tree = UnifiedRadixCache(
            CacheInitParams(
                req_to_token_pool=table,
                token_to_kv_pool_allocator=self.allocator,
                page_size=PAGE,
                disable=False,
                sliding_window_size=128,
                tree_components=(ComponentType.FULL, ComponentType.SWA),
                tree_core_backend=backend,
            )
        )

    def match(self, tokens: array[int]) -> int:
        """Tokens found."""
        return int(self.tree.match_prefix(MatchPrefixParams(key=RadixKey(tokens))).device_prefix_len)

    def take(self, length: int) -> torch.Tensor:
        """Pages for a prompt without a prefix."""
        none, whole = torch.zeros(1, dtype=torch.int64), torch.tensor([length], dtype=torch.int64)
        before = torch.tensor([-1], dtype=torch.int64)
        taken = self.allocator.alloc_extend(none, none, whole, whole, before, length)
        assert taken is not None
        return taken

    def insert(self, tokens: array[int], rows: torch.Tensor) -> None:
        """Leaves a prompt in the tree."""
        self.tree.insert(InsertParams(key=RadixKey(tokens), value=rows))

    def evict(self, length: int) -> None:
        """Room for so many tokens in both pools, if there is none."""
        full = max(0, length - self.allocator.full_available_size())
        swa = max(0, length - self.allocator.swa_available_size())
        if full or swa:
            self.tree.evict_for_alloc(EvictParams(num_tokens=full, swa_num_tokens=swa))


def prompt(length: int) -> array[int]:
    """Tokens that nobody had before, as its requests hold them."""
    return array("q", load.tokens(next(NUMBERS), length))


def steps(backend: str, num_requests: int) -> Round:
    """alloc_decode of the whole batch; the tensors it is given are made before."""
    most = 9 * num_requests * PAGE + 20 * PAGE
    engine = Engine(backend, 4 * most, 4 * most)
    length = torch.full((num_requests,), 3 * PAGE, dtype=torch.int64)
    last = torch.cat([engine.take(3 * PAGE)[-1:] for _ in range(num_requests)])
    fresh = {"length": length, "last": last}

    def round_of() -> list[int]:
        times = []
        for _ in range(load.STEPS_A_ROUND[num_requests]):
            fresh["length"] = fresh["length"] + 1
            copy = fresh["length"].clone()
            start = now()
            taken = engine.allocator.alloc_decode(fresh["length"], copy, fresh["last"])
            times.append(now() - start)
            assert taken is not None
            fresh["last"] = taken
        return times

    return round_of


def admit(backend: str) -> Round:
    """match_prefix that finds nothing, then alloc_extend of 8K."""
    engine = Engine(backend, 1 << 19, 1 << 19)

    def round_of() -> list[int]:
        times = []
        for _ in range(load.OPERATIONS_A_ROUND):
            tokens = prompt(load.LONG)
            start = now()
            found = engine.match(tokens)
            rows = engine.take(load.LONG)
            times.append(now() - start)
            assert found == 0
            engine.allocator.free_segment(rows, start_pos=0)
        return times

    return round_of


def match(backend: str) -> Round:
    """match_prefix of 8K that are there."""
    engine = Engine(backend, 1 << 19, 1 << 19)
    tokens = prompt(load.LONG)
    engine.insert(tokens, engine.take(load.LONG))

    def round_of() -> list[int]:
        times = []
        for _ in range(load.OPERATIONS_A_ROUND):
            start = now()
            found = engine.match(tokens)
            times.append(now() - start)
            assert found == load.LONG
        return times

    return round_of


def insert(backend: str) -> Round:
    """insert of 8K that nobody had."""
    engine = Engine(backend, 1 << 21, 1 << 21)

    def round_of() -> list[int]:
        times = []
        for _ in range(load.OPERATIONS_A_ROUND):
            engine.evict(load.LONG)
            tokens, rows = prompt(load.LONG), engine.take(load.LONG)
            start = now()
            engine.insert(tokens, rows)
            times.append(now() - start)
        return times

    return round_of


def turnover(backend: str) -> Round:
    """match, evict, alloc_extend, insert of 8K in pools that are full; no scheduler, no request."""
    engine = Engine(backend, 10 * load.LONG, 10 * load.LONG)

    def serve_one() -> int:
        tokens = prompt(load.LONG)
        start = now()
        engine.match(tokens)
        engine.evict(load.LONG)
        engine.insert(tokens, engine.take(load.LONG))
        return now() - start

    for _ in range(20):
        serve_one()
    return lambda: [serve_one() for _ in range(load.OPERATIONS_A_ROUND)]


def measurements(backend: str) -> dict[str, Callable[[], Round]]:
    """By name."""
    return {
        **{load.step(size): partial(steps, backend, size) for size in load.STEP_SIZES},
        load.ADMIT: partial(admit, backend),
        load.MATCH: partial(match, backend),
        load.INSERT: partial(insert, backend),
        load.TURNOVER: partial(turnover, backend),
    }


if __name__ == "__main__":
    asked = sys.argv[1]
    made = type(Engine(asked, 1 << 16, 1 << 16).tree.tree_core).__name__
    wire.serve(
        {
            "engine": f"SGLang, {asked.capitalize()} tree",
            "version": sglang.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "tree": made,
        },
        measurements(asked),
    )
