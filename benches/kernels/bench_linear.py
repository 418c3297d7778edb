"""Products of the model against DeepGEMM (FP8) and cuBLAS (bf16), and the quantisation in front of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version

import torch
from benches.kernels.harness import Call, Case, Peer
from benches.kernels.linear_inputs import FLASH, PRO, Product, rows_of, weight_of, wide, wide_rows
from torch import Tensor

from dsv4.kernels.linear import few_rows, gemm
from dsv4.kernels.linear.quantise import Fp8Rows, norm_quantise, packed, quantise, swiglu_quantise, unpacked
from dsv4.kernels.quant.reference import pack_fp8

FP8_FLOPS = 1400e12
FP8, MIXED, BF16 = few_rows.FP8.value, few_rows.MIXED.value, few_rows.BF16.value
_workspaces: list[gemm.Workspace] = []


def workspace() -> gemm.Workspace:
    if not _workspaces:
        _workspaces.append(gemm.Workspace(torch.device("cuda"), num_bytes=256 << 20))
    return _workspaces[0]


def ours(p: Product, x: Tensor | Fp8Rows, w: gemm.Fp8Weight) -> Tensor | Fp8Rows:
    if isinstance(x, Fp8Rows):
        return gemm.fp8_linear(x, w, workspace())
    if p.kind == BF16:
        return gemm.bf16_linear(x, w.values, workspace())
    if p.out == 2:
        return gemm.mixed_linear_quantised(x, w, p.groups, workspace())
    return gemm.mixed_linear(x, w, p.groups, workspace())


def check(p: Product, T: int) -> None:
    """The first and last outputs against float64, and rows alone or among few or many: the same bits."""
    x, w = rows_of(p, T), weight_of(p)
    got = ours(p, x, w)
    out = wide_rows(got)
    rows = wide_rows(x)
    for first in (0, (p.groups * p.N - 64) // 128 * 128):
        count = min(128, p.groups * p.N - first)
        g = first // p.N
        want = rows[:, g * p.K : (g + 1) * p.K] @ wide(w, first, count).T
        error = float((out[:, first : first + count] - want).norm() / want.norm())
        limit = 0.04 if p.out == 2 else 3e-3  # E4M3 keeps four bits
        assert error < limit, f"{p.name} {T}: error {error} at {first}"
    for few in {1, min(T, 16), min(T, 100), min(T, 600)}:
        part = x[:few] if isinstance(x, Tensor) else Fp8Rows(x.values[:few], x.sf[:, :few].contiguous())
        alone = wide_rows(ours(p, part, w))
        assert torch.equal(alone, out[:few]), f"{p.name}: {few} of {T} rows have other bits"


def peers(p: Product, T: int, sets: list[tuple[Tensor | Fp8Rows, gemm.Fp8Weight]]) -> list[Peer]:
    if p.kind == FP8:
        return [deep_gemm_peer(p, T, sets)]
    if p.kind == MIXED:
        wides: dict[int, Tensor] = {}

        def batched(i: int) -> Call:
            x, w = sets[i]
            assert isinstance(x, Tensor)
            b = wides.setdefault(i, wide(w, 0, len(w.values)).to(torch.bfloat16).view(p.groups, p.N, p.K))
            return lambda: torch.einsum("tgk,gnk->tgn", x.view(T, p.groups, p.K), b)

        return [Peer("cuBLAS bf16 einsum of the dequantised weight", torch.__version__, batched)]

    def plain(i: int) -> Call:
        x, w = sets[i]
        assert isinstance(x, Tensor)
        return lambda: torch.mm(x, w.values.t(), out_dtype=torch.float32)

    return [Peer("cuBLAS bf16, float32 out", torch.__version__, plain)]


def deep_gemm_peer(p: Product, T: int, sets: list[tuple[Tensor | Fp8Rows, gemm.Fp8Weight]]) -> Peer:
    name = "DeepGEMM fp8_gemm_nt, PDL"
    try:
        import deep_gemm  # noqa: PLC0415 - a peer may be absent
    except ImportError as error:
        return Peer(name, missing=f"not available: {error}"[:120])
    deep_gemm.set_pdl(True)
    out = torch.empty(T, p.N, device="cuda", dtype=torch.bfloat16)

    def make(i: int) -> Call:
        x, w = sets[i]
        assert isinstance(x, Fp8Rows)
        sf = deep_gemm.get_mn_major_tma_aligned_tensor(
            (unpacked(x.sf.t(), p.K // 128).float() - 127).exp2().contiguous()
        )
        a = (x.values, sf if isinstance(sf, Tensor) else torch.from_dlpack(sf))
        b = (w.values, (unpacked(w.sf, p.K // 128).float() - 127).exp2())
        return lambda: deep_gemm.fp8_gemm_nt(a, b, out)

    make(0)()
    mine = ours(p, *sets[0])
    assert isinstance(mine, Tensor)
    error = float((out.double() - mine.double()).norm() / mine.double().norm())
    assert error < 5e-3, f"DeepGEMM and we differ by {error}"
    return Peer(name, f"sgl-deep-gemm {version('sgl-deep-gemm')}", make)


def case(p: Product, T: int) -> Case:
    sets: list[tuple[Tensor | Fp8Rows, gemm.Fp8Weight]] = []
    # The harness' floor of arithmetic is that of bf16; FP8 has 1,400 of its 790 TFLOP/s.
    flops = int(p.flops(T) * (790e12 / FP8_FLOPS if p.kind == FP8 else 1))
    result = Case(
        op=f"linear {p.name}", shape={"model": p.model, "M": T, "N": p.N, "K": p.K, "G": p.groups},
        dtype=("fp8", "bf16 x fp8", "bf16")[p.kind], bytes=p.bytes(T), flops=flops, launches=1,
        make=lambda i: lambda: ours(p, *sets[i]), check=lambda: check(p, T),
    )  # fmt: skip
    sets.extend((rows_of(p, T), weight_of(p)) for _ in range(result.sets))
    return replace(result, peers=peers(p, T, sets))


def quantisation(op: str, T: int, K: int) -> Case:
    """RMSNorm over the first K of rows that are 512 wider, as they leave q_a + kv; SwiGLU over 2 K."""
    width = {"quantise": K, "norm_quantise": K + 512, "swiglu_quantise": 2 * K}[op]
    weight = torch.ones(K, device="cuda", dtype=torch.bfloat16)
    run = {"quantise": quantise, "norm_quantise": lambda x: norm_quantise(x[:, :K], weight),
           "swiglu_quantise": swiglu_quantise}[op]  # fmt: skip
    sets: list[Tensor] = []

    def verify() -> None:
        x = torch.randn(T, K, device="cuda", dtype=torch.bfloat16)
        values, sf = pack_fp8(x.float(), 128)
        got = quantise(x)
        assert torch.equal(got.values.view(torch.uint8), values.view(torch.uint8))
        assert torch.equal(got.sf, packed(sf).t())

    read = 2 * K if op != "swiglu_quantise" else 4 * K
    result = Case(
        op=op, shape={"M": T, "K": K}, dtype="bf16>fp8", bytes=T * (read + K + K // 128), launches=1,
        make=lambda i: lambda: run(sets[i]), check=verify,
    )  # fmt: skip
    sets.extend(torch.randn(T, width, device="cuda", dtype=torch.bfloat16) for _ in range(result.sets))
    return result


def cases() -> Iterator[Case]:
    for p in FLASH:
        for T in (1, 8, 64, 256) if p.name == "head" else (1, 8, 64, 256, 8192):
            yield case(p, T)
    for p in PRO:
        for T in (1, 64, 8192):
            yield case(p, T)
    for op, K in (("quantise", 4096), ("norm_quantise", 1024), ("swiglu_quantise", 2048)):
        for T in (1, 64, 8192):
            yield quantisation(op, T, K)
