"""One short visit to a Hopper GPU for the CUDA kernel of FP8 products: right first, then fast, inside a time limit.

    python3 -m benches.kernels.hopper_linear --out FILE [--seconds 100]

Needs Python with torch and triton, and nothing else of dsv4's dependencies; DeepGEMM beside it where it is installed.
hopper_linear_parts.py does the work (visit.py: a kernel that hangs costs its own part alone):

    compile    NVRTC, from disk if it is there
    right      every cut of every product at edge numbers of rows, the same bits again and again; float64 on the device
               is the judge; behind a launch that it may overlap
    warm       other processes compile Triton's kernels and DeepGEMM's
    bits       the bits of Triton's few_rows and many_rows
    times      CUDA, Triton and DeepGEMM, graph by graph in turns, at the products of Flash
    cuts       every shape of a tile beside the one that was chosen
    variants   with something left out, to see what a launch waits for
    timeline   cycles of a block's stages

Lines of JSON go to FILE as they come, a table is printed last. Status 1 unless everything was right.
"""

from __future__ import annotations

import sys

from benches.kernels.visit import Row, Visit

VISIT = Visit(
    module="benches.kernels.hopper_linear_parts",
    silence={
        "compile": 25,
        "right": 15,
        "warm": 60,
        "bits": 30,
        "times": 30,
        "cuts": 12,
        "variants": 20,
        "timeline": 15,
    },
    needs={"compile": "", "right": "compile", "warm": "compile", "bits": "right"},
    rest="right",
    variables={"DSV4_FP8_LINEAR": "cuda"},
    shown=("compile", "right", "bits", "peer", "variants", "timeline"),
)


def table(rows: list[Row]) -> None:
    """Microseconds, one line per product and number of rows; the best cut where it is not the chosen one."""
    print(f"{'product':12} {'M':>5} {'CUDA':>8} {'Triton':>8} {'DeepGEMM':>8} {'CUDA / DeepGEMM':>16}  cut")
    for row in rows:
        if row["part"] == "times":
            us = {name: f"{row['us'][name]:8.2f}" if name in row["us"] else " " * 8 for name in NAMES}
            ratio = f"{row['ratio']:16.3f}" if row.get("ratio") else " " * 16
            print(
                f"{row['product']:12} {row['M']:5} {us['cuda']} {us['triton']} {us['deepgemm']} {ratio}  {row['cut']}"
            )
    for row in rows:
        if row["part"] == "cuts" and row["best"] != row["chosen"]:
            print(f"{row['product']:12} {row['M']:5} {row['chosen']} was chosen; us by shape: {row['us']}")


NAMES = ("cuda", "triton", "deepgemm")


def main() -> int:
    return VISIT.main(__doc__, table, must={"compile", "right", "bits"}, seconds=100)


if __name__ == "__main__":
    sys.exit(main())
