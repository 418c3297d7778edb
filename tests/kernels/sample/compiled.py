# mypy: disable-error-code="import-untyped"
"""Compiles the sampler's kernels for GPUs that need not be here, one line of JSON each; see linear/compiled.py."""

from __future__ import annotations

import json
import sys
from typing import Any

import triton
from tests.kernels.targets import resources
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dsv4.kernels.sample import passes
from dsv4.kernels.sample.sample import CANDIDATES, CHUNK, MOST_LOGPROBS, SEGMENT, WARPS

S = -(-129_280 // SEGMENT)
ROW = "logits:*fp32 logits_row:i32 masked:*fp32 V:i32 starts:*i32 restricted:*u8 "
FILTERS = "temperatures:*fp64 top_ks:*i32 top_ps:*fp64 min_ps:*fp64 "
CUT = {"SEGMENT": SEGMENT, "SEGMENTS": S}
KERNELS: tuple[tuple[Any, str, dict[str, int]], ...] = (
    (
        passes.scan,
        ROW + "entries:*i32 flags:*u8 counts:*fp32 bias:*fp32 penalties:*fp32 num_logprobs:*i32 seg_max:*fp32 "
        "seg_arg:*i32 seg_bad:*i32 seg_top:*fp32 seg_sum:*fp64 arrivals:*i32 row_max:*fp32 row_norm:*fp64 tokens:*i32 "
        "status:*i32",
        {"SP": 32, "CHUNK": CHUNK},
    ),
    (passes.mass, ROW + FILTERS + "row_max:*fp32 status:*i32 seg_mass:*fp64 seg_bins:*i32", {}),
    (
        passes.settle,
        ROW + FILTERS + "seeds:*i64 choices:*i64 positions:*i64 row_max:*fp32 seg_mass:*fp64 seg_bins:*i32 "
        "left_logits:*fp32 left_ids:*i32 arrivals:*i32 tokens:*i32 status:*i32",
        {"SP": 32, "CANDIDATES": CANDIDATES},
    ),
    (
        passes.logprobs,
        (
            "logits:*fp32 logits_row:i32 V:i32 num_logprobs:*i32 tokens:*i32 status:*i32 row_norm:*fp64 seg_rank:*i32 "
            "best_logits:*fp32 best_ids:*i32 arrivals:*i32 out_logprobs:*fp32 out_ranks:*i32 top_logprobs:*fp32 "
            "top_ids:*i32"
        ),
        {"SP": 32, "MOST": MOST_LOGPROBS},
    ),
)


def main() -> None:
    for arch in map(int, sys.argv[1:]):
        for fn, arguments, constants in KERNELS:
            types = dict(argument.split(":") for argument in arguments.split())
            signature = {n: types.get(n, "constexpr") for n in fn.arg_names}
            aligned = {(fn.arg_names.index(n),): [["tt.divisibility", 16]] for n in ("logits", "masked") if n in types}
            values = {(fn.arg_names.index(n),): v for n, v in (CUT | constants).items()}
            source = ASTSource(fn, signature, values, aligned)
            options = {"num_warps": WARPS, "enable_fp_fusion": False}
            kernel = triton.compile(source, GPUTarget("cuda", arch, 32), options)
            words = {word: kernel.asm["ptx"].count(word) for word in ("div.rn.f32", "fma.rn.f32", "ld.global.v4")}
            entry = f"{fn.__module__}.{fn.__name__}"
            row = {"name": fn.__name__, "entry": entry, "arch": arch, **resources(kernel.asm["cubin"]), **words}
            sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
