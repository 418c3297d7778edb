"""Which kernel serves sparse decode, and that it is told."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from dsv4.errors import Violation
from dsv4.kernels.attention import choice as module
from dsv4.kernels.attention import hopper
from dsv4.kernels.attention.choice import CUDA, TRITON, choice, served_on

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _undecided(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(module.VARIABLE, raising=False)
    choice.cache_clear()
    yield
    choice.cache_clear()


def test_triton_serves_where_there_is_no_gpu_and_says_why() -> None:
    assert choice(CPU).name == TRITON
    assert "cpu" in choice(CPU).why
    assert served_on("cpu") == choice(CPU)


def test_another_gpu_than_hopper_is_served_by_triton(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (10, 0))
    with caplog.at_level(logging.INFO):
        assert choice(GPU).name == TRITON
    assert "10.0 is not Hopper's" in choice(GPU).why
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_hopper_is_served_by_cuda_if_it_compiles_and_by_triton_with_the_reason_if_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(hopper, "kernels_on", lambda _: None)
    assert choice(GPU).name == CUDA
    choice.cache_clear()

    def fails(_: torch.device) -> None:
        raise Violation("NVRTC 1.0 on sparse_decode.cu: no")

    monkeypatch.setattr(hopper, "kernels_on", fails)
    assert choice(GPU).name == TRITON
    assert choice(GPU).why == "NVRTC 1.0 on sparse_decode.cu: no"


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
