"""The parts of hopper_linear.py, one after the other in this process; every line says that it is alive."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from benches.kernels.bench_linear import deep_gemm_peer, workspace
from benches.kernels.harness import Call, alternate, capture, settle
from benches.kernels.linear_inputs import FLASH, Product, rows_of, weight_of, wide, wide_rows
from torch import Tensor

from dsv4.kernels.cuda.choice import CUDA, TRITON, Choice
from dsv4.kernels.cuda.compile import compiler, cubin
from dsv4.kernels.cuda.device import Module
from dsv4.kernels.linear import gemm, hopper
from dsv4.kernels.linear.gemm import Fp8Weight
from dsv4.kernels.linear.quantise import GROUP, Fp8Rows, quantise
from dsv4.kernels.linear.tuning import num_splits

PRODUCTS = [p for p in FLASH if p.kind == 0]
BATCHES = (64, 256, 8192, 128, 1024, 16, 512, 4096)
CHECKED = (1, 17, 64, 130, 300, 700)
ODD = Product("none", "odd", 0, 384, 1152), Product("none", "eight", 0, 512, 4096), Product("none", "one", 0, 128, 128)
TRITON_BITS = ((64, "q_a+kv"), (300, "q_a+kv"), (64, "shared w2"), (300, "shared w2"), (300, "q_b"))
TOLERANCE = 2e-3  # against float64: the matrix units keep about 14 bits of a sum
TOUCHED = 200e6  # bytes of one round of calls
PROCESSES = 8

Given = tuple[Fp8Rows, Fp8Weight]


def say(part: str, **row: object) -> None:
    print(json.dumps({"part": part} | row), flush=True)


def given(p: Product, T: int) -> Given:
    x = rows_of(p, T)
    assert isinstance(x, Fp8Rows)
    return x, weight_of(p)


def by(cut: hopper.Cut | None, x: Fp8Rows, w: Fp8Weight, dtype: torch.dtype = torch.float32) -> Tensor:
    """By the CUDA kernel; what is not written is NaN."""
    T, N, K = len(x.values), *w.values.shape
    out = torch.full((T, N), torch.nan, dtype=dtype, device="cuda")
    hopper.launch(x.values, x.sf, w.values, w.sf, out, num_splits(N, K, 1), cut)
    return out


def label(cut: hopper.Cut) -> str:
    return f"{cut.kernel} x {cut.cluster}"


def chosen(p: Product, T: int) -> hopper.Cut:
    return hopper.cut_of(T, p.N, p.K, num_splits(p.N, p.K, 1), num_sms())


def all_cuts(p: Product, T: int) -> list[hopper.Cut]:
    """What can serve, and pairs as single blocks."""
    found = hopper.cuts(T, p.N, num_splits(p.N, p.K, 1), num_sms())
    tiles = -(-T // 128) * p.N // GROUP
    return [*found, hopper.Cut(128, "whole", 1, min(tiles, num_sms()))]


def num_sms() -> int:
    return hopper.kernels_on(torch.zeros(1, device="cuda").device).num_sms


def compiled() -> None:
    begin = time.monotonic()
    code = cubin(hopper.SOURCE)
    seconds = round(time.monotonic() - begin, 2)
    say("compile", compiler=compiler().version, bytes=len(code), seconds=seconds, card=torch.cuda.get_device_name())
    num_sms()


def error(x: Fp8Rows, w: Fp8Weight, out: Tensor) -> float:
    """Of the first and last 128 outputs; a NaN fails every comparison."""
    rows, N = wide_rows(x), len(w.values)
    worst = 0.0
    for first in {0, N - GROUP}:
        want = rows @ wide(w, first, GROUP).T
        worst = max(worst, float((out[:, first : first + GROUP].double() - want).norm() / want.norm()))
    return worst


def right() -> None:
    bad = 0
    for p, T in itertools.product((*ODD, *PRODUCTS), CHECKED):
        x, w = given(p, T)
        first, wrong = by(None, x, w), []
        for cut in all_cuts(p, T):
            same = all(torch.equal(by(cut, x, w), first) for _ in range(5))
            same &= torch.equal(by(cut, x, w, torch.bfloat16), first.bfloat16())
            wrong += [] if same else [label(cut)]
        off = error(x, w, first)
        bad += not (off < TOLERANCE and not wrong)
        say("right", product=p.name, M=T, error=round(off, 6), other_bits=wrong)
    bad += not overlapped()
    if bad:
        raise SystemExit(f"right: {bad} cases are wrong")


def overlapped() -> bool:
    """Products that may start before what quantises their rows has ended, and before the product before them has."""
    p = next(p for p in PRODUCTS if p.name == "shared w13")
    w = weight_of(p)
    ok = True
    for T in (64, 300):
        inputs = [torch.randn(T, p.K, device="cuda", dtype=torch.bfloat16) for _ in range(20)]
        outs = [gemm.fp8_linear(quantise(x), w, workspace(), dtype=torch.float32) for x in inputs]
        torch.cuda.synchronize()
        for x, out in zip(inputs, outs, strict=True):
            rows = quantise(x)
            torch.cuda.synchronize()
            ok &= torch.equal(by(None, rows, w), out)
            torch.cuda.synchronize()
        say("right", product="behind a launch that it may overlap", M=T, same_bits=ok)
    return ok


def linear(name: str, x: Fp8Rows, w: Fp8Weight, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """`fp8_linear` as one or the other serves it."""
    gemm.choice = lambda _: Choice(name, "the bench asks for it")  # type: ignore[assignment]
    return gemm.fp8_linear(x, w, workspace(), dtype=dtype)


def warm() -> None:
    """What Triton and DeepGEMM compile goes to disk, by several processes."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "benches.kernels.hopper_linear_parts"]
    children = [subprocess.Popen([*command, f"--share={i}"]) for i in range(PROCESSES)]
    failed = sum(child.wait() != 0 for child in children)
    say("warm", seconds=round(time.monotonic() - begin, 1), failed=failed)


