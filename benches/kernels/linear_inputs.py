"""The products of the model and random inputs for them, shared by the bench and by the search for cuts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dsv4.kernels.linear.few_rows import BF16, FP8, MIXED
from dsv4.kernels.linear.gemm import Fp8Weight
from dsv4.kernels.linear.quantise import Fp8Rows, quantise, unpacked


class Product(NamedTuple):
    """A weight [groups, N, K]; kind as in gemm.py; result as `few_rows` numbers them (0 bf16, 1 float32, 2 FP8)."""

    model: str
    name: str
    kind: int
    N: int
    K: int
    groups: int = 1
    out: int = 0

    @property
    def weight_bytes(self) -> int:
        return self.groups * self.N * self.K * (2 if self.kind == BF16.value else 1)

    def bytes(self, T: int) -> int:
        """What no version can avoid: the weight and the rows once, the result once."""
        row = self.groups * self.K * (1 if self.kind == FP8.value else 2)
        return self.weight_bytes + T * (row + self.groups * self.N * (2, 4, 1)[self.out])

    def flops(self, T: int) -> int:
        return 2 * T * self.groups * self.N * self.K


FLASH = (
    Product("flash", "q_a+kv", FP8.value, 1536, 4096),
    Product("flash", "q_b", FP8.value, 32768, 1024),
    Product("flash", "index q_b", FP8.value, 8192, 1024),
    Product("flash", "wo_a", MIXED.value, 1024, 4096, 8, 2),
    Product("flash", "wo_b", FP8.value, 4096, 8192),
    Product("flash", "shared w13", FP8.value, 4096, 4096),
    Product("flash", "shared w2", FP8.value, 4096, 2048),
    Product("flash", "C4 compressors", BF16.value, 2624, 4096, 1, 1),  # wkv, wgate, the indexer's two, weights_proj
    Product("flash", "router", BF16.value, 256, 4096, 1, 1),
    Product("flash", "head", BF16.value, 129280, 4096, 1, 1),
)
PRO = (
    Product("pro", "q_a+kv", FP8.value, 2048, 7168),
    Product("pro", "q_b", FP8.value, 65536, 1536),
    Product("pro", "wo_a", MIXED.value, 1024, 4096, 16, 2),
    Product("pro", "wo_b", FP8.value, 7168, 16384),
    Product("pro", "shared w13", FP8.value, 6144, 7168),
    Product("pro", "shared w2", FP8.value, 7168, 3072),
)


def rows_of(p: Product, T: int) -> Tensor | Fp8Rows:
    x = torch.randn(T, p.groups * p.K, device="cuda", dtype=torch.bfloat16)
    return quantise(x) if p.kind == FP8.value else x


def weight_of(p: Product) -> Fp8Weight:
    n = p.groups * p.N
    if p.kind == BF16.value:
        w = (torch.randn(n, p.K, device="cuda") * 0.02).to(torch.bfloat16)
        return Fp8Weight(w, w)
    w = (torch.randn(n, p.K, device="cuda") * 20).to(torch.float8_e4m3fn)
    return Fp8Weight.of(w, torch.randint(114, 118, (n // 128, p.K // 128), device="cuda").to(torch.uint8))


def wide(weight: Fp8Weight, first: int, count: int) -> Tensor:
    """float64 rows first .. first + count of a weight; both multiples of 128 if it is FP8."""
    part = weight.values[first : first + count].double()
    if weight.values.dtype is torch.bfloat16:
        return part
    sf = unpacked(weight.sf[first // 128 : (first + count) // 128], part.shape[1] // 128)
    scale = (sf.double() - 127).exp2()
    return part * scale.repeat_interleave(128, 0).repeat_interleave(128, 1)


def wide_rows(x: Tensor | Fp8Rows) -> Tensor:
    """float64 rows."""
    if isinstance(x, Tensor):
        return x.double()
    sf = unpacked(x.sf.t(), x.values.shape[1] // 128)
    return x.values.double() * (sf.double() - 127).exp2().repeat_interleave(128, 1)
