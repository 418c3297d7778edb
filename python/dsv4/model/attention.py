"""One attention layer over paged rows: window, and beside it C4 entries chosen by the indexer or all C128 entries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4.config.model import ModelConfig
from dsv4.kernels.attention.reference import Keys, attend
from dsv4.kernels.cache import reference as cache
from dsv4.kernels.contract import present
from dsv4.kernels.norm_rope.reference import inverse_rms, row_sum
from dsv4.model.caches import LayerCache
from dsv4.model.compress import Compressor
from dsv4.model.index import Indexer, Queries
from dsv4.model.norm_rope import RMSNorm
from dsv4.model.numerics import Numerics
from dsv4.model.reads import Group, chosen
from dsv4.model.step import Step
from dsv4.model.weights import GroupedLinear, Linear, TensorSource, take_vector


@dataclass(frozen=True, slots=True)
class Attention:
    """Queries of H heads through a low rank, one shared key-value head, grouped low-rank output.

    wq_a_kv     wq_a on top of wkv: both read x
    compressor  of C4 and C128 layers; indexer of C4 layers
    """

    ratio: int
    num_heads: int
    wq_a_kv: Linear
    q_norm: RMSNorm
    wq_b: Linear
    kv_norm: RMSNorm
    wo_a: GroupedLinear
    wo_b: Linear
    sink: Tensor
    compressor: Compressor | None
    indexer: Indexer | None
    numerics: Numerics

    @classmethod
    def take(cls, source: TensorSource, config: ModelConfig, numerics: Numerics, prefix: str, ratio: int) -> Attention:
        """The attention whose tensors are `prefix`.wq_a.weight, ..."""
        compressor = indexer = None
        if ratio:
            compressor = Compressor.take(source, config, numerics, f"{prefix}.compressor", rotated=False)
        if ratio == 4:
            indexer = Indexer.take(source, config, numerics, f"{prefix}.indexer")
        return cls(
            ratio=ratio,
            num_heads=config.num_attention_heads,
            wq_a_kv=Linear.take(source, numerics, f"{prefix}.wq_a", f"{prefix}.wkv"),
            q_norm=RMSNorm.take(source, config, numerics, f"{prefix}.q_norm"),
            wq_b=Linear.take(source, numerics, f"{prefix}.wq_b"),
            kv_norm=RMSNorm.take(source, config, numerics, f"{prefix}.kv_norm"),
            wo_a=GroupedLinear.take(source, numerics, f"{prefix}.wo_a", config.o_groups),
            wo_b=Linear.take(source, numerics, f"{prefix}.wo_b"),
            sink=take_vector(source, f"{prefix}.attn_sink"),
            compressor=compressor,
            indexer=indexer,
            numerics=numerics,
        )

    def __call__(self, x: Tensor, step: Step, pools: LayerCache) -> Tensor:
        """Runs the layer on x [T, C], normalised -> [T, C]; writes the rows and the state of the step's tokens."""
        rounded, angles = self.numerics.rounded, step.angles(self.ratio)
        q_a_kv, rank = self.wq_a_kv(x), len(self.q_norm.weight)
        q_r, kv = self.q_norm(q_a_kv[:, :rank]), self.kv_norm(q_a_kv[:, rank:])
        q = rounded(angles.rotate(self._head_norm(self.wq_b(q_r).view(len(x), self.num_heads, -1))))
        kv = rounded(angles.rotate(kv))
        cache.store(pools.swa, step.swa_slots, kv, step.layouts.swa)
        self._compress(x, step, pools)
        queries = self.indexer.queries(x, q_r, angles) if self.indexer else None
        out = torch.empty_like(q)
        for group in step.groups:
            keys = self._keys(group, queries, step, pools)
            part = attend(q[group.tokens], keys, self.sink, q.shape[-1] ** -0.5, bf16_weights=self.numerics.bf16)
            out[group.tokens] = rounded(part)
        out = rounded(angles.rotate(out, inverse=True))
        z = self.wo_a(out.view(len(x), len(self.wo_a.weight), -1))
        return self.wo_b(z.flatten(1))

    def _head_norm(self, q: Tensor) -> Tensor:
        """Queries q · rsqrt(mean(q²) + eps) per head, without a weight; the official code does this in bf16."""
        rounded, eps = self.numerics.rounded, self.q_norm.eps
        if not self.numerics.bf16:
            return q * inverse_rms(q, eps)
        mean = rounded(row_sum(rounded(q * q)) / q.shape[-1])
        return rounded(q * rounded(rounded(mean + eps).rsqrt()))

    def _compress(self, x: Tensor, step: Step, pools: LayerCache) -> None:
        """Closes the groups that this step completes, and carries the rest."""
        if self.indexer and self.compressor and step.c4:
            rows = self.compressor.close_c4(x, step.positions, step.c4, present(pools.c4_state, "c4 state"))
            cache.store(present(pools.c4, "c4 pool"), step.c4.entry_slots, rows, step.layouts.c4)
            rows = self.indexer.compressor.close_c4(
                x, step.positions, step.c4, present(pools.index_state, "index state")
            )
            cache.store(present(pools.index, "index pool"), step.c4.entry_slots, rows, step.layouts.index)
        elif self.compressor and step.c128:
            rows = self.compressor.close_c128(x, step.positions, step.c128, present(pools.c128_state, "c128 state"))
            cache.store(present(pools.c128, "c128 pool"), step.c128.entry_slots, rows, step.layouts.c128)

    def _keys(self, group: Group, queries: Queries | None, step: Step, pools: LayerCache) -> list[Keys]:
        """The rows that the group's queries read, window first."""
        window = Keys(group.window.gather(pools.swa, step.layouts.swa), group.window.visible)
        entries = group.entries.get(self.ratio)
        if entries is None:
            return [window]
        if self.ratio == 128:
            pool = present(pools.c128, "c128 pool")
            return [window, Keys(entries.gather(pool, step.layouts.c128), entries.visible)]
        indexer, pool = present(self.indexer, "indexer"), present(pools.c4, "c4 pool")
        if entries.most <= indexer.topk:  # every visible entry is read, whatever its score
            return [window, Keys(entries.gather(pool, step.layouts.c4), entries.visible)]
        index_keys = entries.gather(present(pools.index, "index pool"), step.layouts.index)
        selected = indexer.select(present(queries, "index queries"), group.tokens, index_keys, entries.visible)
        if len(entries.slots) == len(group.tokens):
            rows = chosen(entries, selected)
            return [window, Keys(rows.gather(pool, step.layouts.c4), rows.visible)]
        shared = entries.gather(pool, step.layouts.c4)[0]
        return [window, Keys(shared[selected.clamp_min(0)], selected >= 0)]
