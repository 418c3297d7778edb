"""Who serves a layer's experts: CUDA C++ on Hopper if the layer folds."""

from __future__ import annotations

import logging

import pytest
import torch
from tests.kernels.closeness import assert_bits
from tests.kernels.cuda.emulate import compiler, library
from tests.kernels.moe import cases

from dsv4.errors import Violation
from dsv4.kernels.cuda.choice import CUDA, Choice

pytest.importorskip("triton")
import functools

from tests.kernels.moe.emulated import pack, run

from dsv4.kernels.moe import choice, hopper
from dsv4.kernels.moe import experts as triton
from dsv4.kernels.moe.hopper import FoldedExperts

CPU = torch.device("cpu")


@pytest.fixture
def _cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "choice", lambda _: Choice(CUDA, "the test asks for it"))


def test_triton_serves_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(choice.VARIABLE, raising=False)
    choice.choice.cache_clear()
    weights = pack(cases.make_checkpoint(CPU))
    assert choice.prepared(weights, "layer") is weights


def test_what_cannot_serve_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.VARIABLE, CUDA)
    choice.choice.cache_clear()
    with pytest.raises(Violation, match="cpu runs no CUDA code"):
        choice.prepared(pack(cases.make_checkpoint(CPU)), "layer")


@pytest.mark.usefixtures("_cuda")
def test_a_layer_that_does_not_fold_stays_with_triton(caplog: pytest.LogCaptureFixture) -> None:
    at = cases.make_checkpoint(CPU, hidden=512, width=256)
    at.w2_scale[3, 7, 0] = 90
    weights = pack(at)
    with caplog.at_level(logging.WARNING):
        assert choice.prepared(weights, "layers.4.ffn.experts") is weights
    assert "layers.4.ffn.experts stays with Triton: expert 3: scales of a row are 2^3" in caplog.text


@pytest.mark.usefixtures("_cuda")
@pytest.mark.skipif(compiler() is None, reason="there is no g++, which builds emulated kernels")
@pytest.mark.skipif(torch.cuda.is_available(), reason="runs Triton's kernels in the interpreter")
def test_each_form_of_weights_has_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper, "launch", functools.partial(run, library(hopper.SOURCE)))
    weights = pack(cases.make_checkpoint(CPU, hidden=512, width=256))
    folded = choice.prepared(weights, "layer")
    assert isinstance(folded, FoldedExperts)
    x, chosen = cases.make_x(2, CPU, 512), triton.Chosen(*cases.make_choice(2, CPU))
    shared = cases.make_x(2, CPU, 512)
    by_triton = triton.experts(x, chosen, weights, "w4a8", limit=cases.LIMIT, shared=shared)
    assert_bits(choice.experts(x, chosen, weights, limit=cases.LIMIT, shared=shared), by_triton)
    by_cuda = hopper.experts(x, chosen, folded, limit=cases.LIMIT, shared=shared)
    assert_bits(choice.experts(x, chosen, folded, limit=cases.LIMIT, shared=shared), by_cuda)
