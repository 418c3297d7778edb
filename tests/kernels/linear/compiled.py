# mypy: disable-error-code="import-untyped"
"""Compiles the products for GPUs that need not be here and writes what came out, one line of JSON each.

A process of its own: under TRITON_INTERPRET, as the other tests run, there is nothing to compile.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import triton
from tests.kernels.targets import resources
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dsv4.kernels.linear.few_rows import BF16, FP8, MIXED, TO_BF16, TO_F32, TO_FP8, few_rows
from dsv4.kernels.linear.many_rows import many_rows
from dsv4.kernels.linear.quantise import NORM, SWIGLU, _quantise
from dsv4.kernels.linear.tuning import Cut, cut_of, num_splits

MATRIX = r"wgmma\.mma_async\.sync\.aligned\.m64n\d+k\d+\.f32\.\w+\.\w+|tcgen05\.mma[\w.:]*|mma\.sync[\w.]*"
TYPES = {FP8.value: ("fp8e4nv", "fp8e4nv"), MIXED.value: ("bf16", "fp8e4nv"), BF16.value: ("bf16", "bf16")}
OUTS = {TO_BF16.value: "*bf16", TO_F32.value: "*fp32", TO_FP8.value: "*fp8e4nv"}
# Name, kind of product, result, N, K, groups: one of each, at the model's shapes.
PRODUCTS = (
    ("q_a+kv", FP8.value, TO_BF16.value, 1536, 4096, 1),
    ("q_b", FP8.value, TO_BF16.value, 32768, 1024, 1),
    ("wo_a", MIXED.value, TO_FP8.value, 1024, 4096, 8),
    ("head", BF16.value, TO_F32.value, 129280, 4096, 1),
)


def compiled(fn: Any, types: dict[str, str], constants: dict[str, Any], arch: int, warps: int) -> Any:
    names = fn.arg_names
    signature = {n: types.get(n, "constexpr") for n in names}
    plain = {"T", "N", "eps", "limit"}
    divisible = {n for n, kind in types.items() if n not in plain and not kind.startswith("tensordesc")}
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in divisible}
    source = ASTSource(fn, signature, {(names.index(n),): v for n, v in constants.items()}, aligned)
    return triton.compile(source, GPUTarget("cuda", arch, 32), {"num_warps": warps})


def report(name: str, fn: Any, kernel: Any, arch: int) -> None:
    ptx = kernel.asm["ptx"]
    counts = {word: ptx.count(word) for word in ("cp.async.bulk.tensor", "cp.async.cg", "cvt.rn.satfinite.e4m3x2")}
    row = {"name": name, "entry": f"{fn.__module__}.{fn.__name__}", "arch": arch}
    row |= {"matrix": sorted(set(re.findall(MATRIX, ptx))), **resources(kernel.asm["cubin"])}
    sys.stdout.write(json.dumps(row | counts | {"shared": kernel.metadata.shared}) + "\n")


def product(name: str, kind: int, out: int, N: int, K: int, groups: int, arch: int, cut: Cut) -> Any:
    """The kernel that serves so many rows; a tile of a result in FP8 is a group."""
    a, b = TYPES[kind]
    if out == TO_FP8.value:
        cut = cut._replace(bn=128)
    constants: dict[str, Any] = {
        "K": K, "SPLITS": num_splits(N, K, groups), "KIND": kind, "OUT": out, "BN": cut.bn, "BT": cut.bt, "BK": cut.bk,
        "STAGES": cut.stages, "PDL": True,
    }  # fmt: skip
    types = {
        "x_sf": "*i32",
        "w_sf": "*i32",
        "out": OUTS[out],
        "out_sf": "*u8",
        "T": "i32",
        "out_row": "i32",
        "N": "i32",
    }
    if not cut.band:
        types |= {"x": f"*{a}", "w": f"*{b}", "partials": "*fp32", "arrivals": "*i32", "x_row": "i32"}
        return compiled(few_rows, types, constants | {"GROUPS": groups, "SERIAL": cut.serial == 1}, arch, cut.warps)
    types |= {"x": f"tensordesc<{a}[{cut.bt}, {cut.bk}]>", "w": f"tensordesc<{b}[{cut.bn}, {cut.bk}]>"}
    return compiled(many_rows, types, constants | {"BAND": cut.band}, arch, cut.warps)


def main() -> None:
    for arch in map(int, sys.argv[1:]):
        for name, kind, out, N, K, groups in PRODUCTS:
            for rows in (16, 64, 8192):
                cut = cut_of(kind, N, K, groups, rows)
                fn = many_rows if cut.band else few_rows
                report(f"{name} {rows}", fn, product(name, kind, out, N, K, groups, arch, cut), arch)
        types = {"x": "*bf16", "weight": "*bf16", "values": "*fp8e4nv", "sf": "*u8", "T": "i32", "x_row": "i32"}
        types |= {"eps": "fp32", "limit": "fp32"}
        for name, mode, K in (("norm", NORM.value, 1024), ("swiglu", SWIGLU.value, 2048)):
            report(
                name,
                _quantise,
                compiled(_quantise, types, {"K": K, "GROUPS": 8, "KIND": mode, "PDL": True}, arch, 2),
                arch,
            )


if __name__ == "__main__":
    main()
