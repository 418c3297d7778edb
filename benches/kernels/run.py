"""Times every kernel on this machine's GPU and appends one line per result: `python -m benches.kernels.run --out FILE`.

    --only mhc,compress   parts, by the name after bench_
    --ops moe_w4a8        of their rows, those of these ops
    --check               compare with the lines that FILE held for this device; fail at a slowdown of 15 %
    --commit, --seed      recorded as they are; the commit defaults to $COMMIT

Every op is compared with its reference first, at the shapes that are timed; an op that is wrong is not timed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import sys
import traceback
from pathlib import Path

import benches.kernels
import torch
import triton
from benches.kernels.harness import card, measure

SLOWER = 1.15


def parts(only: str) -> list[str]:
    """Names of the benches in this folder, or those asked for."""
    names = [m.name.removeprefix("bench_") for m in pkgutil.iter_modules(benches.kernels.__path__)]
    found = [
        m.name.removeprefix("bench_")
        for m in pkgutil.iter_modules(benches.kernels.__path__)
        if m.name.startswith("bench_")
    ]
    wanted = only.split(",") if only else found
    unknown = set(wanted) - set(names)
    if unknown:
        raise SystemExit(f"no such part: {sorted(unknown)}; there are {found}")
    return wanted


def key(row: dict[str, object]) -> str:
    """What makes two lines the same measurement."""
    return json.dumps([row.get(k) for k in ("op", "shape", "dtype", "routing", "peer", "device")], sort_keys=True)


def environment(commit: str, seed: int) -> dict[str, object]:
    return {
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": commit,
        "seed": seed,
        **card(),
    }


def show(row: dict[str, object]) -> str:
    shape = " ".join(f"{k}={v}" for k, v in dict(row["shape"]).items())  # type: ignore[call-overload]
    peer = (
        f"{row['peer']} {row['peer_us']} us, ratio {row['ratio']}"
        if row["ratio"]
        else f"{row['peer']}: {row['skipped']}"
    )
    return f"{row['op']:22} {shape:24} {row['us']:>9} us {row['gbps']:>7} GB/s {row['x_floor']:>6}x floor  {peer}"


def main() -> int:
    """Runs the parts, prints and appends their lines; 1 if one failed or is slower than its stored line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--ops", default="")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--commit", default=os.environ.get("COMMIT", "unknown"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: nothing was measured")
        return 0
    stored = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    before = {key(row): row for row in stored}
    bad, lines, seen = 0, [], set[str]()
    for part in parts(args.only):
        torch.manual_seed(args.seed)
        for case in importlib.import_module(f"benches.kernels.bench_{part}").cases():
            seen.add(case.op)
            if args.ops and case.op not in args.ops.split(","):
                continue
            try:
                if case.check is not None:
                    case.check()
                rows = list(measure(case))
            except Exception:  # noqa: BLE001 - one broken case must not cost the others their lease of the GPU
                traceback.print_exc()
                print(f"FAILED {case.op} {case.shape}", flush=True)
                bad += 1
                continue
            here = environment(args.commit, args.seed)
            for row in (measured | here for measured in rows):
                old = before.get(key(row))
                if args.check and old and row["us"] > SLOWER * old["us"]:
                    print(f"SLOWER than the stored {old['us']} us:", end=" ")
                    bad += 1
                lines.append(row)
                print(show(row), flush=True)
                with args.out.open("a") as out:
                    out.write(json.dumps(row) + "\n")
    if args.ops and not set(args.ops.split(",")) <= seen:
        print(f"--ops {args.ops}: these parts have {sorted(seen)}")
        bad += 1
    print(f"{len(lines)} lines, {bad} bad")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
