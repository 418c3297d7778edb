"""W4A4's rounding is MXFP4's, experts read it where they are told to, and a broken one does not pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from benches import w4a4
from torch import Tensor

from dsv4.config.directory import DEMO
from dsv4.config.model import ModelConfig
from dsv4.kernels.quant.reference import fake_fp4, fake_fp8, pack_fp4, round_e2m1, unpack_fp4
from dsv4.model import numerics
from dsv4.model.checkpoint import open_checkpoint
from dsv4.model.moe import MoE

FP4 = replace(w4a4.NUMERICS, expert_inputs="fp4")


def test_the_grids_are_the_formats() -> None:
    every = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert torch.equal(torch.tensor(w4a4.E4M3), every)
    assert w4a4.E2M1 == (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def test_w4a4_inputs_are_those_that_pack_fp4_stores_with_one_e8m0_byte_for_32() -> None:
    x = w4a4.probes()
    packed, exponents = pack_fp4(x, 32)
    assert exponents.dtype is torch.uint8
    assert exponents.shape == (len(x), x.shape[1] // 32)
    assert torch.equal(FP4.expert_input(x), unpack_fp4(packed, exponents))


@pytest.mark.parametrize("inputs", w4a4.FORMATS)
def test_both_roundings_are_their_definition(inputs: numerics.ExpertInputs) -> None:
    rounding = replace(w4a4.NUMERICS, expert_inputs=inputs).expert_input
    assert w4a4.wrong_values(rounding, w4a4.FORMATS[inputs]) == 0


def test_no_choice_is_w4a8_and_float32_rounds_nothing() -> None:
    x = w4a4.probes()
    plain = numerics.Numerics("bfloat16", "fp8_ds_mla", "fp4")
    assert torch.equal(plain.expert_input(x), fake_fp8(x, 128))
    assert w4a4.NUMERICS.expert_input(x) is x
    assert replace(numerics.FLOAT32, expert_inputs="fp4").expert_input(x) is x


def _scaled(x: Tensor, scale_of: Callable[[Tensor], Tensor], round_to: Callable[[Tensor], Tensor]) -> Tensor:
    blocks = x.view(len(x), -1, 32)
    scale = scale_of(blocks.abs().amax(-1, keepdim=True).clamp_min(6 * 2.0**-126) / 6)
    return (round_to((blocks / scale).clamp(-6, 6)) * scale).flatten(1)


def _up(v: Tensor) -> Tensor:
    return torch.exp2(torch.ceil(torch.log2(v)))


def _towards_zero(v: Tensor) -> Tensor:
    grid = torch.tensor(w4a4.E2M1)
    return grid[(torch.searchsorted(grid, v.abs().contiguous(), right=True) - 1)].copysign(v)


def _ties_away(v: Tensor) -> Tensor:
    return round_e2m1(v * (1 + 2.0**-20))


BROKEN: dict[str, Callable[[Tensor], Tensor]] = {
    "blocks of 64": lambda x: fake_fp4(x, 64),
    "blocks of 16": lambda x: fake_fp4(x, 16),
    "a scale with mantissa bits": lambda x: _scaled(x, lambda v: v, round_e2m1),
    "a scale rounded down, which saturates": lambda x: _scaled(x, lambda v: _up(v) / 2, round_e2m1),
    "a scale one step too large": lambda x: _scaled(x, lambda v: _up(v) * 2, round_e2m1),
    "towards zero": lambda x: _scaled(x, _up, _towards_zero),
    "ties away from zero": lambda x: _scaled(x, _up, _ties_away),
    "signs lost": lambda x: fake_fp4(x, 32).abs(),
    "FP8": lambda x: fake_fp8(x, 128),
    "nothing": lambda x: x,
}


def test_the_stand_ins_are_right_but_for_what_is_planted() -> None:
    assert w4a4.wrong_values(lambda x: _scaled(x, _up, round_e2m1), w4a4.FORMATS["fp4"]) == 0


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_rounding_stops_the_command(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert w4a4.main(["--check"]) == 0
    monkeypatch.setattr(numerics, "fake_fp4", lambda x, block: BROKEN[fault](x))
    assert w4a4.main(["--check"]) == 1
    said = capsys.readouterr().out
    assert "W4A8: 0 of" in said
    assert "a rounding is broken" in said


def test_experts_read_what_they_are_told_and_only_they() -> None:
    config = ModelConfig.load(DEMO)
    with open_checkpoint(DEMO, config) as source:
        moe = MoE.take(source, config, w4a4.NUMERICS, "layers.0.ffn", hashed=True)
    assert moe.quantised, "the checkpoint's experts are FP4"
    x = torch.randn(9, config.hidden_size, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    ids = torch.zeros(9, dtype=torch.long)
    exact = moe.routed(x, ids)
    eight, four = (w4a4.reading(moe, inputs).routed(x, ids) for inputs in ("fp8", "fp4"))
    assert 0 < (eight - exact).norm() < (four - exact).norm() / 2
    assert (four - exact).norm() < 0.4 * exact.norm()
    for inputs in ("fp8", "fp4"):
        other = w4a4.reading(moe, inputs)
        shared = other(x, ids) - other.routed(x, ids)
        assert torch.allclose(shared, moe(x, ids) - exact, atol=2**-6 * float(exact.abs().max()))


def test_the_report_measures_the_model() -> None:
    results, layers = w4a4.compare(num_tokens=96)
    bf16, nudged, eight, four = results
    assert [r.name for r in results] == ["bf16 (W4A16)", w4a4.CONTROL, "W4A8", "W4A4"]
    assert (bf16.agreement, bf16.kl) == (1.0, 0.0)
    assert 0 < nudged.kl < four.kl
    assert 0 < eight.kl < four.kl
    assert four.agreement <= eight.agreement < 1.0 or eight.kl < 0.02
    assert 4096 < bf16.perplexity < 4096**2, "random weights: worse than a uniform guess over 4096 tokens"
    for one, other in zip(layers["fp8"], layers["fp4"], strict=True):
        assert 0.01 < one < 0.1 < other < 0.4


def test_judgements_by_hand() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log()
    q = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]]).log()
    got = w4a4.judged("fp4", q, p, torch.tensor([0, 1]))
    assert got.agreement == 0.5
    assert got.perplexity == pytest.approx((0.25 * 0.8) ** -0.5)
    assert got.kl == pytest.approx((0.5 * 0.6931472 - 0.25 * 0.6931472) / 2)