def share(number: int) -> None:
    for p, T in list(itertools.product(PRODUCTS, BATCHES))[number::PROCESSES]:
        x, w = given(p, T)
        linear(TRITON, x, w)
        if (300 if T == 256 else T, p.name) in TRITON_BITS:
            linear(TRITON, x, w, torch.float32)
        peer = deep_gemm_call(p, T, [(x, w)])
        if peer is not None:
            peer(0)()
        torch.cuda.synchronize()
        say("warm", product=p.name, M=T)


def deep_gemm_call(p: Product, T: int, sets: Sequence[Given]) -> Callable[[int], Call] | None:
    """DeepGEMM's call on a set of inputs; None where it is not there or fails."""
    gemm.choice = lambda _: Choice(CUDA, "the bench asks for it")  # type: ignore[assignment]
    try:
        return deep_gemm_peer(p, T, list(sets)).make
    except Exception as why:  # noqa: BLE001 - whatever keeps a peer from running is told and costs its column alone
        say("times", product=p.name, M=T, us={}, cut="", missing=str(why)[:160])
        return None


def bits() -> None:
    bad = 0
    for T, name in TRITON_BITS:
        p = next(p for p in PRODUCTS if p.name == name)
        x, w = given(p, T)
        same = torch.equal(by(None, x, w), linear(TRITON, x, w, torch.float32))
        bad += not same
        say("bits", product=name, M=T, same_bits_as_triton=same)
    if bad:
        raise SystemExit(f"bits: {bad} cases differ from Triton's")


