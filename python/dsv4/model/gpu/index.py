"""The indexer of C4 layers on the GPU: which compressed rows every query reads, as slots of the pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dsv4.config.model import ModelConfig
from dsv4.kernels.contract import present
from dsv4.kernels.index import topk
from dsv4.kernels.index.logits import index_scores
from dsv4.kernels.index.queries import DIM, HEADS, index_queries
from dsv4.kernels.index.topk import select_topk
from dsv4.kernels.linear.gemm import Fp8Weight, Workspace, bf16_linear, fp8_linear
from dsv4.kernels.linear.quantise import Fp8Rows
from dsv4.model.caches import LayerCache
from dsv4.model.gpu.step import Step
from dsv4.model.gpu.weights import Shelf

SCORE_BYTES = 256 << 20
"""Most bytes of scores at a time: a long prompt's queries are scored part by part."""


@dataclass(frozen=True, slots=True)
class Indexer:
    """Σ_h w_h · max(q_h · k, 0) over the index keys, and the best `topk` of what a query sees."""

    wq_b: Fp8Weight
    weights_proj: Tensor
    topk: int
    kind: Literal["fp8", "fp4"]
    workspace: Workspace

    @classmethod
    def take(cls, shelf: Shelf, config: ModelConfig, workspace: Workspace, prefix: str, *, fp4: bool) -> Indexer:
        """The indexer whose tensors are `prefix`.wq_b.weight, ..."""
        return cls(
            wq_b=shelf.fp8(f"{prefix}.wq_b"),
            weights_proj=shelf.bf16(f"{prefix}.weights_proj.weight"),
            topk=config.index_topk,
            kind="fp4" if fp4 else "fp8",
            workspace=workspace,
        )

    def select(self, u: Tensor, q_r: Fp8Rows, step: Step, pools: LayerCache) -> Tensor:
        """Slots [T, topk] int32 of the C4 rows that each query reads, in order of position; then -1."""
        T, most = len(u), max(1, step.bounds.max_seq_len // 4)
        if most > self.topk:
            q = fp8_linear(q_r, self.wq_b, self.workspace).view(T, HEADS, DIM)
            heads = bf16_linear(u, self.weights_proj, self.workspace, dtype=torch.bfloat16)
            queries = index_queries(q, heads, step.compressed_angles, self.kind)
        else:  # every visible row is read, whatever its score
            queries = None
        each = min(max(1, SCORE_BYTES // (4 * most)), self.workspace.arrivals.numel())
        if each >= T:
            return self._select(queries, slice(0, T), most, step, pools)
        out = torch.empty(T, self.topk, dtype=torch.int32, device=u.device)
        for start in range(0, T, each):
            part = slice(start, start + each)
            out[part] = self._select(queries, part, most, step, pools)
        return out

    def _select(
        self, queries: tuple[Tensor, Tensor] | None, part: slice, most: int, step: Step, pools: LayerCache
    ) -> Tensor:
        inputs = step.inputs
        rows, positions, table = inputs.token_rows[part], inputs.positions[part], inputs.block_table_full
        scores = torch.empty(len(rows), most, device=rows.device)
        if queries is not None:
            q, weights = queries
            pool = present(pools.index, "index pool")
            index_scores(q[part], weights[part], pool, table, rows, positions, scores, self.kind, k=self.topk)
        workspace = topk.Workspace(len(rows), most, self.topk, rows.device, self.workspace.arrivals)
        return select_topk(scores, positions, self.topk, workspace, block_table=table, token_rows=rows)
