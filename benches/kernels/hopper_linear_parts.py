"""The parts of hopper_linear.py, one after the other in this process; every line says that it is alive."""

from __future__ import annotations

import functools
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from benches.kernels.bench_linear import deep_gemm_peer, workspace
from benches.kernels.harness import Call, medians, run_parts, say
from benches.kernels.linear_inputs import FLASH, Product, rows_of, weight_of, wide, wide_rows
from torch import Tensor

from dsv4.kernels.cuda.choice import CUDA, TRITON, Choice
from dsv4.kernels.cuda.compile import compiler, cubin
from dsv4.kernels.cuda.device import Kernel, Matrix, Module, tensor_map
from dsv4.kernels.linear import gemm, hopper
from dsv4.kernels.linear.gemm import Fp8Weight
from dsv4.kernels.linear.quantise import GROUP, Fp8Rows, quantise
from dsv4.kernels.linear.tuning import num_splits

PRODUCTS = [p for p in FLASH if p.kind == 0]
BATCHES = (8192, 64, 256, 128, 1024, 512)
CHECKED = (1, 17, 64, 130, 300, 700)
ODD = Product("none", "odd", 0, 384, 1152), Product("none", "eight", 0, 512, 4096), Product("none", "one", 0, 128, 128)
TRITON_BITS = ((64, "q_a+kv"), (300, "q_a+kv"), (64, "shared w2"), (300, "shared w2"), (300, "q_b"))
TOLERANCE = 3e-3  # against float64: a result in bf16 is off by 1.7e-3
TOUCHED = 200e6  # bytes of one round of calls
SETTLE_S = 0.15
PROCESSES = 8

Given = tuple[Fp8Rows, Fp8Weight]


def given(p: Product, T: int) -> Given:
    x = rows_of(p, T)
    assert isinstance(x, Fp8Rows)
    return x, weight_of(p)


def by(cut: hopper.Cut | None, x: Fp8Rows, w: Fp8Weight) -> Tensor:
    """By the CUDA kernel; what is not written is NaN."""
    T, N, K = len(x.values), *w.values.shape
    out = torch.full((T, N), torch.nan, dtype=torch.bfloat16, device="cuda")
    hopper.launch(x.values, x.sf, w.values, w.sf, out, num_splits(N, K, 1), cut)
    return out


def cuts_of(p: Product, T: int) -> dict[str, hopper.Cut]:
    """All that can serve."""
    return {shape.kernel: hopper.cut_by(shape, T, p.N, num_sms()) for shape in hopper.SHAPES}


def chosen(p: Product, T: int) -> str:
    return hopper.cut_of(T, p.N, p.K, num_sms()).shape.kernel


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
        first = by(None, x, w)
        wrong = [
            name for name, cut in cuts_of(p, T).items() if not all(torch.equal(by(cut, x, w), first) for _ in range(5))
        ]
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
        outs = [gemm.fp8_linear(quantise(x), w, workspace()) for x in inputs]
        torch.cuda.synchronize()
        for x, out in zip(inputs, outs, strict=True):
            rows = quantise(x)
            torch.cuda.synchronize()
            ok &= torch.equal(by(None, rows, w), out)
            torch.cuda.synchronize()
        say("right", product="behind a launch that it may overlap", M=T, same_bits=ok)
    return ok


def serve_by(name: str) -> None:
    """FP8 products, from here on."""
    gemm.choice = lambda _: Choice(name, "the bench asks for it")  # type: ignore[assignment, attr-defined]


def linear(name: str, x: Fp8Rows, w: Fp8Weight) -> Tensor:
    """`fp8_linear` as one or the other serves it."""
    serve_by(name)
    return gemm.fp8_linear(x, w, workspace())


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
        peer = deep_gemm_call(p, T, [(x, w)])
        if peer is not None:
            peer(0)()
        torch.cuda.synchronize()
        say("warm", product=p.name, M=T)


