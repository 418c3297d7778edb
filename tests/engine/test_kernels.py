"""Who serves each op is told, and enters the fingerprint."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv4.engine import kernels
from dsv4.kernels.cuda.choice import CUDA, TRITON, Choice

FP8_ROWS = "fp8_64x64 + fp8_64x128 + fp8_128x128"
TRITON_PRODUCTS = "few_rows (kernels/linear/few_rows.py), many_rows (kernels/linear/many_rows.py)"


ATTENTION = "kernels/attention/sparse_decode"


@pytest.mark.parametrize(
    ("name", "word", "attention", "products"),
    [
        (
            TRITON,
            "triton",
            "_sparse_decode (kernels/attention/sparse_decode.py)",
            TRITON_PRODUCTS,
        ),
        (
            CUDA,
            "triton+cuda+cuda-scores+cuda-experts",
            f"sparse_decode_pair ({ATTENTION}_pair.cu), sparse_decode ({ATTENTION}.cu)",
            f"{FP8_ROWS} (kernels/linear/fp8_rows.cu), {TRITON_PRODUCTS}",
        ),
    ],
)
def test_what_is_chosen_is_told_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, name: str, word: str, attention: str, products: str
) -> None:
    monkeypatch.setattr(kernels, "_choice", lambda *_: Choice(name, "this is why"))
    report = dict(kernels.told("cuda"))
    assert report["sparse attention"] == f"{attention}: this is why"
    assert report["FP8 and bf16 products"] == f"{products}: this is why"
    assert kernels.kernel_set("cuda") == word


def test_products_in_cuda_leave_the_fingerprint_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their bits are Triton's."""
    for op, word in ((kernels.PRODUCTS, "triton"), (kernels.SPARSE_ATTENTION, "triton+cuda")):
        by = {op: CUDA}
        monkeypatch.setattr(kernels, "_choice", lambda op, _, by=by: Choice(by.get(op, TRITON), "why"))
        assert kernels.kernel_set("cuda") == word


def test_each_op_is_asked_for_by_its_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsv4.kernels.linear import choice as linear  # with Triton, which tests/kernels/conftest.py prepares

    for variable in ("DSV4_SPARSE_DECODE", "DSV4_FP8_LINEAR", "DSV4_INDEX_SCORES", "DSV4_EXPERTS"):
        monkeypatch.delenv(variable, raising=False)
    linear.choice.cache_clear()
    monkeypatch.setenv("DSV4_FP8_LINEAR", TRITON)
    assert kernels._choice(kernels.PRODUCTS, "cpu").why == "DSV4_FP8_LINEAR asks for it"
    assert kernels._choice(kernels.SPARSE_ATTENTION, "cpu").why == "the default"
    assert kernels._choice(kernels.EXPERTS, "cpu").why == "the default"
    linear.choice.cache_clear()


def test_the_cuda_files_have_the_kernels_that_are_told() -> None:
    for op in kernels.IN_CUDA:
        for file, names in op.files.items():
            if file.endswith(".cu"):
                source = (Path(kernels.__file__).parents[1] / "kernels" / file).read_text()
                assert all(f" {name}(" in source for name in names)


def test_a_cpu_has_the_reference_alone() -> None:
    assert kernels.kernel_set("cpu") == kernels.REFERENCE
    ((op, by),) = kernels.told("cpu")
    assert op == "every op"
    assert "reference" in by
