"""Who serves each op is told, and enters the fingerprint."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv4.engine import kernels
from dsv4.kernels.attention.choice import CUDA, TRITON, Choice


@pytest.mark.parametrize(
    ("name", "word", "kernel"),
    [
        (TRITON, "triton", "_sparse_decode (kernels/attention/sparse_decode.py)"),
        (CUDA, "triton+cuda", "sparse_decode_1 + sparse_decode_2 (kernels/attention/sparse_decode.cu)"),
    ],
)
def test_sparse_attention_is_told_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, name: str, word: str, kernel: str
) -> None:
    monkeypatch.setattr(kernels, "_attention", lambda _: Choice(name, "this is why"))
    report = dict(kernels.told("cuda"))
    assert report["sparse attention"] == f"{kernel}: this is why"
    assert kernels.kernel_set("cuda") == word


def test_the_cuda_file_has_the_kernels_that_are_told() -> None:
    ((file, names),) = kernels.IN_CUDA.files.items()
    source = (Path(kernels.__file__).parents[1] / "kernels" / file).read_text()
    assert all(f" {name}(" in source for name in names)


def test_a_cpu_has_the_reference_alone() -> None:
    assert kernels.kernel_set("cpu") == kernels.REFERENCE
    ((op, by),) = kernels.told("cpu")
    assert op == "every op"
    assert "reference" in by