def deep_gemm_call(p: Product, T: int, sets: Sequence[Given]) -> Callable[[int], Call] | None:
    """DeepGEMM's call on a set of inputs; None where it is not there or fails, and why is said."""
    serve_by(CUDA)
    try:
        peer = deep_gemm_peer(p, T, list(sets))
        made, why = peer.make, peer.missing
    except Exception as error:  # noqa: BLE001 - whatever keeps a peer from running is told and costs its column alone
        made, why = None, str(error)
    if made is None:
        say("peer", product=p.name, M=T, missing=why[:300])
    return made


def bits() -> None:
    bad = 0
    for T, name in TRITON_BITS:
        p = next(p for p in PRODUCTS if p.name == name)
        x, w = given(p, T)
        same = torch.equal(by(None, x, w), linear(TRITON, x, w))
        bad += not same
        say("bits", product=name, M=T, same_bits_as_triton=same)
    if bad:
        raise SystemExit(f"bits: {bad} cases differ from Triton's")


def sets_of(p: Product, T: int) -> list[Given]:
    return [given(p, T) for _ in range(int(max(2, min(96, TOUCHED // p.bytes(T)))))]


def calls_of(name: str, sets: Sequence[Given]) -> list[Call]:
    """By one implementation; a name is bound when a list is made, not when it is called."""
    return [lambda x=x, w=w: linear(name, x, w) for x, w in sets]  # type: ignore[misc]


def times() -> None:
    for T, p in itertools.product(BATCHES, PRODUCTS):
        sets = sets_of(p, T)
        calls = {name: calls_of(name, sets) for name in (CUDA, TRITON)}
        peer = deep_gemm_call(p, T, sets)
        if peer is not None:
            calls["deepgemm"] = [peer(i) for i in range(len(sets))]
        us, each = medians(calls, 15, SETTLE_S)
        row: dict[str, object] = {"us": us, "cut": chosen(p, T)}
        row["tflops"] = round(p.flops(T) / us[CUDA] / 1e6, 1)
        row["gbps"] = round(p.bytes(T) / us[CUDA] / 1e3, 1)
        if peer is not None:
            row["ratio"] = round(statistics.median(a / b for a, b in zip(each[0], each[2], strict=True)), 3)
        say("times", product=p.name, M=T, N=p.N, K=p.K, **row)


def launches(p: Product, sets: Sequence[Given], out: Tensor, cut: hopper.Cut) -> list[Call]:
    splits = num_splits(p.N, p.K, 1)

    def call(x: Fp8Rows, w: Fp8Weight) -> Call:
        return lambda: hopper.launch(x.values, x.sf, w.values, w.sf, out, splits, cut)

    return [call(x, w) for x, w in sets]


def cuts() -> None:
    for T, p in itertools.product(BATCHES, PRODUCTS):
        sets, out = sets_of(p, T), torch.empty(T, p.N, device="cuda", dtype=torch.bfloat16)
        us, _ = medians({name: launches(p, sets, out, cut) for name, cut in cuts_of(p, T).items()}, 9, SETTLE_S)
        say("cuts", product=p.name, M=T, chosen=chosen(p, T), best=min(us, key=lambda name: us[name]), us=us)


VARIANTS: dict[str, tuple[tuple[str, str], ...]] = {
    "as it is": (),
    "no products": (
        ("UNROLL for (u32 k = 0; k < STEP; k += 32) product_of_e4m3", "if (a.band < 0) product_of_e4m3"),
        ("x.after(k), w.after(k), k > 0", "x.after(0), w.after(0), 0"),
    ),
    "no copies": (
        ("expect_bytes(full(p), L::STAGE);", "arrive(full(p));"),
        ("copy_box(stage(p) + L::X, a.w, p.tile.column, p.step * i32(STEP), full(p));", ""),
        ("copy_box(stage(p), a.x, p.tile.row, p.step * i32(STEP), full(p));", ""),
    ),
    "no stores": (("if (at < a.num_rows) store_words", "if (at < 0) store_words"),),
    "a quarter of the sums": (("j < VALUES; j++) sum[j] = fused", "j < VALUES; j += 4) sum[j] = fused"),),
    "4 stages": (("ROWS == 128 ? 5", "ROWS == 128 ? 4"),),
}
"""What is left out or changed, to see what a launch waits for."""


def variants() -> None:
    """The same launch by changed sources, in turns; results are not looked at."""
    for name, T in (("shared w13", 8192), ("q_b", 8192), ("shared w13", 64), ("wo_b", 64)):
        p = next(p for p in PRODUCTS if p.name == name)
        sets, out = sets_of(p, T), torch.empty(T, p.N, device="cuda", dtype=torch.bfloat16)
        serving, calls = hopper.kernels_on(out.device), dict[str, list[Call]]()
        cut = hopper.cut_of(T, p.N, p.K, num_sms())
        for variant in VARIANTS:
            changed = replace(serving, entries={cut.shape: entry(cut.shape, variant)})
            calls[variant] = [by_kernels(changed, call) for call in launches(p, sets, out, cut)]
        us, _ = medians(calls, 9, SETTLE_S)
        say("variants", product=p.name, M=T, kernel=cut.shape.kernel, us=us)


def by_kernels(kernels: hopper.Kernels, call: Call) -> Call:
    def run() -> None:
        hopper.kernels_on = lambda _: kernels  # type: ignore[assignment]
        call()

    return run


@functools.cache
def source(variant: str, *defines: str) -> Module:
    text = hopper.SOURCE.read_text()
    for old, new in VARIANTS[variant]:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    text = "\n".join(line for line in text.splitlines() if not line.startswith("static_assert"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "variant.cu"
        path.write_text(text)
        return Module(compiler().cubin(path, "sm_90a", defines)[0])


def entry(shape: hopper.Shape, variant: str, *defines: str) -> Kernel:
    kernel = source(variant, *defines).kernel(f"fp8_{shape.kernel}", hopper.THREADS, hopper.SHAPES[shape].shared_bytes)
    say("variants", variant=variant, kernel=shape.kernel)
    return kernel


EVENTS = ("waits for products", "adds", "starts the next", "ends")  # each from one mark to the next


def timeline() -> None:
    """Cycles of the stages of a block, as its two groups see them; a mark costs about 45."""
    for name, T in (("shared w13", 8192), ("shared w13", 64), ("wo_b", 256)):
        p = next(p for p in PRODUCTS if p.name == name)
        x, w = given(p, T)
        shape, blocks = hopper.cut_of(T, p.N, p.K, num_sms())
        out, marks = (
            torch.empty(T, p.N, device="cuda", dtype=torch.bfloat16),
            torch.zeros(2, 128, 4, dtype=torch.int32).cuda(),
        )
        maps = (
            tensor_map(Matrix(x.values.data_ptr(), T, p.K, shape.rows)),
            tensor_map(Matrix(w.values.data_ptr(), p.N, p.K, shape.columns)),
        )
        arguments = hopper.arguments_of(*maps, x.sf, w.sf, out, p.K, num_splits(p.N, p.K, 1))
        arguments.timeline = marks.data_ptr()
        kernel = entry(shape, "as it is", "TIMELINE")
        for _ in range(50):
            kernel.launch(blocks, arguments, early=True)
        torch.cuda.synchronize()
        seen = marks[:, : int((marks[0, :, 2] != 0).sum())].cpu().long()
        flat = seen[:, 4:].flatten(1)
        steps = (flat[:, 1:] - flat[:, :-1])[:, : flat.shape[1] // 4 * 4 - 4].reshape(2, -1, 4)
        for group in range(2):
            middle = dict(zip(EVENTS, steps[group].median(0).values.tolist(), strict=True))
            say(
                "timeline", product=p.name, M=T, kernel=shape.kernel, group=group, median=middle,
                mean=steps[group].double().mean(0).round().tolist(), most=steps[group].amax(0).tolist(),
                stage=round(float(steps[group].sum(1).double().mean())),
            )  # fmt: skip


PARTS: dict[str, Callable[[], None]] = {
    "compile": compiled,
    "right": right,
    "warm": warm,
    "bits": bits,
    "times": times,
    "cuts": cuts,
    "variants": variants,
    "timeline": timeline,
}


def main() -> None:
    torch.manual_seed(0)
    if sys.argv[1].startswith("--share="):
        os.nice(5)
        share(int(sys.argv[1].removeprefix("--share=")))
        return
    run_parts(PARTS, sys.argv[1:])


if __name__ == "__main__":
    main()
