"""One short visit to a Hopper GPU for the CUDA kernel of sparse decode: right first, then fast, inside a time limit.

    python3 -m benches.kernels.hopper_attention --out FILE [--seconds 80]

Needs Python with torch and triton, and nothing else of dsv4's dependencies. hopper_parts.py does the work, in a process
that is ended where it says nothing for too long, so that a kernel that hangs costs its own part alone; the parts that
do not need it go on in a new process:

    compile        NVRTC, from disk if it is there
    right-1        one block per token: poisoned pools, edge positions, more tokens than multiprocessors; float64 on the
    right-2        device is the judge. Two blocks of a cluster: the same, and the same bits as one block
    times          CUDA at every batch and shape; FlashMLA beside it where it is installed
    timeline       one block per token against two; clocks inside one block: who waits for whom
    triton         the Triton kernel beside the CUDA one, as far as the time goes (each split compiles for seconds)

Lines of JSON go to FILE as they come, a table is printed last. Status 1 unless everything was right.
"""

from __future__ import annotations

import sys
from collections.abc import Collection

from benches.kernels.visit import Row, Visit


def one_block(parts: Collection[str]) -> list[str]:
    """Two blocks of a cluster serve unless they were wrong."""
    return [] if "right-2" in parts else ["--one-block"]


VISIT = Visit(
    module="benches.kernels.hopper_parts",
    silence={"compile": 25, "right-1": 15, "right-2": 10, "times": 12, "timeline": 12, "triton": 40},
    needs={"compile": "", "right-1": "compile", "right-2": "right-1"},
    rest="right-1",
    variables={"DSV4_SPARSE_DECODE": "cuda"},
    shown=("compile", "right-1", "right-2", "timeline"),
    flags=one_block,
)


def table(rows: list[Row]) -> None:
    """What was measured, one line per shape and batch: us of the CUDA kernel, of FlashMLA and of Triton, and ratios."""
    found: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        if not row.get("peer"):
            continue
        line = found.setdefault((row["shape"]["kind"], row["shape"]["B"]), [])
        if row["part"] == "times":
            line.insert(0, f"{row['us']:8.2f} us {row['x_floor']:7.2f} x floor")
            if row.get("ratio"):
                line.append(f"FlashMLA {row['peer_us']:.2f} us, ratio {row['ratio']:.3f}")
        elif row.get("ratio"):
            line.append(f"Triton {row['us']:.2f} us beside {row['peer_us']:.2f}, ratio {1 / row['ratio']:.3f}")
    for (kind, B), line in sorted(found.items()):
        print(f"{kind:10} B {B:4} " + "   ".join(line))


def main() -> int:
    return VISIT.main(__doc__, table, must={"compile", "right-1", "right-2"}, seconds=80)


if __name__ == "__main__":
    sys.exit(main())
