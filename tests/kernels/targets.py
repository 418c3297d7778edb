# mypy: disable-error-code="import-untyped"
"""Compiles kernels for GPUs that are not here, and reads what the assembler made of them.

Run as `python -m tests.kernels.targets ARCH...`, in a process of its own: the tests beside it have triton in its
interpreter. Prints one JSON line per kernel and target: registers, stack and local bytes, and counts of instructions.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

F32, BF16, U8, I32, I64 = "*fp32", "*bf16", "*u8", "*i32", "*i64"


@dataclass(frozen=True)
class Build:
    """A kernel, the types of its arguments in order, its constants, and how it is launched."""

    where: str
    types: tuple[str, ...]
    constants: dict[str, object]
    warps: int
    options: dict[str, object] = field(default_factory=dict)


EXACT: dict[str, object] = {"enable_fp_fusion": False}
FUSED: dict[str, object] = {"enable_fp_fusion": True}
ROW = (F32, F32, F32, F32, U8)
BUILDS = {
    "post_project": Build(
        "dsv4.kernels.mhc.post_project:post_project",
        (BF16, BF16, F32, F32, F32, BF16, F32, "i32", "i32"),
        {"C": 4096, "M": 24, "P": 32, "BT": 16, "BC": 64, "POST": True, "PDL": True},
        4,
        FUSED | {"num_stages": 1},
    ),
    "mix_norm": Build(
        "dsv4.kernels.mhc.mix_norm:mix_norm",
        (F32, F32, F32, BF16, BF16, BF16, F32, F32, "i32", "fp32", "fp32"),
        {"C": 7168, "CP": 8192, "M": 24, "P": 32, "SLICES": 112, "SP": 128, "BM": 2, "ITERS": 20, "PDL": True},
        4,
        FUSED,
    ),
    "norm_rope_store": Build(
        "dsv4.kernels.norm_rope.query_store:_norm_rope_store",
        (BF16, BF16, BF16, F32, F32, U8, BF16, I32, "i32", "i32", "fp32"),
        {"H": 64, "R": 2, "PAGE": 64, "STRIDE": 37440, "ANGLES": 32},
        1,
        EXACT,
    ),
    "rotate_back": Build(
        "dsv4.kernels.norm_rope.query_store:_rotate_back",
        (BF16, F32, F32),
        {"H": 64, "D": 512, "ANGLES": 32},
        4,
        EXACT,
    ),
    "compress_c4": Build(
        "dsv4.kernels.compress.c4:_compress_c4",
        (*ROW, BF16, *ROW, F32, I32, I64, F32, F32, I32, "i32", "i32", "fp32"),
        {"RING": 8, "FP4": True, "PAGE": 64, "KV_STRIDE": 37440, "INDEX_STRIDE": 4352, "ANGLES": 32},
        2,
        EXACT,
    ),
    "window_slots": Build(
        "dsv4.kernels.attention.plan:_window_slots",
        (I32, I32, I32, "i32", I32, I32),
        {},
        4,
    ),
    "index_queries": Build(
        "dsv4.kernels.index.queries:_index_queries",
        (BF16, BF16, F32, F32, U8, F32, "fp32"),
        {"R": 4, "FP4": True, "ANGLES": 32},
        1,
        EXACT,
    ),
    "route_logits": Build(
        "dsv4.kernels.moe.route:_logits",
        (BF16, BF16, F32, "i32"),
        {"C": 4096, "E": 256, "PARTS": 4, "BT": 16, "BE": 16, "BC": 256, "PDL": True},
        4,
        {"num_stages": 3},
    ),
    "route_choose": Build(
        "dsv4.kernels.moe.route:_choose",
        (F32, F32, I32, I32, I32, F32, "fp32"),
        {"E": 256, "EP": 256, "K": 6, "KP": 8, "PARTS": 4, "HASHED": False, "PDL": True},
        1,
    ),
    "count": Build("dsv4.kernels.moe.permute:_count", (I32, I32, "i32"), {"CHUNK": 4096, "PDL": True}, 8),
    "permute": Build(
        "dsv4.kernels.moe.permute:_permute",
        (I32, I32, I32, I32, I32, "i32", "i32"),
        {"E": 256, "BINS": 512, "SIZE": 16, "CHUNK": 512, "COUNTED": False, "PLACES": True, "PDL": True},
        4,
    ),
    "to_fp8": Build(
        "dsv4.kernels.moe.quantise:_to_fp8", (BF16, U8, F32, F32, U8), {"C": 4096, "BLOCKS": 8, "PDL": True}, 2
    ),
    "to_fp4": Build(
        "dsv4.kernels.moe.quantise:_to_fp4",
        (BF16, U8, U8, BF16),
        {"C": 4096, "BLOCKS": 32, "PACK": True, "PDL": True},
        2,
    ),
    "place": Build(
        "dsv4.kernels.moe.place:_place",
        (BF16, I32, F32, U8, BF16, F32, "i32"),
        {"C": 4096, "TOP": 6, "BLOCKS": 8, "TOKENS": True, "PDL": True},
        2,
    ),
    "combine": Build(
        "dsv4.kernels.moe.combine:_combine",
        (BF16, I32, BF16, BF16),
        {"E": 256, "C": 4096, "TOP": 6, "BC": 1024, "SHARED": True, "PDL": True},
        4,
    ),
    "compress_c128": Build(
        "dsv4.kernels.compress.c128_online:_compress_c128",
        (*ROW, BF16, I32, I64, F32, F32, I32, "i32", "fp32"),
        {"PAGE": 2, "STRIDE": 1728, "ANGLES": 32},
        8,
        EXACT,
    ),
}
COUNTED = ("mma.sync", "cvt.rn.satfinite.e4m3x2", "griddepcontrol.wait", "ld.global.v4", "st.global.v4")


def compiled(build: Build, arch: int) -> Any:
    """The kernel for one target, pointers aligned as tensors are."""
    from triton import compile as build_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name = build.where.split(":")
    kernel = getattr(import_module(module), name)
    arguments = [n for n in kernel.arg_names if n not in build.constants]
    types = dict(zip(arguments, build.types, strict=True))
    signature = {n: types.get(n, "constexpr") for n in kernel.arg_names}
    constants = {(kernel.arg_names.index(n),): value for n, value in build.constants.items()}
    aligned = [["tt.divisibility", 16]]
    attributes = {(i,): aligned for i, n in enumerate(kernel.arg_names) if signature[n].startswith("*")}
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": build.warps, **build.options}
    return build_kernel(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources(cubin: bytes) -> dict[str, int]:
    """REG, STACK, SHARED, LOCAL of the only kernel in a cubin."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    pairs = (word.split(":") for word in said.split() if word.startswith(("REG:", "STACK:", "SHARED:", "LOCAL:")))
    return {name.lower(): int(value) for name, value in pairs}


def main() -> None:
    for target in map(int, sys.argv[1:]):
        for name, build in BUILDS.items():
            kernel = compiled(build, target)
            counts = {word: kernel.asm["ptx"].count(word) for word in COUNTED}
            entry = build.where.replace(":", ".")
            row = {"kernel": name, "entry": entry, "arch": target, **resources(kernel.asm["cubin"]), **counts}
            sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
