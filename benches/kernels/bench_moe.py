"""MXFP4 experts of Flash (256, top 6, 4096 x 2048) with uniform and Zipf routing, and the router, against humming.

A row is the whole chain from bf16 rows and chosen ids to bf16 rows: permutation, quantisation, both products, combine.
The peer's chain is its own quantisation and products with this package's SwiGLU and sum; its permutation is not timed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from benches.kernels.harness import BF16_FLOPS, FP8_FLOPS, Call, Case, Peer
from benches.kernels.moe_peers import Humming, missing_peers
from torch import Tensor

from dsv4.kernels.cuda.choice import CUDA
from dsv4.kernels.moe import choice, reference
from dsv4.kernels.moe.experts import Chosen, experts
from dsv4.kernels.moe.permute import MANY
from dsv4.kernels.moe.quantise import to_fp8
from dsv4.kernels.moe.route import route
from dsv4.kernels.moe.shared import Shared, shared_expert
from dsv4.kernels.moe.weights import Experts, empty_experts, put
from dsv4.kernels.quant.reference import dequantise_fp8, dequantise_mxfp4, fake_fp4, fake_fp8

E, K, C, M, LIMIT = 256, 6, 4096, 2048, 10.0
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 8192)
EXPERT_BYTES = 3 * C * M * 17 // 32
TOLERANCE = {"w4a16": 3e-3, "w4a8": 6e-3, "w4a4": 2e-2}
OF_128_CHANNELS = 1e-2
"""W4A8 where the matrix units add 128 channels (CUDA C++) and not 32: they keep fewer bits than float32 has, so that
more of SwiGLU's outputs round to another E4M3 value, which is 6 % away."""
QUANTISED = {
    "w4a16": lambda x: x,
    "w4a8": lambda x: fake_fp8(x, 128),
    "w4a4": lambda x: fake_fp4(x, 32),
}


