"""Who serves each op is told, and enters the fingerprint."""

from __future__ import annotations

import pytest

from dsv4.engine import kernels
from dsv4.kernels.attention.choice import CUDA, TRITON, Choice


@pytest.mark.parametrize(("name", "word"), [(TRITON, "triton"), (CUDA, "triton+cuda")])
def test_sparse_attention_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch, name: str, word: str) -> None:
    monkeypatch.setattr(kernels, "_attention", lambda _: Choice(name, "this is why"))
    assert f"attention.sparse_decode in {name} (this is why)" in kernels.told("cuda")
    assert kernels.kernel_set("cuda") == word


def test_a_cpu_has_the_reference_alone() -> None:
    assert kernels.kernel_set("cpu") == kernels.REFERENCE
    assert "reference" in kernels.told("cpu")
