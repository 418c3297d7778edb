"""Searches the cut of every product on this machine's GPU: `python -m benches.kernels.tune_linear --out FOLDER`.

Writes tune.jsonl (every cut, microseconds) and tuned.json (the best of each product and row class, in the form of
python/dsv4/kernels/linear/tuned.json). `--part i/n` compiles a share into Triton's cache and measures nothing.
Offline only: a server takes what the package holds.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from benches.kernels.harness import alternate, capture
from benches.kernels.linear_inputs import FLASH, Product, rows_of, weight_of

from dsv4.kernels.linear import gemm, tuning
from dsv4.kernels.linear.quantise import Fp8Rows
from dsv4.kernels.linear.tuning import Cut

SHARED = 227 * 1024
TOUCHED = 160e6


def cuts(p: Product, rows: int) -> Iterator[Cut]:
    """Few rows: the weight's tile and how much of it is on its way. Many: tiles of the matrix units."""
    size_x, size_w = (1, 1) if p.kind == 0 else (2, 1 if p.kind == 1 else 2)
    channels = 128 if p.kind == 0 else 64
    tiles: list[tuple[int, int, int, int]] = []  # bn, bt, warps, band
    if rows <= 64:
        tiles += [(64, rows, 4, 0), (128, rows, 4, 0), (128, rows, 8, 0)]
    elif rows == 256:
        tiles += [(bn, 64, warps, 0) for bn, warps in ((64, 4), (128, 4), (128, 8))] + [(128, 128, 8, 0)]
    if rows >= 256:
        tiles += [(128, 64, 4, 8), (128, 128, 8, 8)]
        tiles += [(64, 64, 4, 8), (64, 128, 4, 8)] if rows <= 1024 else [(128, 128, 4, 8), (128, 256, 8, 8)]
        if p.kind == 1:
            tiles += [(128, 128, 8, 0)]
        if p.kind and rows > 1024:
            tiles += [(256, 128, 8, 8)]
    for (bn, bt, warps, band), bk in itertools.product(tiles, (channels,) if p.kind != 2 or rows > 64 else (64, 128)):
        for stages in (4, 7) if rows <= 64 else (3, 4):
            if p.out == 2 and bn != 128:
                continue
            if (bn * size_w + bt * size_x) * bk * stages <= SHARED:
                yield Cut(bn, bt, bk, stages, warps, band, int(band == 0 and rows > 64))


def launcher(p: Product, cut: Cut, splits: int, workspace: gemm.Workspace) -> object:
    target = gemm._launch_many if cut.band else gemm._launch_few  # noqa: SLF001

    def call(x: torch.Tensor | Fp8Rows, w: gemm.Fp8Weight, out: torch.Tensor, out_sf: torch.Tensor) -> None:
        values, sf = x if isinstance(x, Fp8Rows) else (x, x)
        target(cut, p.kind, p.out, p.groups, splits, values, sf, w, out, out_sf, workspace)

    return call


def jobs(only: str) -> list[tuple[Product, int, int, Cut]]:
    """(product, rows, splits, cut): every cut at the product's splits, and other splits at one cut."""
    found = []
    for p in FLASH:
        if only and p.name not in only.split(","):
            continue
        own = tuning.num_splits(p.N, p.K, p.groups)
        for rows in tuning.ROW_CLASSES:
            if p.name in ("head", "router", "index q_b") and rows > 256:
                continue  # logits of sampled rows alone; the others are small or like q_b
            found += [(p, rows, own, cut) for cut in cuts(p, rows)]
        steps = p.K // 128
        bn = 128 if p.out == 2 else 64
        found += [(p, rows, s, Cut(bn, rows, 128 if p.kind == 0 else 64, 6, 4, 0))
                  for rows in (16, 64)[: 1 if p.N > 4096 else 2]
                  for s in (1, 2, 4, 8, 16) if s != own and steps % s == 0 and steps // s >= 2]  # fmt: skip
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", default="")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    torch.manual_seed(0)
    workspace = gemm.Workspace(torch.device("cuda"), num_bytes=256 << 20)
    todo = jobs(args.only)
    if args.part:
        part, parts = map(int, args.part.split("/"))
        todo = todo[part::parts]
    best: dict[str, tuple[float, Cut]] = {}
    held: dict[tuple[str, int], tuple[list[object], ...]] = {}
    for p, rows, splits, cut in todo:
        call = launcher(p, cut, splits, workspace)
        sets = 1 if args.part else int(max(2, min(48, TOUCHED // p.bytes(rows))))
        if (p.name, rows) not in held:
            held.clear()
            xs = [rows_of(p, rows) for _ in range(sets)]
            ws = [weight_of(p) for _ in range(sets)]
            out = torch.empty(rows, p.groups * p.N, device="cuda", dtype=gemm._OUT[p.out])  # noqa: SLF001
            out_sf = torch.empty(p.groups * p.N // 512, rows, device="cuda", dtype=torch.int32)
            held[p.name, rows] = (xs, ws, [out], [out_sf])  # type: ignore[assignment]
        xs, ws, (out,), (out_sf,) = held[p.name, rows]  # type: ignore[assignment]
        calls = [functools.partial(call, x, w, out, out_sf) for x, w in zip(xs, ws, strict=True)]  # type: ignore[operator]
        try:
            if args.part:
                calls[0]()
                torch.cuda.synchronize()
                continue
            graph = capture(calls)
            alternate([graph], 4)
            us = statistics.median(alternate([graph], 12)[0]) / sets
        except Exception as error:  # noqa: BLE001 - a cut that does not fit is no cut
            print("FAILED", p.name, rows, splits, cut, str(error)[:150], flush=True)
            continue
        with (args.out / "tune.jsonl").open("a") as file:
            row = {"name": p.name, "kind": p.kind, "rows": rows, "splits": splits, "cut": cut, "us": round(us, 2)}
            file.write(json.dumps(row) + "\n")
        name = tuning.key(p.kind, p.N, p.K, p.groups, rows)
        if splits == tuning.num_splits(p.N, p.K, p.groups) and us < best.get(name, (1e9, cut))[0]:
            best[name] = (us, cut)
    if not args.part:
        (args.out / "tuned.json").write_text(json.dumps({k: v[1] for k, v in best.items()}))
        for name, (us, cut) in best.items():
            print(f"{name:28} {us:9.2f} us  {tuple(cut)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
