# mypy: disable-error-code="import-untyped"
"""Compiles the experts' products for GPUs that this machine need not have; one line of JSON for each kernel and target.

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

from dsv4.kernels.moe.blackwell import PAIRS, ROWS, STEP, WARPS, grouped_scaled
from dsv4.kernels.moe.configs import tiles_of
from dsv4.kernels.moe.grouped import grouped_bf16, grouped_fp8
from dsv4.kernels.moe.shared import dense_fp8

C, M, TOP = 4096, 2048, 6
MATRIX = r"wgmma\.mma_async\.sync\.aligned\.m64n\d+k\d+\.f32\.\w+\.\w+|tcgen05\.mma[\w.:]*"
TYPES = {
    "x_ptr": "*bf16",
    "x_steps_ptr": "*fp32",
    "x_scale_ptr": "*fp32",
    "codes_ptr": "*u8",
    "scales_ptr": "*i32",
    "order_ptr": "*i32",
    "expert_ptr": "*i32",
    "weights_ptr": "*fp32",
    "out_ptr": "*bf16",
    "w_ptr": "*fp8e4nv",
    "w_scale_ptr": "*u8",
    "T": "i32",
    "limit": "fp32",
}
FP8 = {"x_ptr": "*fp8e4nv"}
NATIVE = {"x_scale_ptr": "*u8", "scales_ptr": "*u8"}


def tool(name: str, cubin: bytes, *options: str) -> str:
    """What a binary tool of the Triton package says of a cubin."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([path, *options, file.name], capture_output=True, text=True, check=False)
    return done.stdout


def compiled(
    name: str, fn: Any, types: dict[str, str], constants: dict[str, Any], arch: int, warps: int, stages: int
) -> None:
    names = fn.arg_names
    signature = {n: (TYPES | types)[n] if n not in constants else "constexpr" for n in names}
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in names if signature[n].startswith("*")}
    source = ASTSource(fn, signature, {(names.index(n),): v for n, v in constants.items()}, aligned)
    kernel = triton.compile(source, GPUTarget("cuda", arch, 32), {"num_warps": warps, "num_stages": stages})
    cubin = kernel.asm["cubin"]
    stack = re.search(r"STACK:(\d+)", tool("cuobjdump", cubin, "-res-usage"))
    assert stack is not None
    entry = f"{fn.__module__}.{fn.__name__}"
    row = {"name": name, "entry": entry, "arch": arch, "stack": int(stack[1]), "shared": kernel.metadata.shared}
    row["matrix"] = sorted(set(re.findall(MATRIX, kernel.asm["ptx"])))
    row["machine"] = sorted(set(re.findall(r"\bUTC\w*MMA\b", tool("nvdisasm", cubin))))
    sys.stdout.write(json.dumps(row) + "\n")


def main() -> None:
    for arch in map(int, sys.argv[1:]):
        for gated, part in ((True, "up"), (False, "down")):
            cut = {"K": C if gated else M, "WIDTH": M if gated else C, "TOP": TOP if gated else 1, "GATED": gated}
            launch = {"PDL": True, "PTX": True}
            for activations, fn, types in (("w4a8", grouped_fp8, FP8), ("w4a16", grouped_bf16, {"codes_ptr": "*i32"})):
                tile = tiles_of(activations, 64 * TOP, 256)[0 if gated else 1]
                constants = cut | launch | {"BN": tile.pairs, "BM": tile.rows, "STAGES": tile.stages}
                if activations == "w4a16":
                    constants["FP4"] = False
                name = f"{'fp8' if activations == 'w4a8' else 'bf16'} {part}"
                compiled(name, fn, types, constants, arch, tile.warps, tile.stages)
            shape = {"BM": 64, "BN": 16, "STAGES": 5, "K": cut["K"], "WIDTH": cut["WIDTH"], "GATED": gated}
            compiled(f"shared fp8 {part}", dense_fp8, FP8, shape | launch, arch, 4, 5)
            for fp4 in (True, False) if arch != 90 else ():
                constants = cut | {"FP4": fp4, "BM": PAIRS, "BN": ROWS, "BK": STEP}
                types = NATIVE | ({"x_ptr": "*u8"} if fp4 else FP8)
                compiled(f"scaled {'w4a4' if fp4 else 'w4a8'} {part}", grouped_scaled, types, constants, arch, WARPS, 3)


if __name__ == "__main__":
    main()
