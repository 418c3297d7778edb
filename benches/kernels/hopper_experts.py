"""One short visit to a Hopper GPU for the CUDA kernel of the experts: right first, then fast, inside a time limit.

    python3 -m benches.kernels.hopper_experts --out FILE [--seconds 150]

Needs Python with torch and triton, and nothing else of dsv4's dependencies; Humming beside it where it is installed.
hopper_experts_parts.py does the work (visit.py: a kernel that hangs costs its own part alone):

    compile    NVRTC, from disk if it is there
    small      a layer of eight small experts against the float32 reference, the same bits again and again
    right      Flash's layer: three tokens of each size against the reference, and their bits alone
    times      CUDA, Triton and Humming, graph by graph in turns, whole chains, uniform and Zipf
    launches   permute, place, up, place, down at 8,192 and 1,024 tokens, each alone
    variants   `up` with something left out, to see what a stage waits for
    timeline   cycles of a block's stages

Lines of JSON go to FILE as they come, a table is printed last. Status 1 unless everything was right.
"""

from __future__ import annotations

import sys

from benches.kernels.visit import Row, Visit

VISIT = Visit(
    module="benches.kernels.hopper_experts_parts",
    silence={"compile": 25, "small": 60, "right": 90, "times": 90, "launches": 60, "variants": 60, "timeline": 30},
    needs={"compile": "", "small": "compile", "right": "small"},
    rest="small",
    variables={},
    shown=("compile", "small", "right", "launches", "variants", "timeline"),
)
NAMES = ("cuda", "triton", "humming")


def table(rows: list[Row]) -> None:
    """Microseconds of a chain, one line per number of tokens and routing."""
    print(f"{'routing':8} {'T':>6} {'CUDA':>9} {'Triton':>9} {'Humming':>9} {'TFLOP/s':>8}")
    for row in rows:
        if row["part"] == "times":
            us = " ".join(f"{row['us'][name]:9.1f}" if name in row["us"] else " " * 9 for name in NAMES)
            print(f"{row['routing']:8} {row['T']:6} {us} {row['tflops']:8.0f}")


def main() -> int:
    return VISIT.main(__doc__, table, must={"compile", "small", "right"}, seconds=150)


if __name__ == "__main__":
    sys.exit(main())