def sets_of(p: Product, T: int) -> list[Given]:
    return [given(p, T) for _ in range(int(max(2, min(96, TOUCHED // p.bytes(T)))))]


def medians(calls: dict[str, Iterator[Call]], count: int, replays: int) -> tuple[dict[str, float], list[list[float]]]:
    """Microseconds of a call by name, and of every replay of `count` calls."""
    graphs = [capture(list(made)) for made in calls.values()]
    settle(graphs, 0.15)
    times = alternate(graphs, replays)
    return {name: round(statistics.median(t) / count, 2) for name, t in zip(calls, times, strict=True)}, times


def times() -> None:
    for T, p in itertools.product(BATCHES, PRODUCTS):
        sets = sets_of(p, T)
        calls: dict[str, Iterator[Call]] = {
            name: ((lambda name=name, x=x, w=w: linear(name, x, w)) for x, w in sets)  # type: ignore[misc]
            for name in (CUDA, TRITON)
        }
        peer = deep_gemm_call(p, T, sets)
        if peer is not None:
            calls["deepgemm"] = (peer(i) for i in range(len(sets)))
        us, each = medians(calls, len(sets), 15)
        row: dict[str, object] = {"us": us, "cut": label(chosen(p, T)) if T > gemm.FEW else "few_rows"}
        row["tflops"] = round(p.flops(T) / us[CUDA] / 1e6, 1)
        row["gbps"] = round(p.bytes(T) / us[CUDA] / 1e3, 1)
        if peer is not None:
            row["ratio"] = round(statistics.median(a / b for a, b in zip(each[0], each[2], strict=True)), 3)
        say("times", product=p.name, M=T, N=p.N, K=p.K, **row)


def launches(p: Product, sets: Sequence[Given], out: Tensor, cut: hopper.Cut) -> Iterator[Call]:
    splits = num_splits(p.N, p.K, 1)
    for x, w in sets:
        yield lambda x=x, w=w: hopper.launch(x.values, x.sf, w.values, w.sf, out, splits, cut)  # type: ignore[misc]


def us_by_cut(p: Product, T: int) -> dict[str, float]:
    sets, out = sets_of(p, T), torch.empty(T, p.N, device="cuda", dtype=torch.bfloat16)
    return medians({label(cut): launches(p, sets, out, cut) for cut in all_cuts(p, T)}, len(sets), 9)[0]


def cuts() -> None:
    for T, p in itertools.product([T for T in BATCHES if T > gemm.FEW], PRODUCTS):
        us = us_by_cut(p, T)
        say("cuts", product=p.name, M=T, chosen=label(chosen(p, T)), best=min(us, key=lambda name: us[name]), us=us)


VARIANTS: dict[str, tuple[tuple[str, str], ...]] = {
    "as it is": (),
    "no turns": (("constexpr bool TURNS = true;", "constexpr bool TURNS = false;"),),
    "4 stages": (("ROWS == 128 ? (SPLIT ? 5 : 7)", "ROWS == 128 ? (SPLIT ? 5 : 4)"),),
    "bands of 16": (),
}


def variants() -> None:
    """The same launch with other constants in the source; results are not looked at."""
    p = next(p for p in PRODUCTS if p.name == "shared w13")
    T = 8192
    sets, out = sets_of(p, T), torch.empty(T, p.N, device="cuda", dtype=torch.bfloat16)
    kernels, band = hopper.kernels_on(out.device), hopper.BAND
    for name, changes in VARIANTS.items():
        text = hopper.SOURCE.read_text()
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        text = "\n".join(line for line in text.splitlines() if not line.startswith("static_assert"))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "variant.cu"
            path.write_text(text)
            module = Module(compiler().cubin(path, "sm_90a")[0])
        entries = {e: module.kernel(f"fp8_{e}", hopper.THREADS, size) for e, size in hopper.SHARED_BYTES.items()}
        changed = replace(kernels, entries=entries)
        hopper.kernels_on = lambda _, changed=changed: changed  # type: ignore[assignment, misc]
        hopper.BAND = 16 if name == "bands of 16" else band
        us = medians({name: launches(p, sets, out, chosen(p, T))}, len(sets), 9)[0]
        say("variants", product=p.name, M=T, us=us)


PARTS: dict[str, Callable[[], None]] = {
    "compile": compiled,
    "right": right,
    "warm": warm,
    "bits": bits,
    "times": times,
    "cuts": cuts,
    "variants": variants,
}


def main() -> None:
    torch.manual_seed(0)
    if sys.argv[1].startswith("--share="):
        os.nice(5)
        share(int(sys.argv[1].removeprefix("--share=")))
        return
    for name in sys.argv[1:]:
        PARTS[name]()
        torch.cuda.synchronize()
        say(name, ended=True)


if __name__ == "__main__":
    main()