class Checkpoint:
    """Random experts as a checkpoint has them, on the GPU."""

    def __init__(self) -> None:
        def byte(low: int, high: int, *shape: int) -> Tensor:
            return torch.randint(low, high, (E, *shape), dtype=torch.uint8, device="cuda")

        self.shapes = {"w1": (M, C), "w2": (C, M), "w3": (M, C)}
        self.codes = {name: byte(0, 256, N, k // 2) for name, (N, k) in self.shapes.items()}
        self.scales = {name: byte(117, 122, N, k // 32) for name, (N, k) in self.shapes.items()}

    def packed(self, activations: str) -> Experts:
        out = empty_experts(E, C, M, "fp8" if activations == "w4a8" else "bf16", "cuda")
        for e in range(E):
            for name in self.shapes:
                put(out, e, name, self.codes[name][e], self.scales[name][e])  # type: ignore[arg-type]
        return out

    def dense(self, expert: int, name: str) -> Tensor:
        return dequantise_mxfp4(self.codes[name][expert], self.scales[name][expert])


def choose(T: int, routing: str) -> Chosen:
    """Six distinct experts a token: uniform, or with the probability of the i-th one proportional to 1 / i."""
    scores = torch.rand(T, E, device="cuda").clamp_min(1e-20)
    if routing == "zipf":  # the largest of log p + Gumbel noise: a draw without replacement
        scores = -(-scores.log()).log() - torch.arange(1, E + 1, device="cuda").log()
    ids = scores.topk(K, -1).indices.sort(-1).values.int()
    return Chosen(ids, torch.rand(T, K, device="cuda") + 0.1)


def rounded(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).float()


class Bench:
    """One way to read activations: weights, cases, checks."""

    def __init__(self, at: Checkpoint, activations: str, peers: list[Humming]) -> None:
        self.at, self.activations, self.peers = at, activations, peers
        packed = at.packed(activations)
        self.weights = choice.prepared(packed, "the bench's layer") if activations == "w4a8" else packed
        self.in_cuda = activations == "w4a8" and choice.choice(packed.w13.codes.device).name == CUDA

    def run(self, x: Tensor, chosen: Chosen) -> Tensor:
        if self.activations == "w4a8":
            return choice.experts(x, chosen, self.weights, limit=LIMIT)
        return experts(x, chosen, self.weights, self.activations, limit=LIMIT)  # type: ignore[arg-type]

    def want(self, x: Tensor, chosen: Chosen) -> Tensor:
        """The reference's row of one token [1, C]."""
        ids = chosen.ids[0].tolist()
        w13 = torch.stack([torch.cat((self.at.dense(e, "w1"), self.at.dense(e, "w3"))) for e in ids])
        w2 = torch.stack([self.at.dense(e, "w2") for e in ids])
        routes = reference.Routes(torch.arange(K, device="cuda")[None], chosen.weights)
        q = QUANTISED[self.activations]
        return reference.experts(q(x.float()), routes, w13, w2, limit=LIMIT, rounded=rounded, quantised=q)

    def check(self, T: int, routing: str) -> None:
        """Three tokens against the reference, and against their own bits alone."""
        x, chosen = torch.randn(T, C, device="cuda").to(torch.bfloat16), choose(T, routing)
        out = self.run(x, chosen)
        for t in {0, T // 2, T - 1}:
            one = Chosen(chosen.ids[t : t + 1].contiguous(), chosen.weights[t : t + 1].contiguous())
            want = self.want(x[t : t + 1], one)
            error = float((out[t : t + 1].float() - want).norm() / want.norm())
            assert error < (OF_128_CHANNELS if self.in_cuda else TOLERANCE[self.activations]), (
                f"token {t} of {T}: error {error}"
            )
            alone = self.run(x[t : t + 1].contiguous(), one)
            assert torch.equal(alone[0], out[t]), f"token {t} of {T} has other bits alone"

    def case(self, T: int, routing: str) -> Case:
        probe = [choose(T, routing) for _ in range(4)]
        distinct = sum(len(chosen.ids.unique()) for chosen in probe) / len(probe)
        sets: list[tuple[Tensor, Chosen]] = []

        def inputs(i: int) -> tuple[Tensor, Chosen]:
            while len(sets) <= i:
                x = torch.randn(T, C, device="cuda").to(torch.bfloat16)
                sets.append((x, probe[len(sets)] if len(sets) < len(probe) else choose(T, routing)))
            return sets[i]

        def make(i: int) -> Call:
            x, chosen = inputs(i)
            return lambda: self.run(x, chosen)

        def theirs(peer: Humming) -> Peer:
            return Peer(peer.name, peer.version, lambda i: peer.chain(*inputs(i)))

        return Case(
            op=f"moe_{self.activations}", shape={"E": E, "K": K, "T": T}, dtype="mxfp4", routing=routing, make=make,
            launches={"w4a16": 4, "w4a8": 6, "w4a4": 5}[self.activations] + (T * K > MANY),
            bytes=int(distinct * EXPERT_BYTES) + 4 * T * C, flops=6 * T * K * C * M,
            flops_per_s=FP8_FLOPS if self.activations == "w4a8" else BF16_FLOPS,
            check=lambda: self.check(T, routing),
            peers=[theirs(peer) for peer in self.peers] + (missing_peers() if T == 1 else []),
        )  # fmt: skip


def router(T: int) -> Case:
    gate = (torch.randn(E, C, device="cuda") / C**0.5).to(torch.bfloat16)
    bias = torch.randn(E, device="cuda") / 10

    def check() -> None:
        x = torch.randn(T, C, device="cuda").to(torch.bfloat16)
        got = route(x, gate, bias, K, 1.5)
        affinity = reference.affinities(x.float(), gate.float())
        want = reference.weigh(affinity, reference.choose(affinity, bias, K), 1.5)
        same = (got.ids == want.ids).all(1)
        assert float(same.float().mean()) > 0.99, "other experts than the reference's, beyond ties in the last bit"
        assert float((got.weights - want.weights)[same].abs().max()) < 1e-5

    def make(_: int) -> Call:
        x = torch.randn(T, C, device="cuda").to(torch.bfloat16)
        return lambda: route(x, gate, bias, K, 1.5)

    return Case(
        op="moe_route", shape={"E": E, "K": K, "T": T}, dtype="bf16", make=make, launches=2,
        bytes=2 * E * C + 2 * T * C, flops=2 * T * E * C, check=check,
    )  # fmt: skip


def shared(T: int) -> Case:
    """The shared expert's three launches; x is already in E4M3, as for the routed experts."""

    def matrix(N: int, k: int) -> tuple[Tensor, Tensor]:
        scale = torch.randint(117, 122, (N // 128, k // 128), dtype=torch.uint8, device="cuda")
        return torch.randn(N, k, device="cuda").to(torch.float8_e4m3fn), scale

    sets: dict[int, tuple[Tensor, Shared]] = {}

    def inputs(i: int) -> tuple[Tensor, Shared]:
        if i not in sets:
            x = torch.randn(T, C, device="cuda").to(torch.bfloat16)
            sets[i] = x, Shared(*matrix(2 * M, C), *matrix(C, M))
        return sets[i]

    def make(i: int) -> Call:
        x, weights = inputs(i)
        values = to_fp8(x)
        return lambda: shared_expert(values, weights, limit=LIMIT)

    def check() -> None:
        x, weights = inputs(0)
        out = shared_expert(to_fp8(x), weights, limit=LIMIT)
        some = x[: min(T, 8)].float()
        w13, w2 = dequantise_fp8(weights.w13, weights.w13_scale), dequantise_fp8(weights.w2, weights.w2_scale)
        y = rounded(reference.swiglu(rounded(fake_fp8(some, 128) @ w13.T), LIMIT))
        want = fake_fp8(y, 128) @ w2.T
        error = float((out[: len(some)].float() - want).norm() / want.norm())
        assert error < TOLERANCE["w4a8"], f"error {error}"
        alone = shared_expert(to_fp8(x[:1].contiguous()), weights, limit=LIMIT)
        assert torch.equal(alone[0], out[0]), "token 0 has other bits alone"

    return Case(
        op="moe_shared", shape={"T": T}, dtype="fp8", make=make, launches=3, bytes=3 * C * M + 3 * T * C,
        flops=6 * T * C * M, flops_per_s=FP8_FLOPS, check=check,
    )  # fmt: skip


def cases() -> Iterator[Case]:
    for T in (1, 64, 256, 8192):
        yield router(T)
        yield shared(T)
    at = Checkpoint()
    for activations, tokens in (("w4a8", TOKENS), ("w4a16", TOKENS), ("w4a4", (64,))):
        peers = Humming.all(at.codes, at.scales, activations)
        bench = Bench(at, activations, peers)
        for routing in ("uniform", "zipf"):
            for T in tokens:
                yield bench.case(T, routing)
        del bench, peers
        torch.cuda.empty_cache()
