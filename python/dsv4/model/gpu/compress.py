"""The compressors of a layer on the GPU: projections, then one launch that closes groups and keeps state."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dsv4.config.model import ModelConfig
from dsv4.kernels.compress.c4 import Compressor, compress_c4
from dsv4.kernels.compress.c128_online import OnlineCompressor, compress_c128
from dsv4.kernels.contract import present
from dsv4.kernels.linear.gemm import Workspace, bf16_linear
from dsv4.model.caches import BLOCK_TOKENS, LayerCache
from dsv4.model.gpu.step import Step
from dsv4.model.gpu.weights import Shelf


@dataclass(frozen=True, slots=True)
class Parameters:
    """Weights of one compressor: wkv on top of wgate [2 width, C] bf16, ape [ratio, width] float32, norm [D] bf16."""

    wkv_gate: Tensor
    ape: Tensor
    norm: Tensor
    workspace: Workspace

    @classmethod
    def take(cls, shelf: Shelf, workspace: Workspace, prefix: str) -> Parameters:
        """The compressor whose tensors are `prefix`.wkv.weight, ..."""
        return cls(
            wkv_gate=shelf.bf16(f"{prefix}.wkv.weight", f"{prefix}.wgate.weight"),
            ape=shelf.vector(f"{prefix}.ape"),
            norm=shelf.bf16(f"{prefix}.norm.weight"),
            workspace=workspace,
        )

    def project(self, u: Tensor) -> Tensor:
        """Kv and score [T, 2, width] float32 of rows u [T, C] bf16."""
        return bf16_linear(u, self.wkv_gate, self.workspace).view(len(u), 2, -1)


@dataclass(frozen=True, slots=True)
class C4Compressors:
    """Both compressors of a C4 layer, which close the same groups."""

    kv: Parameters
    index: Parameters
    fp4: bool
    eps: float

    @classmethod
    def take(cls, shelf: Shelf, config: ModelConfig, workspace: Workspace, prefix: str, *, fp4: bool) -> C4Compressors:
        """Those of the attention `prefix`."""
        kv = Parameters.take(shelf, workspace, f"{prefix}.compressor")
        index = Parameters.take(shelf, workspace, f"{prefix}.indexer.compressor")
        return cls(kv, index, fp4, config.rms_norm_eps)

    def __call__(self, u: Tensor, step: Step, pools: LayerCache) -> None:
        """Stores the rows of the groups that close, and keeps the last rows of every request."""

        def part(of: Parameters, state: Tensor | None, pool: Tensor | None) -> Compressor:
            return Compressor(of.project(u), of.ape, of.norm, present(state, "C4 state"), present(pool, "C4 pool"))

        compress_c4(
            part(self.kv, pools.c4_state, pools.c4),
            part(self.index, pools.index_state, pools.index),
            present(step.c4, "C4 plan"),
            fp4=self.fp4,
            max_new_tokens=step.bounds.max_new_tokens,
            page_rows=BLOCK_TOKENS // 4,
            eps=self.eps,
        )


@dataclass(frozen=True, slots=True)
class OnlineC128:
    """The compressor of a C128 layer, whose open groups are carried as a running softmax."""

    parameters: Parameters
    eps: float

    @classmethod
    def take(cls, shelf: Shelf, config: ModelConfig, workspace: Workspace, prefix: str) -> OnlineC128:
        """The compressor whose tensors are `prefix`.wkv.weight, ..."""
        return cls(Parameters.take(shelf, workspace, prefix), config.rms_norm_eps)

    def __call__(self, u: Tensor, step: Step, pools: LayerCache) -> None:
        """Stores the rows of the groups that close, and keeps what stays open."""
        of = self.parameters
        state, pool = present(pools.c128_state, "C128 state"), present(pools.c128, "C128 pool")
        compress_c128(
            OnlineCompressor(of.project(u), of.ape, of.norm, state, pool),
            present(step.c128, "C128 plan"),
            max_new_tokens=step.bounds.max_new_tokens,
            page_rows=BLOCK_TOKENS // 128,
            eps=self.eps,
        )
