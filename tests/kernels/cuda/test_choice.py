"""Which kernel serves index scores, sparse attention, FP8 products and routed experts, and that it is told."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from dsv4.errors import Violation
from dsv4.kernels.attention import choice as attention
from dsv4.kernels.attention import hopper as attention_kernels
from dsv4.kernels.cuda.choice import CUDA, TRITON, Choice, named
from dsv4.kernels.index import choice as index
from dsv4.kernels.index import hopper as index_kernels
from dsv4.kernels.linear import choice as linear
from dsv4.kernels.linear import hopper as linear_kernels
from dsv4.kernels.moe import choice as moe
from dsv4.kernels.moe import hopper as moe_kernels

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
OPS = {
    "index scores": (index, index_kernels),
    "sparse attention": (attention, attention_kernels),
    "FP8 products": (linear, linear_kernels),
    "routed experts": (moe, moe_kernels),
}


@pytest.fixture(params=OPS)
def op(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The op's name; nothing is decided yet."""
    module, _ = OPS[request.param]
    monkeypatch.delenv(module.VARIABLE, raising=False)
    module.choice.cache_clear()
    yield request.param
    module.choice.cache_clear()


@pytest.fixture
def module(op: str) -> ModuleType:
    return OPS[op][0]


def test_triton_serves_a_cpu_and_that_is_told(op: str, module: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert module.choice(CPU) == Choice(TRITON, "the default")
    assert [record.message for record in caplog.records] == [f"{op} on cpu: triton serves (the default)"]


def fails(_: torch.device) -> None:
    raise Violation("NVRTC 1.0 on a source: no")


def test_cuda_serves_hopper_unasked_if_it_compiles(
    op: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(OPS[op][1], "kernels_on", lambda _: None)
    assert module.choice(GPU) == Choice(CUDA, "the default on Hopper")
    module.choice.cache_clear()
    monkeypatch.setattr(OPS[op][1], "kernels_on", fails)
    assert module.choice(GPU) == Choice(TRITON, "NVRTC 1.0 on a source: no")
    module.choice.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (10, 0))
    assert module.choice(GPU).name == TRITON


def test_a_device_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert [named(name) for name in ("cpu", "cuda:1", "cuda")] == [
        CPU,
        torch.device("cuda", 1),
        torch.device("cuda", 3),
    ]


def test_cuda_serves_hopper_alone_and_only_if_it_compiles(
    op: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(module.VARIABLE, CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (10, 0))
    with pytest.raises(Violation, match=r"10\.0 is not Hopper's"):
        module.choice(GPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(OPS[op][1], "kernels_on", lambda _: None)
    assert module.choice(GPU) == Choice(CUDA, f"{module.VARIABLE} asks for it")
    module.choice.cache_clear()
    monkeypatch.setattr(OPS[op][1], "kernels_on", fails)
    with pytest.raises(Violation, match=r"NVRTC 1\.0"):
        module.choice(GPU)


def test_what_is_asked_for_serves_or_fails(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(module.VARIABLE, TRITON)
    assert module.choice(GPU).name == TRITON
    module.choice.cache_clear()
    monkeypatch.setenv(module.VARIABLE, CUDA)
    with pytest.raises(Violation, match="cpu runs no CUDA code"):
        module.choice(CPU)
    monkeypatch.setenv(module.VARIABLE, "fast")
    with pytest.raises(Violation, match="neither"):
        module.choice(CPU)
