"""Index queries on the device equal the model's: same values after rounding, scales in the weights, NaN kept apart."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from dsv4.errors import Violation
from dsv4.kernels.index.queries import index_queries
from dsv4.kernels.norm_rope.reference import rotate
from dsv4.kernels.quant.reference import fake_fp4, fake_fp8, hadamard

Kind = Literal["fp8", "fp4"]
BOTH = pytest.mark.parametrize("kind", ["fp8", "fp4"])


def inputs(T: int, spread: float = 1.0) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    angle = torch.randn(T, 32) * 3
    q = torch.randn(T, 64, 128) * torch.exp2(torch.randn(T, 64, 1) * 3) * spread
    return q.bfloat16(), torch.randn(T, 64).bfloat16(), (angle.cos(), angle.sin())


def run(
    q: Tensor, heads: Tensor, angles: tuple[Tensor, Tensor], kind: Kind, device: torch.device
) -> tuple[Tensor, Tensor]:
    cos, sin = angles
    out, weights = index_queries(q.to(device), heads.to(device), (cos.to(device), sin.to(device)), kind)
    return out.float().cpu(), weights.cpu()


def expected(q: Tensor, angles: tuple[Tensor, Tensor], kind: Kind) -> Tensor:
    """The queries as the model rounds them."""
    x = rotate(q.float(), *angles, inverse=False).bfloat16().float()
    x = hadamard(x).bfloat16().float()
    return fake_fp4(x, 32) if kind == "fp4" else fake_fp8(x, 128)


@BOTH
@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e3])
def test_values_times_scales_are_the_models_queries(kind: Kind, spread: float, device: torch.device) -> None:
    q, heads, angles = inputs(3, spread)
    values, weights = run(q, heads, angles, kind, device)
    plain = (heads.float() * (128**-0.5 * 64**-0.5)).bfloat16().float()
    scale = weights / plain
    assert torch.equal(scale, torch.exp2(scale.log2().round())), "a scale is a power of two"
    assert torch.equal(values * scale[..., None], expected(q, angles, kind))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, in the interpreter
@BOTH
def test_a_nan_in_one_head_spoils_that_head_only(kind: Kind, device: torch.device) -> None:
    q, heads, angles = inputs(2)
    values, weights = run(q, heads, angles, kind, device)
    q[1, 7, 5] = torch.nan
    spoilt, spoilt_weights = run(q, heads, angles, kind, device)
    assert (spoilt[1, 7] * spoilt_weights[1, 7]).isnan().all()
    spoilt[1, 7], spoilt_weights[1, 7] = values[1, 7], weights[1, 7]
    assert torch.equal(spoilt, values)
    assert torch.equal(spoilt_weights, weights)


@BOTH
def test_no_tokens(kind: Kind, device: torch.device) -> None:
    values, weights = run(*inputs(0), kind, device)
    assert values.shape == (0, 64, 128)
    assert weights.shape == (0, 64)


def test_other_shapes_are_refused(device: torch.device) -> None:
    q, heads, angles = inputs(2)
    with pytest.raises(Violation, match="q "):
        run(q[:, :32], heads, angles, "fp8", device)
    with pytest.raises(Violation, match="heads"):
        run(q, heads[:, :32], angles, "fp8", device)
