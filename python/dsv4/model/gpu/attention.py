"""One attention layer on the GPU.

    u ─▶ FP8 ─▶ wq_a, wkv ─▶ q_a ─▶ norm, FP8 ─▶ wq_b ─▶ q ─┐ head norm, RoPE
                          └▶ kv ──────────────────────────┴▶ norm, RoPE, FP8, window pool ─┐
    u ─▶ compressors ─▶ C4 and index rows, C128 rows ─▶ pools                              │
    q_a ─▶ index queries ─▶ scores ─▶ top-k ─▶ slots ──────────────────────────────────────┴▶ sparse attention
    ─▶ RoPE back ─▶ wo_a, FP8 ─▶ wo_b

Every query is a token of its own, whether its request decodes or prefills, and has the same bits either way.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dsv4.config.model import ModelConfig
from dsv4.kernels.attention.choice import choice
from dsv4.kernels.attention.sparse_decode import SelectedRows, VisibleRows, sparse_decode, units_of
from dsv4.kernels.attention.split import WHOLE, scratch_of, split_of
from dsv4.kernels.contract import present
from dsv4.kernels.cuda.choice import TRITON
from dsv4.kernels.linear.gemm import (
    Fp8Weight,
    Workspace,
    fp8_linear,
    mixed_linear_quantised,
)
from dsv4.kernels.linear.quantise import Fp8Rows, norm_quantise, quantise
from dsv4.kernels.norm_rope.query_store import norm_rope_store, rotate_back
from dsv4.model.caches import SWA_BLOCK_TOKENS, LayerCache
from dsv4.model.gpu.compress import C4Compressors, OnlineC128
from dsv4.model.gpu.index import Indexer
from dsv4.model.gpu.step import Step
from dsv4.model.gpu.weights import Shelf

NUM_SMS = 132  # of an H100 or H200: how work is cut must not depend on the card


@dataclass(frozen=True, slots=True)
class Attention:
    """Queries of H heads through a low rank, one shared key-value head, grouped low-rank output.

    wq_a_kv  wq_a on top of wkv: both read the same rows
    """

    ratio: int
    num_heads: int
    o_groups: int
    eps: float
    wq_a_kv: Fp8Weight
    q_norm: Tensor
    wq_b: Fp8Weight
    kv_norm: Tensor
    wo_a: Fp8Weight
    wo_b: Fp8Weight
    sink: Tensor
    c4: C4Compressors | None
    c128: OnlineC128 | None
    indexer: Indexer | None
    workspace: Workspace

    @classmethod
    def take(
        cls, shelf: Shelf, config: ModelConfig, workspace: Workspace, prefix: str, ratio: int, *, fp4: bool
    ) -> Attention:
        """The attention whose tensors are `prefix`.wq_a.weight, ...; fp4: of index rows and queries."""
        return cls(
            ratio=ratio,
            num_heads=config.num_attention_heads,
            o_groups=config.o_groups,
            eps=config.rms_norm_eps,
            wq_a_kv=shelf.fp8(f"{prefix}.wq_a", f"{prefix}.wkv"),
            q_norm=shelf.bf16(f"{prefix}.q_norm.weight"),
            wq_b=shelf.fp8(f"{prefix}.wq_b"),
            kv_norm=shelf.bf16(f"{prefix}.kv_norm.weight"),
            wo_a=shelf.fp8(f"{prefix}.wo_a"),
            wo_b=shelf.fp8(f"{prefix}.wo_b"),
            sink=shelf.vector(f"{prefix}.attn_sink"),
            c4=C4Compressors.take(shelf, config, workspace, prefix, fp4=fp4) if ratio == 4 else None,
            c128=OnlineC128.take(shelf, config, workspace, f"{prefix}.compressor") if ratio == 128 else None,
            indexer=Indexer.take(shelf, config, workspace, f"{prefix}.indexer", fp4=fp4) if ratio == 4 else None,
            workspace=workspace,
        )

    def __call__(self, u: Tensor, step: Step, pools: LayerCache) -> Tensor:
        """Runs the layer on u [T, C] bf16, normalised -> [T, C] bf16; writes the rows and the state of the tokens."""
        angles, rank = step.angles(self.ratio), len(self.q_norm)
        q_a_kv = fp8_linear(quantise(u), self.wq_a_kv, self.workspace)
        q_r = norm_quantise(q_a_kv[:, :rank], self.q_norm, self.eps)
        q = fp8_linear(q_r, self.wq_b, self.workspace).view(len(u), self.num_heads, -1)
        norm_rope_store(
            q, q_a_kv[:, rank:], self.kv_norm, angles, pools.swa, step.inputs.swa_slots,
            page_rows=SWA_BLOCK_TOKENS, eps=self.eps,
        )  # fmt: skip
        o = self._attend(q, self._compressed(u, q_r, step, pools), step, pools)
        rotate_back(o, angles)
        z = mixed_linear_quantised(o.flatten(1), self.wo_a, self.o_groups, self.workspace)
        return fp8_linear(z, self.wo_b, self.workspace)

    def _attend(self, q: Tensor, rows: SelectedRows | VisibleRows | None, step: Step, pools: LayerCache) -> Tensor:
        """Decode, verify and prefill by one kernel: a token's bits do not depend on how many come with it."""
        T, positions = len(q), step.inputs.positions
        most = step.bounds.max_seq_len // self.ratio if self.ratio else 0
        split = split_of(T, self.num_heads, units_of(rows, most), NUM_SMS) if choice(q.device).name == TRITON else WHOLE
        room = rows.slots.shape[1] if isinstance(rows, SelectedRows) else most  # every slot of a row has its unit
        arrivals = self.workspace.arrivals
        scratch = scratch_of(split, T, self.num_heads, units_of(rows, room), q.device, arrivals)
        return sparse_decode(q, self.sink, pools.swa, step.window_slots, positions, rows, split, scratch)

    def _compressed(self, u: Tensor, q_r: Fp8Rows, step: Step, pools: LayerCache) -> SelectedRows | VisibleRows | None:
        """Closes the groups that this step completes; the compressed rows that its queries read."""
        inputs = step.inputs
        if self.c128 is not None:
            self.c128(u, step, pools)
            return VisibleRows(present(pools.c128, "c128 pool"), inputs.block_table_full, inputs.token_rows)
        if self.c4 is not None:
            self.c4(u, step, pools)
            slots = present(self.indexer, "indexer").select(u, q_r, step, pools)
            return SelectedRows(present(pools.c4, "c4 pool"), slots)
        return None
