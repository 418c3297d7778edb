"""A row's bits depend on the row alone: not on the rows beside it, its place among them, or NaNs in them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from dsv4.kernels.attention.reference import Keys, attend
from dsv4.kernels.index.reference import scores
from dsv4.kernels.linear.reference import column_major, grouped_linear, linear, paired
from dsv4.kernels.mhc.reference import mixes, post_mix, pre_mix, split
from dsv4.kernels.moe.reference import affinities, choose, experts, weigh
from dsv4.kernels.norm_rope.reference import rms_norm, rotate, row_sum, sigmoid, silu, softplus
from dsv4.kernels.quant.reference import fake_fp4, fake_fp8, hadamard

ROWS = 70


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def expect_row_alone(op: Callable[[Tensor], Tensor], x: Tensor, rng: random.Random) -> None:
    """Any rows, in any order, with any company, NaNs among it, come out as they did together."""
    together = op(x)
    for size in (1, 2, 3, 8, 9, 31, ROWS):
        rows = torch.tensor(rng.sample(range(ROWS), size))
        assert torch.equal(op(x[rows]), together[rows]), f"{size} rows"
    spoilt = x.clone()
    bad = torch.tensor(rng.sample(range(ROWS), 5))
    spoilt[bad] = torch.nan
    fine = torch.ones(ROWS, dtype=torch.bool)
    fine[bad] = False
    assert torch.equal(op(spoilt)[fine], together[fine]), "beside NaNs"


SHAPES = [(512, 512), (24, 2048), (4, 256), (257, 1000), (7, 33), (2048, 128), (320, 64), (16, 300), (12, 64)]


@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_products_with_a_weight(rng: random.Random, N: int, K: int) -> None:
    weight = torch.randn(N, K)
    expect_row_alone(lambda x: linear(x, weight), torch.randn(ROWS, K), rng)
    expect_row_alone(lambda x: linear(x, column_major(weight)), torch.randn(ROWS, K), rng)
    assert torch.allclose(linear(torch.eye(K), column_major(weight)), weight.T, atol=1e-6)


def test_grouped_products(rng: random.Random) -> None:
    weight = column_major(torch.randn(2, 48, 96))
    expect_row_alone(lambda x: grouped_linear(x, weight), torch.randn(ROWS, 2, 96), rng)


@pytest.mark.parametrize(
    ("P", "K", "N"), [(4, 128, 64), (8, 512, 64), (8, 64, 512), (24, 2048, 24), (1, 64, 128), (32, 128, 64)]
)
def test_products_of_pairs(rng: random.Random, P: int, K: int, N: int) -> None:
    a, b = torch.randn(ROWS, P, K), torch.randn(ROWS, K, N)
    together = paired(a, b)
    turned = paired(a, b.transpose(1, 2).contiguous(), transposed=True)
    for size in (1, 2, 7, 8, 9, 31):
        rows = torch.tensor(rng.sample(range(ROWS), size))
        assert torch.equal(paired(a[rows], b[rows]), together[rows])
        assert torch.equal(paired(a[rows], b[rows].transpose(1, 2).contiguous(), transposed=True), turned[rows])
    shared = paired(a, b[:1].expand(ROWS, -1, -1))
    assert torch.equal(paired(a[5:6], b[:1]), shared[5:6])
    assert torch.allclose(together, a @ b, atol=1e-3)


ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": sigmoid,
    "silu": silu,
    "softplus": softplus,
    "row_sum": row_sum,
    "rms_norm": lambda x: rms_norm(x, torch.linspace(0.5, 2, x.shape[-1]), 1e-6),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("width", [1, 3, 4, 16, 100, 2048, 33000])
def test_elementwise_functions_and_sums(rng: random.Random, name: str, width: int) -> None:
    expect_row_alone(ELEMENTWISE[name], torch.randn(ROWS, width) * 3, rng)


def test_quantisation_and_rotation(rng: random.Random) -> None:
    angle = torch.randn(1, 32)
    for op in (
        lambda x: fake_fp8(x, 128),
        lambda x: fake_fp4(x, 32),
        hadamard,
        lambda x: rotate(x, angle.cos().expand(len(x), -1), angle.sin().expand(len(x), -1)),
    ):
        expect_row_alone(op, torch.randn(ROWS, 256), rng)


@pytest.mark.parametrize("N", [2, 4])
def test_stream_mixing(rng: random.Random, N: int) -> None:
    C, M = 64, (2 + N) * N
    fn, base, scale = column_major(torch.randn(M, N * C)), torch.randn(M), torch.rand(3)

    def site(streams: Tensor) -> Tensor:
        c = split(mixes(streams, fn, 1e-6), scale, base, streams=N, iters=20, eps=1e-6)
        return post_mix(streams, pre_mix(streams, c.pre), c.post, c.comb)

    expect_row_alone(site, torch.randn(ROWS, N, C), rng)


def test_routing_and_experts(rng: random.Random) -> None:
    gate, bias = torch.randn(12, 64), torch.randn(12)
    w13, w2 = column_major(torch.randn(12, 96, 64)), column_major(torch.randn(12, 64, 48))

    def run(x: Tensor) -> Tensor:
        affinity = affinities(x, gate)
        routes = weigh(affinity, choose(affinity, bias, 4), 1.5)
        return experts(x, routes, w13, w2, limit=10.0, rounded=lambda x: x, quantised=lambda x: x)

    expect_row_alone(run, torch.randn(ROWS, 64), rng)


@pytest.mark.parametrize(("H", "D"), [(4, 128), (8, 512), (2, 128), (3, 64)])
def test_attention_alone_or_together_with_own_or_shared_keys_and_any_empty_blocks(H: int, D: int) -> None:
    q, sink, rows = torch.randn(40, H, D), torch.randn(H), torch.randn(1, 256, D)
    visible = torch.rand(40, 256) < 0.5
    visible[:, 0], visible[:, 192:] = True, False
    together = attend(q, [Keys(rows, visible)], sink, D**-0.5, bf16_weights=False)
    for t in (0, 7, 39):
        one, seen = slice(t, t + 1), visible[t : t + 1]
        alone = attend(q[one], [Keys(rows[:, :192], seen[:, :192])], sink, D**-0.5, bf16_weights=False)
        assert torch.equal(alone, together[one])
    own = Keys(rows.expand(5, -1, -1).contiguous(), visible[3:8])
    assert torch.equal(attend(q[3:8], [own], sink, D**-0.5, bf16_weights=False), together[3:8])


def test_index_scores_alone_or_together_with_own_or_shared_keys() -> None:
    q, w, keys = torch.randn(40, 16, 128), torch.randn(40, 16), torch.randn(1, 192, 128)
    together = scores(q, w, keys, bf16=False)
    for n in (1, 3, 8):
        part = scores(q[:n], w[:n], keys[:, :128].expand(n, -1, -1).contiguous(), bf16=False)
        assert torch.equal(part, together[:n, :128])
