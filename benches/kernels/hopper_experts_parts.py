"""The parts of hopper_experts.py, one after the other in this process; every line says that it is alive."""

from __future__ import annotations

import functools
import itertools
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from benches.kernels.bench_moe import LIMIT, OF_128_CHANNELS, C, Checkpoint, E, K, M, choose, rounded
from benches.kernels.harness import Call, medians, run_parts, say
from benches.kernels.moe_peers import Humming
from torch import Tensor

from dsv4.kernels.cuda.compile import compiler, cubin
from dsv4.kernels.cuda.device import Module, tensor_map
from dsv4.kernels.moe import hopper, reference
from dsv4.kernels.moe.experts import Chosen, experts
from dsv4.kernels.moe.permute import permute
from dsv4.kernels.moe.place import PAIRS, place
from dsv4.kernels.moe.weights import Experts, empty_experts, put
from dsv4.kernels.quant.reference import dequantise_mxfp4, fake_fp8

DEVICE = "cuda"
SETTLE_S = 0.3
SMALL = (1, 2, 40, 300, 1500)  # tokens
FLASH = (1, 64, 1024, 8192)
TIMED = tuple(itertools.product((8192, 1024, 4096, 2048, 256, 64, 8, 1), ("uniform", "zipf")))


def rows_of(T: int, width: int = C) -> Tensor:
    return torch.randn(T, width, device=DEVICE).to(torch.bfloat16)


def compiled() -> None:
    begin = time.monotonic()
    code = cubin(hopper.SOURCE)
    seconds = round(time.monotonic() - begin, 2)
    made_by = compiler()
    log = made_by.cubin(hopper.SOURCE, "sm_90a")[1]  # another version's products may run one by one
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill stores", log)]
    faults = {"serialized": "serialized" in log, "spills": spills}
    say("compile", compiler=made_by.version, bytes=len(code), seconds=seconds, **faults)
    say("compile", card=torch.cuda.get_device_name())
    hopper.kernels_on(torch.zeros(1, device="cuda").device)


def close(out: Tensor, want: Tensor) -> float:
    """Relative error; a NaN fails every comparison."""
    return float((out.float() - want).norm() / want.norm())


# ------------------------------------------------------------------------------------------------ small


