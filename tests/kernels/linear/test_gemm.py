# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.kernels.closeness import assert_bits
from torch import Tensor

from dsv4.errors import Violation
from dsv4.kernels.quant.reference import dequantise_fp8, unpack_fp8

gemm = pytest.importorskip("dsv4.kernels.linear.gemm")
choice = pytest.importorskip("dsv4.kernels.cuda.choice")
quantise = pytest.importorskip("dsv4.kernels.linear.quantise")
tuning = pytest.importorskip("dsv4.kernels.linear.tuning")

EXACT = 1e-6  # float32 sums in another order than float64
TENSOR_CORE = 2e-3  # Hopper's FP8 products keep about 14 bits of a sum


@pytest.fixture
def workspace(device: torch.device) -> Any:
    made = gemm.Workspace(device)
    made.partials.fill_(float("nan"))
    yield made
    assert not made.arrivals.any(), "the workspace is ready for the next launch"


def fp8_weight(n: int, K: int, device: torch.device) -> Any:
    values = (torch.randn(n, K, device=device) * 20).to(torch.float8_e4m3fn)
    return gemm.Fp8Weight.of(values, torch.randint(110, 121, (n // 128, K // 128), device=device).to(torch.uint8))


def bf16_rows(T: int, K: int, device: torch.device) -> Tensor:
    return torch.randn(T, K, device=device).to(torch.bfloat16)


def small_numbers(*shape: int, device: torch.device) -> Tensor:
    """Integers up to 3: sums of their products are exact in every order."""
    return torch.randint(-3, 4, shape, device=device).float()


def wide(x: Any) -> Tensor:
    return unpack_fp8(x.values, quantise.unpacked(x.sf.t(), x.values.shape[1] // 128)).double()


def dequantised(weight: Any) -> Tensor:
    return dequantise_fp8(weight.values, quantise.unpacked(weight.sf, weight.values.shape[1] // 128))


def error(out: Tensor, want: Tensor) -> float:
    return float((out.double() - want).norm() / want.norm().clamp_min(1e-30))


@pytest.mark.parametrize("T", [0, 1, 17, 66])
@pytest.mark.parametrize(("N", "K"), [(128, 128), (384, 640), (128, 1024)])
def test_fp8_products(T: int, N: int, K: int, device: torch.device, workspace: Any) -> None:
    weight, x = fp8_weight(N, K, device), quantise.quantise(bf16_rows(T, K, device))
    want = wide(x) @ dequantised(weight).double().T
    limit = TENSOR_CORE if device.type == "cuda" else EXACT
    assert error(gemm.fp8_linear(x, weight, workspace, dtype=torch.float32), want) < limit
    assert error(gemm.fp8_linear(x, weight, workspace), want) < 3e-3


@pytest.mark.parametrize("T", [0, 1, 17, 70])
def test_grouped_products_of_a_weight_that_stays_in_fp8(T: int, device: torch.device, workspace: Any) -> None:
    G, N, K = 4, 128, 256
    weight, x = fp8_weight(G * N, K, device), bf16_rows(T, G * K, device)
    blocks = dequantised(weight).double().view(G, N, K)
    want = torch.einsum("tgk,gnk->tgn", x.double().view(T, G, K), blocks).flatten(1)
    assert error(gemm.mixed_linear(x, weight, G, workspace, dtype=torch.float32), want) < 1e-5
    z = gemm.mixed_linear(x, weight, G, workspace)
    got, again = gemm.mixed_linear_quantised(x, weight, G, workspace), quantise.quantise(z)
    assert_bits(got.values, again.values)
    assert_bits(got.sf, again.sf)


@pytest.mark.parametrize("T", [0, 1, 17, 70])
@pytest.mark.parametrize(("N", "K"), [(64, 64), (200, 320), (96, 2048)])
def test_bf16_products_in_float32(T: int, N: int, K: int, device: torch.device, workspace: Any) -> None:
    weight, x = bf16_rows(N, K, device), bf16_rows(T, K, device)
    out = gemm.bf16_linear(x, weight, workspace)
    assert error(out, x.double() @ weight.double().T) < 1e-5
    assert_bits(gemm.bf16_linear(x, weight, workspace, dtype=torch.bfloat16), out.to(torch.bfloat16))


@pytest.mark.parametrize("kind", ["fp8", "mixed", "bf16"])
def test_a_row_has_the_same_bits_among_any_number_of_rows(kind: str, device: torch.device, workspace: Any) -> None:
    """On a GPU with any numbers; BLAS, under the interpreter, keeps its promise for exact sums alone."""
    N, K, T = 128, 1024, 66 if device.type == "cpu" else 700
    assert tuning.num_splits(N, K, 1) > 1
    made = small_numbers if device.type == "cpu" else lambda *shape, device: torch.randn(*shape, device=device)
    x = made(T, K, device=device).to(torch.bfloat16)
    weight = fp8_weight(N, K, device)
    weight = weight._replace(values=made(N, K, device=device).to(torch.float8_e4m3fn))
    run = {
        "fp8": lambda x: gemm.fp8_linear(quantise.quantise(x), weight, workspace, dtype=torch.float32),
        "mixed": lambda x: gemm.mixed_linear(x, weight, 1, workspace, dtype=torch.float32),
        "bf16": lambda x: gemm.bf16_linear(x, weight.values.to(torch.bfloat16), workspace),
    }[kind]
    together = run(x)
    for count in (1, 33) if device.type == "cpu" else (1, 16, 33, 64, 300):
        assert_bits(run(x[:count].contiguous()), together[:count])
    assert_bits(run(x[65:66].contiguous()), together[65:66])


@pytest.mark.parametrize("T", [17, 64, 300, 700])
@pytest.mark.parametrize(("N", "K"), [(256, 1024), (512, 4096), (384, 640)])
def test_cuda_gives_a_row_tritons_bits(
    T: int, N: int, K: int, device: torch.device, workspace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        pytest.skip("there is no Hopper GPU; test_emulated.py has the kernel on the CPU")
    weight, x = fp8_weight(N, K, device), quantise.quantise(bf16_rows(T, K, device))
    found = []
    for name in (choice.CUDA, choice.TRITON):
        monkeypatch.setattr(gemm, "choice", lambda _, name=name: choice.Choice(name, "a test asks for it"))
        found.append(gemm.fp8_linear(x, weight, workspace))
    assert_bits(*found)


def test_cuda_serves_fp8_products_of_more_than_few_rows(
    device: torch.device, workspace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[tuple[int, int]] = []

    def launch(x: Tensor, x_sf: Tensor, w: Tensor, w_sf: Tensor, out: Tensor, splits: int) -> None:
        del x_sf, w, w_sf
        served.append((len(x), splits))
        out.zero_()

    monkeypatch.setattr(gemm, "choice", lambda _: choice.Choice(choice.CUDA, "a test asks for it"))
    monkeypatch.setattr(gemm.hopper, "launch", launch)
    weight = fp8_weight(128, 1024, device)
    for T in (0, 1, 16, 17, 40):
        gemm.fp8_linear(quantise.quantise(bf16_rows(T, 1024, device)), weight, workspace)
    gemm.fp8_linear(quantise.quantise(bf16_rows(17, 1024, device)), weight, workspace, dtype=torch.float32)
    gemm.mixed_linear(bf16_rows(17, 1024, device), weight, 1, workspace)
    gemm.bf16_linear(bf16_rows(17, 1024, device), bf16_rows(64, 1024, device), workspace)
    assert served == [(17, 2), (40, 2)]


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # numpy, about the NaN
@pytest.mark.parametrize("T", [5, 70])
def test_a_nan_stays_in_its_row(T: int, device: torch.device, workspace: Any) -> None:
    weight = fp8_weight(128, 256, device)
    x = small_numbers(T, 256, device=device).to(torch.bfloat16)
    fine = gemm.fp8_linear(quantise.quantise(x), weight, workspace)
    mixed = gemm.mixed_linear(x, weight, 1, workspace)
    x[3, 130] = float("nan")
    got = gemm.fp8_linear(quantise.quantise(x), weight, workspace)
    other = [t for t in range(T) if t != 3]
    assert bool(got[3].isnan().all())
    assert_bits(got[other], fine[other])
    assert_bits(gemm.mixed_linear(x, weight, 1, workspace)[other], mixed[other])


def test_rows_that_are_not_there_are_not_read(device: torch.device, workspace: Any) -> None:
    poisoned = torch.full((80, 256), float("nan"), dtype=torch.bfloat16, device=device)
    weight = bf16_rows(64, 256, device)
    for T in (3, 67):
        poisoned[:T] = 1.0
        got = gemm.bf16_linear(poisoned[:T], weight, workspace)
        assert bool(got.isfinite().all())


def test_splits_depend_on_the_weight_alone_and_divide_it() -> None:
    for G, N, K in (
        (1, 1536, 4096),
        (1, 32768, 1024),
        (8, 1024, 4096),
        (1, 4096, 8192),
        (1, 7168, 16384),
        (1, 64, 192),
    ):
        splits = tuning.num_splits(N, K, G)
        assert splits >= 1
        assert splits == 1 or K % (splits * 128) == 0
        for rows in tuning.ROW_CLASSES:
            for kind in (0, 1, 2):
                cut = tuning.cut_of(kind, N, K, G, rows)
                size_x, size_w = (1 if kind == 0 else 2), (2 if kind == 2 else 1)
                assert (cut.bn * size_w + cut.bt * size_x) * cut.bk * cut.stages <= 227 * 1024
                assert 128 % cut.bn == 0 or kind == 2, "one weight scale per tile"
                assert kind != 0 or cut.bk == 128, "one promotion per 128 channels"


def test_arguments_outside_the_contract_are_refused(device: torch.device, workspace: Any) -> None:
    weight, x = fp8_weight(128, 256, device), bf16_rows(2, 256, device)
    rows = quantise.quantise(x)
    with pytest.raises(Violation, match="group-major"):
        gemm.fp8_linear(rows._replace(sf=rows.sf.t().contiguous()), weight, workspace)
    with pytest.raises(Violation, match="E8M0"):
        gemm.fp8_linear(rows, weight._replace(sf=weight.sf.float()), workspace)
    with pytest.raises(Violation, match="for a weight"):
        gemm.mixed_linear(x, weight, 2, workspace)
    with pytest.raises(Violation, match="the weight is"):
        gemm.bf16_linear(x, weight.values, workspace)
    with pytest.raises(Violation, match="workspace"):
        gemm.fp8_linear(
            quantise.quantise(bf16_rows(1, 2048, device)),
            fp8_weight(128, 2048, device),
            gemm.Workspace(device, num_bytes=64),
        )
