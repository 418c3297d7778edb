"""Routing and experts against the definition, token by token."""

from __future__ import annotations

import torch
from tests.kernels.vectors import UNIT
from torch import Tensor

from dsv4.kernels.moe.reference import Routes, affinities, choose, experts, swiglu, weigh


def same(x: Tensor) -> Tensor:
    return x


def test_router_of_the_official_vector() -> None:
    v = UNIT["router"]
    logits = torch.tensor(v["logits"])[None]
    affinity = affinities(logits, torch.eye(16))
    assert (affinity[0] - torch.tensor(v["scores"])).abs().max() <= 1e-6
    ids = choose(affinity, torch.tensor(v["bias"]), 6)
    assert ids[0].tolist() == v["topk_idx"]
    routes = weigh(affinity, ids, 1.5)
    want = dict(zip(v["topk_idx"], v["weights_route_scale_1.5"], strict=True))
    for expert, weight in zip(routes.ids[0].tolist(), routes.weights[0].tolist(), strict=True):
        assert abs(weight - want[expert]) <= 1e-6


def test_softplus_is_linear_above_20() -> None:
    x = torch.tensor([[25.0, 80.0, -100.0]])
    assert torch.allclose(affinities(x, torch.eye(3)).square(), torch.tensor([[25.0, 80.0, 0.0]]))


def test_equal_scores_choose_the_lowest_expert() -> None:
    affinity = torch.ones(3, 40)
    affinity[1, 30] = 2
    assert choose(affinity, torch.zeros(40), 4).tolist() == [[0, 1, 2, 3], [30, 0, 1, 2], [0, 1, 2, 3]]


def test_the_bias_chooses_but_does_not_weigh() -> None:
    affinity = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    routes = weigh(affinity, choose(affinity, torch.tensor([10.0, 0.0, 0.0, 0.0]), 2), 2.5)
    assert routes.ids.tolist() == [[0, 3]]
    assert torch.allclose(routes.weights, torch.tensor([[0.2, 0.8]]) * 2.5)


def test_stray_tokens_when_routed_experts_are_not_clamped() -> None:
    """silu(min(a, 10)) · clamp(b, -10, 10): the gate is cut above only, the other half on both sides."""
    a, b = torch.tensor([[30.0, -30.0, 5.0]]), torch.tensor([[-30.0, 30.0, 5.0]])
    silu = torch.nn.functional.silu
    want = torch.stack((silu(torch.tensor(10.0)) * -10, silu(torch.tensor(-30.0)) * 10, silu(torch.tensor(5.0)) * 5))
    assert torch.allclose(swiglu(torch.cat((a, b), 1), 10.0), want[None])


def test_experts_are_the_weighted_sum_of_those_that_were_chosen() -> None:
    E, C, m, T, K = 10, 16, 12, 37, 3
    w13, w2, x = torch.randn(E, 2 * m, C), torch.randn(E, C, m), torch.randn(T, C)
    ids = torch.stack([torch.randperm(E)[:K] for _ in range(T)]).sort(-1).values
    ids[:] = torch.where(ids == 4, 5, ids).sort(-1).values  # expert 4 is hit by nobody
    routes = Routes(ids, torch.rand(T, K))
    got = experts(x, routes, w13, w2, limit=0.5, rounded=same, quantised=same)
    for t in range(T):
        want = sum(
            (swiglu(x[t : t + 1] @ w13[e].T, 0.5) * w) @ w2[e].T
            for e, w in zip(routes.ids[t].tolist(), routes.weights[t].tolist(), strict=True)
        )
        assert torch.allclose(got[t : t + 1], torch.as_tensor(want), atol=1e-4)


def test_the_routing_weight_comes_before_w2() -> None:
    """Equal in exact arithmetic; what is rounded in between tells."""
    seen = []

    def rounded(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x

    x, w13, w2 = torch.randn(1, 8), torch.randn(1, 8, 8), torch.randn(1, 8, 4)
    routes = Routes(torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1), 0.25))
    experts(x, routes, w13, w2, limit=10.0, rounded=rounded, quantised=same)
    assert torch.allclose(seen[1], swiglu(x @ w13[0].T, 10.0) * 0.25, atol=1e-6)


def test_a_nan_token_leaves_the_other_tokens_alone() -> None:
    E, C, m = 4, 16, 8
    w13, w2, x = torch.randn(E, 2 * m, C), torch.randn(E, C, m), torch.randn(9, C)
    gate, bias = torch.randn(E, C), torch.zeros(E)

    def run(x: Tensor) -> Tensor:
        affinity = affinities(x, gate)
        routes = weigh(affinity, choose(affinity, bias, 2), 1.0)
        return experts(x, routes, w13, w2, limit=10.0, rounded=same, quantised=same)

    clean = run(x)
    x[4] = torch.nan
    broken = run(x)
    others = torch.arange(9) != 4
    assert torch.equal(broken[others], clean[others])
    assert broken[4].isnan().all()
