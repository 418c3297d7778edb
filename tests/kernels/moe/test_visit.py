"""What a machine without a GPU can say of the visit for the experts' kernel."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from benches.kernels import hopper_experts, hopper_experts_parts
from tests.kernels.cuda.emulate import compiler, library
from tests.kernels.cuda.machine_code import made_of
from tests.kernels.moe.emulated import run

from dsv4.kernels.moe import hopper


def test_parts_are_those_that_are_called() -> None:
    visit = hopper_experts.VISIT
    assert list(visit.silence) == list(hopper_experts_parts.PARTS)
    assert set(visit.needs) | set(visit.needs.values()) | {visit.rest} <= {"", *visit.silence}


@pytest.mark.parametrize("variant", hopper_experts_parts.VARIANTS)
def test_a_variant_is_made_and_compiles(variant: str, tmp_path: Path) -> None:
    path = tmp_path / "variant.cu"
    path.write_text(hopper_experts_parts.source_of(variant))
    log = made_of(path)[1]
    assert log.count("0 bytes spill stores") == 2, log


@pytest.mark.skipif(compiler() is None, reason="there is no g++, which builds emulated kernels")
@pytest.mark.skipif(torch.cuda.is_available(), reason="runs Triton's kernels in the interpreter")
def test_a_small_layer_is_right_on_the_emulator(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hopper_experts_parts, "DEVICE", "cpu")
    monkeypatch.setattr(hopper_experts_parts, "SMALL", (2,))
    monkeypatch.setattr(hopper, "launch", functools.partial(run, library(hopper.SOURCE)))
    hopper_experts_parts.small()
    row = json.loads(capsys.readouterr().out)
    assert row["same_bits_again"]
    assert row["same_bits_alone"]


def test_the_table_of_a_visit(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"part": "times", "T": 8192, "routing": "zipf", "us": {"cuda": 1.0, "triton": 2.0}, "tflops": 3.0}
    hopper_experts.table([json.loads(json.dumps(row)), {"part": "small"}])
    assert capsys.readouterr().out.splitlines()[1].split() == ["zipf", "8192", "1.0", "2.0", "3"]
