"""The parts of hopper_attention.py, one after the other in this process; every line says that it is alive."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from benches.kernels import triton_attention
from benches.kernels.bench_sparse_decode import SHAPES as ALL
from benches.kernels.bench_sparse_decode import Bench
from benches.kernels.harness import Case, alternate, capture, measure, run_parts, say, settle
from tests.kernels.attention.paged import Kind, tokens
from torch import Tensor

from dsv4.kernels.attention import hopper
from dsv4.kernels.attention.sparse_decode import SCALE, SelectedRows, VisibleRows, checked
from dsv4.kernels.cuda.compile import compiler, cubin
from dsv4.kernels.cuda.device import Module

BATCHES = (256, 64, 8, 128, 1, 32, 512)
CHECKED = (1, 7, 140, 300)
SHAPES = ("c4", "c128-8k", "window")
TRITON_FIRST = (("c4", 128), ("c4", 256), ("c4", 512), ("c128-8k", 256), ("window", 256), ("c4", 1), ("c4", 8))
EDGES: tuple[tuple[Kind, list[int], int], ...] = (
    ("window", [0], 64),
    ("window", [0, 62, 63, 64, 126, 127, 128, 1000], 64),
    ("c4", [2, 3, 254, 255, 300, 2047, 3000], 64),
    ("c128", [126, 127, 255, 16_600], 64),
    ("c4", [70, 300], 128),
)
TOLERANCE = 3e-3  # against float64; the reference rounds its weights, too, so 4e-3 against that
Given = tuple[Any, ...]


@functools.cache
def bench() -> Bench:
    torch.manual_seed(0)
    return Bench()


def given(shape: str, B: int) -> tuple[Any, Given]:
    """Inputs of the bench, and what sparse_decode takes of them."""
    x = bench().inputs(shape, B)
    positions = torch.full((B,), ALL[shape][1], dtype=torch.int32, device="cuda")
    return x, (x.q, bench().sink, bench().window, x.window_slots, positions, bench().rows(shape, x))


def decode(each: int, tensors: Given) -> Tensor:
    """By so many blocks per token, whatever the launch would choose; what is not written is NaN."""
    x, out = checked(*tensors), torch.full_like(tensors[0], torch.nan)
    work, num_sms = x.q.shape[0] * x.q.shape[1] // 64, hopper.kernels_on(x.q.device).num_sms
    hopper.launch(x, out, SCALE, hopper.Cut(each, each * min(work, num_sms // each)))
    return out


def edge(kind: Kind, positions: list[int], heads: int) -> tuple[Given, Tensor]:
    """Tokens of the tests on the device, poison and all, and what must come out."""
    x = tokens(positions, kind, heads=heads)
    rows: SelectedRows | VisibleRows | None = None
    if x.extra_pool is not None and x.table is not None:
        pool, found = x.extra_pool.cuda(), x.table.cuda()
        token_rows = torch.arange(len(positions), dtype=torch.int32).cuda()
        rows = SelectedRows(pool, found) if x.page == 64 else VisibleRows(pool, found, token_rows)
    at = torch.tensor(positions, dtype=torch.int32)
    return (x.q.cuda(), x.sink.cuda(), x.window_pool.cuda(), x.window_slots.cuda(), at.cuda(), rows), x.expected()


def worst(out: Tensor, want: Tensor) -> float:
    got, true = out.double().cpu().flatten(1), want.double().flatten(1)
    return float(((got - true).norm(dim=1) / true.norm(dim=1)).max())  # a NaN fails every comparison


def compiled() -> None:
    begin = time.monotonic()
    sizes = {entry.name: len(cubin(entry.source)) for entry in hopper.ENTRIES.values()}
    seconds = round(time.monotonic() - begin, 2)
    say("compile", compiler=compiler().version, bytes=sizes, seconds=seconds, card=torch.cuda.get_device_name())
    hopper.kernels_on(torch.zeros(1, device="cuda").device)


def right(each: int) -> None:
    part, bad = f"right-{each}", 0
    torch.manual_seed(each)
    for kind, positions, heads in EDGES:
        tensors, want = edge(kind, positions, heads)
        out = decode(each, tensors)
        error, same = worst(out, want), torch.equal(decode(1, tensors), out)
        bad += not (error < TOLERANCE + 1e-3 and same)
        say(part, kind=kind, positions=positions, heads=heads, error=round(error, 5), same_bits=same)
    for shape in SHAPES:
        for B in CHECKED:
            x, tensors = given(shape, B)
            out = decode(each, tensors)
            error = max(bench().error(shape, x, out, t) for t in {0, B // 2, B - 1})
            same = all(torch.equal(decode(each, tensors), out) for _ in range(10))
            same &= torch.equal(decode(1, tensors), out)
            bad += not (error < TOLERANCE and same)
            say(part, kind=shape, B=B, error=round(error, 5), same_bits=same)
    if bad:
        raise SystemExit(f"{part}: {bad} cases are wrong")


def timed(part: str, case: Case) -> None:
    """Rows of the harness for one case."""
    for row in measure(replace(case, check=None)):
        say(part, **row)


def times() -> None:
    for B in BATCHES:
        for shape in SHAPES:
            timed("times", bench().case(shape, B))


def triton_beside() -> None:
    rest = [(shape, B) for B in BATCHES for shape in SHAPES if (shape, B) not in TRITON_FIRST]
    for shape, B in (*TRITON_FIRST, *rest):
        timed("triton", triton_attention.case(bench(), shape, B))


def call(x: hopper.Inputs, out: Tensor, cut: hopper.Cut) -> Callable[[], None]:
    return lambda: hopper.launch(x, out, SCALE, cut)


def two_blocks() -> bool:
    return hopper.cut_of(1, 64, 132).blocks_per_token == 2


def one_against_two(B: int) -> None:
    """The same inputs again and again, so from L2: one block per token, and two."""
    x = checked(*given("c4", B)[1])
    out = torch.empty_like(x.q)
    names = [hopper.Cut(each, each * B) for each in ((1, 2) if two_blocks() else (1,))]
    graphs = [capture([call(x, out, cut)] * 20) for cut in names]
    settle(graphs, 0.1)
    us = [round(sorted(t)[len(t) // 2] / 20, 2) for t in alternate(graphs, 15)]
    say("timeline", B=B, us_by_blocks_per_token={cut.blocks_per_token: u for cut, u in zip(names, us, strict=True)})


def timeline(each: int, B: int) -> None:
    """Clocks of the first block from its producer's first mark on: [group][stage][event]; 0 where none was made."""
    entry = hopper.ENTRIES[each]
    code, _ = compiler().cubin(entry.source, "sm_90a", ["TIMELINE"])
    kernel = Module(code).kernel(entry.name, entry.threads, entry.shared_bytes)
    x = checked(*given("c4", B)[1])
    clocks = torch.zeros(3, 256, 8, dtype=torch.int32, device="cuda")
    arguments = x.arguments(torch.empty_like(x.q), SCALE)
    arguments.timeline = clocks.data_ptr()
    for _ in range(3):
        kernel.launch(hopper.cut_of(B, 64, 132).blocks, arguments)
    torch.cuda.synchronize()
    found = clocks[:, :22].cpu().long()
    found = torch.where(found == 0, 0, found - found[2, 0, 0] + 1)
    say("timeline", each=each, B=B, clocks=found.tolist())


def timelines() -> None:
    for B in (1, 8, 32, 64):
        one_against_two(B)
    timeline(1, 256)
    if two_blocks():
        timeline(2, 8)


PARTS: dict[str, Callable[[], None]] = {
    "compile": compiled,
    "right-1": lambda: right(1),
    "right-2": lambda: right(2),
    "times": times,
    "timeline": timelines,
    "triton": triton_beside,
}


def one_block(num_tokens: int, num_heads: int, num_sms: int) -> hopper.Cut:
    return hopper.Cut(1, min(num_tokens * num_heads // 64, num_sms))


def main() -> None:
    parts = sys.argv[1:]
    if parts[0] == "--one-block":  # two of them were wrong
        hopper.cut_of = one_block
        del parts[0]
    run_parts(PARTS, parts)


if __name__ == "__main__":
    main()
