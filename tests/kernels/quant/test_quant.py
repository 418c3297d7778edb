"""FP8 and FP4 with power-of-two scales, bit by bit."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tests.kernels.vectors import UNIT

from dsv4.errors import Violation
from dsv4.kernels.quant import reference as quant


def test_fp8_rounding_of_the_official_vector() -> None:
    v = UNIT["fp8_ue8m0_block64"]
    assert torch.equal(quant.fake_fp8(torch.tensor(v["x"]), 64), torch.tensor(v["dequant"]))


def test_fp4_rounding_of_the_official_vector() -> None:
    v = UNIT["fp4_ue8m0_block32"]
    assert torch.equal(quant.fake_fp4(torch.tensor(v["x"]), 32), torch.tensor(v["dequant"]))


def test_e2m1_ties_go_to_the_even_code_not_toward_zero() -> None:
    v = UNIT["e2m1_ties"]
    assert torch.equal(quant.round_e2m1(torch.tensor(v["in"])), torch.tensor(v["rne"]))
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    even = torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0])
    assert torch.equal(quant.round_e2m1(ties), even)
    assert torch.equal(quant.round_e2m1(-ties), -even)


def test_e2m1_saturates() -> None:
    assert quant.round_e2m1(torch.tensor([5.01, 100.0, -7.0])).tolist() == [6.0, 6.0, -6.0]


def test_hadamard_of_the_official_vector() -> None:
    v = UNIT["hadamard128"]
    assert (quant.hadamard(torch.tensor(v["x"])) - torch.tensor(v["y"])).abs().max() <= 1e-6


def test_hadamard_undoes_itself_and_keeps_products() -> None:
    x, y = torch.randn(2, 5, 128)
    assert torch.allclose(quant.hadamard(quant.hadamard(x)), x, atol=1e-5)
    assert torch.allclose(quant.hadamard(x) @ quant.hadamard(y).T, x @ y.T, atol=1e-4)


def test_hadamard_refuses_widths_that_are_no_power_of_two() -> None:
    with pytest.raises(Violation, match="power of two"):
        quant.hadamard(torch.zeros(1, 96))


@pytest.mark.parametrize("exponent", range(-12, 13))
def test_an_amax_on_a_boundary_keeps_its_scale(exponent: int) -> None:
    """448 * 2^k and 6 * 2^k give exactly 2^k; the next float above gives twice that."""
    for limit, block, pack in ((448.0, 64, quant.pack_fp8), (6.0, 32, quant.pack_fp4)):
        amax = torch.full((block,), limit * 2.0**exponent)
        assert pack(amax, block)[1].tolist() == [127 + exponent]
        above = torch.nextafter(amax, torch.tensor(math.inf))
        assert pack(above, block)[1].tolist() == [128 + exponent]


def test_zero_blocks_have_bytes_105_and_1() -> None:
    assert quant.pack_fp8(torch.zeros(64), 64)[1].tolist() == [105]
    assert quant.pack_fp4(torch.zeros(32), 32)[1].tolist() == [1]
    assert not quant.fake_fp8(torch.zeros(64), 64).any()
    assert not quant.fake_fp4(torch.zeros(32), 32).any()


def test_small_amax_is_floored_at_1e_4_for_fp8_and_hardly_at_all_for_fp4() -> None:
    tiny = torch.full((64,), 1e-7)
    assert quant.pack_fp8(tiny, 64)[1].tolist() == [105]
    assert quant.fake_fp4(tiny[:32], 32)[0].item() == pytest.approx(1e-7, rel=0.35)


def test_fluent_nonsense_when_e8m0_is_read_as_a_number() -> None:
    """Byte 120 is 2^-7. Read by numeric conversion it was 120.0."""
    weight = torch.ones(128, 128).to(torch.float8_e4m3fn)
    for scale in (
        torch.full((1, 1), 120, dtype=torch.uint8),
        torch.full((1, 1), 120, dtype=torch.uint8).view(torch.float8_e8m0fnu),
        torch.full((1, 1), 2.0**-7),
    ):
        assert (quant.dequantise_fp8(weight, scale) == 2.0**-7).all()


def test_e8m0_bytes_are_powers_of_two_and_255_is_nan() -> None:
    values = quant.e8m0_values(torch.arange(256, dtype=torch.uint8))
    assert values[255].isnan()
    assert values[:255].tolist() == [2.0 ** (byte - 127) for byte in range(255)]


def test_a_block_with_a_nan_is_nan_and_its_neighbour_is_untouched() -> None:
    x = torch.randn(1, 128)
    clean = quant.fake_fp8(x, 64)
    for bad in (math.nan, math.inf, -math.inf):
        x[0, 3] = bad
        values, exponents = quant.pack_fp8(x, 64)
        assert exponents[0, 0] == 255
        for back in (quant.unpack_fp8(values, exponents), quant.fake_fp8(x, 64)):
            assert back[0, :64].isnan().all()
            assert torch.equal(back[0, 64:], clean[0, 64:])
        packed, exponents = quant.pack_fp4(x, 32)
        assert quant.unpack_fp4(packed, exponents)[0, :32].isnan().all()
        assert not quant.unpack_fp4(packed, exponents)[0, 32:].isnan().any()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 300.0])
def test_what_was_rounded_once_packs_to_itself(scale: float) -> None:
    x = torch.randn(50, 256) * scale
    for fake, pack, unpack, block in (
        (quant.fake_fp8, quant.pack_fp8, quant.unpack_fp8, 64),
        (quant.fake_fp4, quant.pack_fp4, quant.unpack_fp4, 32),
    ):
        once = fake(x, block)
        assert torch.equal(unpack(*pack(x, block)), once)
        assert torch.equal(fake(once, block), once)


def test_a_short_last_block_has_a_scale_of_its_own() -> None:
    x = torch.cat((torch.full((3, 128), 100.0), torch.full((3, 40), 0.013)), 1)
    assert torch.equal(quant.fake_fp8(x, 128)[:, 128:], quant.fake_fp8(x[:, 128:], 40))


def test_nibbles_are_low_first() -> None:
    """Byte = low nibble even index, high nibble odd; bit 3 the sign, bits 0-2 of 0, .5, 1, 1.5, 2, 3, 4, 6."""
    magnitudes = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    for low, high in itertools.product(range(16), repeat=2):
        want = [(-1.0 if code & 8 else 1.0) * magnitudes[code & 7] for code in (low, high)]
        assert quant.unpack_nibbles(torch.tensor([low | high << 4], dtype=torch.uint8)).tolist() == want


def test_mxfp4_weights_have_a_scale_per_32_values_of_a_row() -> None:
    packed = torch.randint(-128, 128, (6, 32), dtype=torch.int8)
    scale = torch.randint(100, 140, (6, 2), dtype=torch.uint8)
    got = quant.dequantise_mxfp4(packed, scale)
    values = quant.unpack_nibbles(packed.view(torch.uint8))
    want = torch.stack([values[i, j] * 2.0 ** (int(scale[i, j // 32]) - 127) for i in range(6) for j in range(64)])
    assert torch.equal(got.flatten(), want)
    assert torch.equal(quant.dequantise_mxfp4(packed.view(torch.uint8), scale.view(torch.float8_e8m0fnu)), got)


def test_fp8_weights_have_a_scale_per_128_by_128_with_short_edges() -> None:
    weight = torch.randn(200, 300).to(torch.float8_e4m3fn)
    scale = torch.randint(120, 134, (2, 3), dtype=torch.uint8)
    got = quant.dequantise_fp8(weight, scale)
    for i, j in ((0, 0), (127, 128), (128, 127), (199, 299), (130, 260)):
        assert got[i, j] == weight[i, j].float() * 2.0 ** (int(scale[i // 128, j // 128]) - 127)
    with pytest.raises(Violation, match="needs scales"):
        quant.dequantise_fp8(weight, scale[:1])
