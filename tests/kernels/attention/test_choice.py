"""Which kernel serves sparse decode, and that it is told."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from dsv4.errors import Violation
from dsv4.kernels.attention import choice as module
from dsv4.kernels.attention import hopper
from dsv4.kernels.attention.choice import CUDA, TRITON, Choice, choice, served_on

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _undecided(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(module.VARIABLE, raising=False)
    choice.cache_clear()
    yield
    choice.cache_clear()


@pytest.mark.parametrize("device", [CPU, GPU])
def test_triton_serves_unless_the_other_is_asked_for(device: torch.device, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert choice(device) == Choice(TRITON, "the default")
    assert [record.message for record in caplog.records] == [
        f"sparse attention on {device}: triton serves (the default)"
    ]


def test_a_device_is_known_by_its_name() -> None:
    assert served_on("cpu") == choice(CPU)


def test_cuda_serves_hopper_alone_and_only_if_it_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(module.VARIABLE, CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (10, 0))
    with pytest.raises(Violation, match=r"10\.0 is not Hopper's"):
        choice(GPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(hopper, "kernels_on", lambda _: None)
    assert choice(GPU).name == CUDA
    choice.cache_clear()

    def fails(_: torch.device) -> None:
        raise Violation("NVRTC 1.0 on sparse_decode.cu: no")

    monkeypatch.setattr(hopper, "kernels_on", fails)
    with pytest.raises(Violation, match=r"NVRTC 1\.0"):
        choice(GPU)


def test_what_is_asked_for_serves_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(module.VARIABLE, TRITON)
    assert choice(GPU).name == TRITON
    choice.cache_clear()
    monkeypatch.setenv(module.VARIABLE, CUDA)
    with pytest.raises(Violation, match="cpu runs no CUDA code"):
        choice(CPU)
    monkeypatch.setenv(module.VARIABLE, "fast")
    with pytest.raises(Violation, match="neither"):
        choice(CPU)
