from __future__ import annotations

import pytest
import torch
from tests.kernels.closeness import assert_bits
from tests.kernels.moe.cases import LIMIT, fp8, make_x, rounded
from tests.kernels.moe.closeness import assert_close
from torch import Tensor

from dsv4.errors import Violation
from dsv4.kernels.linear.reference import linear
from dsv4.kernels.moe import reference
from dsv4.kernels.quant.reference import dequantise_fp8

shared = pytest.importorskip("dsv4.kernels.moe.shared")
quantise = pytest.importorskip("dsv4.kernels.moe.quantise")
pytestmark = pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # numpy, about NaN and infinity

C, M = 256, 128


def make_weights(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def matrix(N: int, K: int) -> tuple[Tensor, Tensor]:
        scale = torch.randint(117, 122, (N // 128, K // 128), dtype=torch.uint8)
        return torch.randn(N, K).to(device).to(torch.float8_e4m3fn), scale.to(device)

    return shared.Shared(*matrix(2 * M, C), *matrix(C, M))  # type: ignore[no-any-return]


def expected(x: Tensor, w: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    w13, w2 = dequantise_fp8(*w[:2]), dequantise_fp8(*w[2:])
    y = rounded(reference.swiglu(rounded(linear(fp8(x.float()), w13)), LIMIT))
    return rounded(linear(fp8(y), w2))


@pytest.mark.parametrize("T", [1, 20, 70])
def test_the_shared_expert_is_the_reference_s(T: int, device: torch.device) -> None:
    x, w = make_x(T, device), make_weights(device)
    got = shared.shared_expert(quantise.to_fp8(x), w, limit=LIMIT)
    assert_close(got, expected(x, w), "shared")


def test_a_row_has_the_same_bits_at_every_batch_size_and_beside_nan(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w = make_x(19, device), make_weights(device)
    alone = shared.shared_expert(quantise.to_fp8(x[5:6].contiguous()), w, limit=LIMIT)
    x[4, 3], x[18, 200] = float("nan"), float("inf")
    monkeypatch.setattr(shared, "_cut", lambda _: (128, 32, 4, 2))
    among = shared.shared_expert(quantise.to_fp8(x), w, limit=LIMIT)
    assert_bits(among[5:6], alone)
    assert bool(among[[4, 18]].isnan().any(1).all())


def test_no_tokens_and_wrong_shapes(device: torch.device) -> None:
    w = make_weights(device)
    assert shared.shared_expert(quantise.to_fp8(make_x(0, device)), w, limit=LIMIT).shape == (0, C)
    with pytest.raises(Violation, match="scales"):
        shared.shared_expert(quantise.to_fp8(make_x(1, device)), shared.Shared(w[0], w[3], w[2], w[1]), limit=LIMIT)
