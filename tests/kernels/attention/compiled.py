# mypy: disable-error-code="import-untyped"
"""Compiles kernels for GPUs that this machine need not have and writes what came out, one line of JSON each.

A process of its own: under TRITON_INTERPRET, as the other tests run, there is nothing to compile.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dsv4.kernels.attention.sparse_decode import _sparse_decode
from dsv4.kernels.index.logits import _index_scores
from dsv4.kernels.index.topk import _select

BLACKWELL = 100
MATRIX = r"wgmma\.mma_async\.sync\.aligned\.m64n\d+k\d+\.f32\.\w+\.\w+|tcgen05\.mma[\w.:]*"
ATTENTION = (
    "q:*bf16 sink:*fp32 window_pool:*u8 window_stride:i64 window_slots:*i32 positions:*i32 extra_from:i64 "
    "extra_pool_stride:i64 extra:*i32 extra_stride:i32 token_rows:*i32 out:*bf16 partial:*fp32 stats:*fp32 "
    "arrivals:*i32 max_units:i32 scale:fp32"
)
SCORES = (
    "q:*fp8e4nv weights:*fp32 pool:*u8 page_bytes:i32 block_table:*i32 table_stride:i32 token_rows:*i32 "
    "positions:*i32 scores:*fp32 scores_stride:i32"
)
TOPK = (
    "scores:*fp32 scores_stride:i32 positions:*i32 block_table:*i32 table_stride:i32 token_rows:*i32 out:*i32 "
    "left_keys:*i32 left_entries:*i32 arrivals:*i32"
)
NOT_ALIGNED = {"max_units", "num_tokens", "tokens", "scale", "extra_stride", "table_stride", "scores_stride"}


def stack_bytes(cubin: bytes) -> int:
    """Bytes of local memory per thread: spilled registers."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"STACK:(\d+)", done.stdout + done.stderr)
    assert found is not None, done.stdout + done.stderr
    return int(found[1])


def compiled(name: str, fn: Any, arguments: str, constants: dict[str, Any], arch: int, num_warps: int) -> None:
    types = dict(argument.split(":") for argument in arguments.split())
    names = fn.arg_names
    signature = {n: types.get(n, "constexpr") for n in names}
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in types if n not in NOT_ALIGNED}
    source = ASTSource(fn, signature, {(names.index(n),): v for n, v in constants.items()}, aligned)
    stages = 3 if fn is _index_scores else 1
    kernel = triton.compile(source, GPUTarget("cuda", arch, 32), {"num_warps": num_warps, "num_stages": stages})
    matrix = sorted(set(re.findall(MATRIX, kernel.asm["ptx"])))
    entry = f"{fn.__module__}.{fn.__name__}"
    row = {"name": name, "entry": entry, "arch": arch, "matrix": matrix, "stack": stack_bytes(kernel.asm["cubin"])}
    sys.stdout.write(json.dumps(row | {"shared": kernel.metadata.shared, "ptx": len(kernel.asm["ptx"])}) + "\n")


def main() -> None:
    for arch in map(int, sys.argv[1:]):
        attention = {
            "K": 512,
            "RATIO": 4,
            "EXTRA": 1,
            "PAGE": 64,
            "H": 64,
            "HB": 64,
            "SPLITS": 1,
            "U": 128,
            "PTX": True,
        }
        compiled("attention", _sparse_decode, ATTENTION, attention | {"BLACKWELL": arch >= BLACKWELL}, arch, 8)
        scores = {"K": 512, "RATIO": 4, "TILES": 4, "TILE": 128, "STAGES": 3, "PTX": True}
        for fp4 in (False, True):
            compiled("fp4 scores" if fp4 else "fp8 scores", _index_scores, SCORES, scores | {"FP4": fp4}, arch, 4)
        parts = {"K": 512, "RATIO": 4, "SLOTS": True, "SEGMENT": 4096, "SEGMENTS": 4, "MERGE": 2048}
        compiled("topk", _select, TOPK, parts, arch, 8)


if __name__ == "__main__":
    main()