class Small:
    """Eight experts of 512 x 256, some of whose rows use the whole spread of scales, as checkpoint and as packed."""

    E, C, M, TOP = 8, 512, 256, 3

    def __init__(self) -> None:
        def byte(low: int, high: int, *shape: int) -> Tensor:
            return torch.randint(low, high, (self.E, *shape), dtype=torch.uint8, device=DEVICE)

        shapes = {"w1": (self.M, self.C), "w2": (self.C, self.M), "w3": (self.M, self.C)}
        self.codes = {name: byte(0, 256, N, k // 2) for name, (N, k) in shapes.items()}
        self.scales = {name: byte(112, 123, N, k // 32) for name, (N, k) in shapes.items()}
        self.packed: Experts = empty_experts(self.E, self.C, self.M, "fp8", DEVICE)
        for e, name in itertools.product(range(self.E), shapes):
            put(self.packed, e, name, self.codes[name][e], self.scales[name][e])  # type: ignore[arg-type]

    def dense(self, name: str) -> Tensor:
        return torch.stack([dequantise_mxfp4(c, s) for c, s in zip(self.codes[name], self.scales[name], strict=True)])

    def want(self, x: Tensor, chosen: Chosen) -> Tensor:
        def q(v: Tensor) -> Tensor:
            return fake_fp8(v, 128)

        w13 = torch.cat((self.dense("w1"), self.dense("w3")), 1)
        routes = reference.Routes(chosen.ids.long(), chosen.weights)
        return reference.experts(q(x.float()), routes, w13, self.dense("w2"), limit=LIMIT, rounded=rounded, quantised=q)


def small() -> None:
    layer, bad = Small(), 0
    weights = hopper.folded(layer.packed)
    for T in SMALL:
        x = rows_of(T, layer.C)
        ids = torch.rand(T, layer.E, device=DEVICE).topk(layer.TOP, -1).indices.sort(-1).values.int()
        chosen = Chosen(ids, torch.rand(T, layer.TOP, device=DEVICE) + 0.1)
        first = hopper.experts(x, chosen, weights, limit=LIMIT)
        same = all(torch.equal(hopper.experts(x, chosen, weights, limit=LIMIT), first) for _ in range(5))
        one = Chosen(ids[-1:].contiguous(), chosen.weights[-1:].contiguous())
        alone = torch.equal(hopper.experts(x[-1:].contiguous(), one, weights, limit=LIMIT)[0], first[-1])
        off = close(first, layer.want(x, chosen))
        bad += not (off < OF_128_CHANNELS and same and alone)
        say("small", T=T, error=round(off, 6), same_bits_again=same, same_bits_alone=alone)
    if bad:
        raise SystemExit(f"small: {bad} cases are wrong")


# ------------------------------------------------------------------------------------------------ Flash


@functools.cache
def checkpoint() -> Checkpoint:
    return Checkpoint()


@functools.cache
def packed() -> Experts:
    return checkpoint().packed("w4a8")


@functools.cache
def weights_of() -> hopper.FoldedExperts:
    begin = time.monotonic()
    made = hopper.folded(packed())
    torch.cuda.synchronize()
    say("compile", folded_in_seconds=round(time.monotonic() - begin, 1))
    return made


def want_of(x: Tensor, chosen: Chosen) -> Tensor:
    """The reference's row of one token [1, C]."""
    at, ids = checkpoint(), chosen.ids[0].tolist()
    w13 = torch.stack([torch.cat((at.dense(e, "w1"), at.dense(e, "w3"))) for e in ids])
    w2 = torch.stack([at.dense(e, "w2") for e in ids])
    routes = reference.Routes(torch.arange(K, device="cuda")[None], chosen.weights)

    def q(v: Tensor) -> Tensor:
        return fake_fp8(v, 128)

    return reference.experts(q(x.float()), routes, w13, w2, limit=LIMIT, rounded=rounded, quantised=q)


def error_of_up(x: Tensor, chosen: Chosen) -> float:
    """Of what comes between the products of one token [1, C], before it is quantised."""
    at, blocks = checkpoint(), permute(chosen.ids, E, PAIRS, places=True)
    assert blocks.places is not None
    y = x.new_empty(len(blocks.order), M)
    hopper.launch(place(x, blocks, weights=chosen.weights), weights_of().w13, blocks, y, LIMIT)
    w13 = torch.stack([torch.cat((at.dense(e, "w1"), at.dense(e, "w3"))) for e in chosen.ids[0].tolist()])
    both = rounded(torch.einsum("k,enk->en", fake_fp8(x.float(), 128)[0], w13))
    return close(y[blocks.places.long()], rounded(reference.swiglu(both, LIMIT, chosen.weights[0])))


def by_cuda(x: Tensor, chosen: Chosen) -> Tensor:
    return hopper.experts(x, chosen, weights_of(), limit=LIMIT)


def right() -> None:
    bad = 0
    for T in FLASH:
        x, chosen = rows_of(T), choose(T, "uniform")
        out = by_cuda(x, chosen)
        for t in sorted({0, T // 2, T - 1}):
            one = Chosen(chosen.ids[t : t + 1].contiguous(), chosen.weights[t : t + 1].contiguous())
            row = x[t : t + 1].contiguous()
            off, alone = close(out[t : t + 1], want_of(row, one)), torch.equal(by_cuda(row, one)[0], out[t])
            bad += not (off < OF_128_CHANNELS and alone)
            say(
                "right", T=T, token=t, error=round(off, 6), of_up=round(error_of_up(row, one), 6), same_bits_alone=alone
            )
    if bad:
        raise SystemExit(f"right: {bad} tokens are wrong")


@functools.cache
def humming() -> list[Humming]:
    at = checkpoint()
    return Humming.all(at.codes, at.scales, "w4a8")


def times() -> None:
    for T, routing in TIMED:
        sets = [(rows_of(T), choose(T, routing)) for _ in range(2 if T > 1024 else 4)]
        calls: dict[str, list[Call]] = {
            "cuda": [functools.partial(by_cuda, *given) for given in sets],
            "triton": [functools.partial(experts, x, chosen, packed(), "w4a8", limit=LIMIT) for x, chosen in sets],
        }
        for peer in humming():
            calls["humming"] = [peer.chain(*given) for given in sets]
        us, _ = medians(calls, 9, SETTLE_S)
        say("times", T=T, routing=routing, us=us, tflops=6 * T * K * C * M / us["cuda"] / 1e6)


def alone(call: Call) -> float:
    """Microseconds of a launch."""
    return medians({"": [call] * 2}, 9, SETTLE_S)[0][""]


def steps_of(T: int) -> Iterator[tuple[str, float, Call]]:
    """Each launch of a chain of its own: name, FLOP, call."""
    x, chosen = rows_of(T), choose(T, "uniform")
    weights, flop = weights_of(), 2.0 * T * K * C * M
    blocks = permute(chosen.ids, E, PAIRS, places=True)
    y, rows = x.new_empty(len(blocks.order), M), x.new_empty(T, K, C)
    first = place(x, blocks, weights=chosen.weights)
    yield "permute", 0.0, lambda: permute(chosen.ids, E, PAIRS, places=True)
    yield "place x", 0.0, lambda: place(x, blocks, weights=chosen.weights)
    yield "up", 2 * flop, lambda: hopper.launch(first, weights.w13, blocks, y, LIMIT)
    hopper.launch(first, weights.w13, blocks, y, LIMIT)
    second = place(y, blocks)
    yield "place y", 0.0, lambda: place(y, blocks)
    yield "down", flop, lambda: hopper.launch(second, weights.w2, blocks, rows)


def launches() -> None:
    for T in (8192, 1024):
        for name, flop, call in steps_of(T):
            us = alone(call)
            say("launches", T=T, launch=name, us=us, tflops=round(flop / us / 1e6, 1))


PRODUCTS = (
    (
        "            product_of_e4m3(d, codes[4 * k], codes[4 * k + 1], codes[4 * k + 2], codes[4 * k + 3], ",
        "            left_out(d, codes[4 * k], codes[4 * k + 1], codes[4 * k + 2], codes[4 * k + 3], ",
    ),
    (
        "    // Starts d = w",
        """    template <u32 N> static DEVICE void left_out(float (&d)[N], u32 a, u32 b, u32 c, u32 e, u64 x, u32 k) {
        const u32 codes[4] = {a, b, c, e};
        UNROLL for (u32 i = 0; i < 4; i++) d[i] = real(codes[i] + u32(x) + (k ? bits(d[i]) : 0));
    }

    // Starts d = w""",
    ),
)
SUMS = ("                sum[k + i] = fused(d", "                if (k + i < 4) sum[k + i] = fused(d")
EXPANSION = (
    "            const Table table(shifts.x[r], k);\n",
    "            struct { DEVICE u32 of(u32 x) const { return x; } } table;\n",
)
HIGH = ("table.of(magnitudes >> 16)", "table.of(__umulhi(magnitudes, unknown(65536)))")
VARIANTS: dict[str, tuple[tuple[str, str], ...]] = {
    "as it is": (),
    "4 stages": (("constexpr u32 STAGES = 8;", "constexpr u32 STAGES = 4;"),),
    "shifts by products": (HIGH,),
    "no table": (EXPANSION,),
    "no sums": (SUMS,),
    "no products": PRODUCTS,
    "no products, no sums": (*PRODUCTS, SUMS),
}


def source_of(variant: str) -> str:
    """The kernel with other lines; its sizes are not checked."""
    text = hopper.SOURCE.read_text()
    for old, new in VARIANTS[variant]:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return "\n".join(line for line in text.splitlines() if not line.startswith("static_assert"))


def variants() -> None:
    """`up` at 8,192 tokens; results are not looked at."""
    kernels = hopper.kernels_on(torch.zeros(1, device="cuda").device)
    _, flop, call = next(step for step in steps_of(8192) if step[0] == "up")
    for name in VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "variant.cu"
            path.write_text(source_of(name))
            module = Module(compiler().cubin(path, "sm_90a")[0])
        changed = replace(kernels, up=module.kernel("grouped_up", hopper.THREADS, hopper.SHARED_BYTES))
        hopper.kernels_on = lambda _, changed=changed: changed  # type: ignore[assignment]
        us = alone(call)
        say("variants", variant=name, us=us, tflops=round(flop / us / 1e6, 1))


GROUPS = 4
EVENTS = ("expands", "starts, fetches", "waits for products", "adds", "releases")  # from mark to mark


def timeline() -> None:
    """Cycles of the stages of a block of `up`, as its groups see them; a mark costs about 45."""
    for T in (8192, 1024):
        x, chosen = rows_of(T), choose(T, "uniform")
        weights, blocks = weights_of().w13, permute(chosen.ids, E, PAIRS, places=True)
        y, rows = x.new_empty(len(blocks.order), M), place(x, blocks, weights=chosen.weights)
        marks = torch.zeros(GROUPS, 128, len(EVENTS), dtype=torch.int32, device=DEVICE)
        maps = [tensor_map(matrix) for matrix in hopper.matrices(rows, weights, blocks)]
        arguments = hopper.arguments_of(maps, weights, blocks, y, LIMIT)
        arguments.timeline = marks.data_ptr()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "variant.cu"
            path.write_text(source_of("as it is"))
            module = Module(compiler().cubin(path, "sm_90a", ["TIMELINE"])[0])
        kernel = module.kernel("grouped_up", hopper.THREADS, hopper.SHARED_BYTES)
        for _ in range(20):
            kernel.launch(hopper.num_blocks(blocks, weights.shape[1], 132), arguments, early=True)
        torch.cuda.synchronize()
        flat = marks.cpu().long()[:, 4:].flatten(1)
        steps = (flat[:, 1:] - flat[:, :-1])[:, : flat.shape[1] // 5 * 5 - 5].reshape(GROUPS, -1, 5)
        for group in range(GROUPS):
            middle = [*zip(EVENTS, steps[group].median(0).values.tolist(), strict=True)]
            say(
                "timeline", T=T, group=group, median=middle, mean=steps[group].double().mean(0).round().tolist(),
                most=steps[group].amax(0).tolist(), stage=round(float(steps[group].sum(1).double().mean())),
            )  # fmt: skip


PARTS: dict[str, Callable[[], None]] = {
    "compile": compiled,
    "small": small,
    "right": right,
    "times": times,
    "launches": launches,
    "variants": variants,
    "timeline": timeline,
}


def main() -> None:
    torch.manual_seed(0)
    run_parts(PARTS, sys.argv[1:])


if __name__ == "__main__":
    main()
