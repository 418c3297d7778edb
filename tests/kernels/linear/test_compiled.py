from __future__ import annotations

from typing import Any

import pytest
from tests.kernels import compiling

# Bytes a thread. Measured to be the fastest on an H200 all the same; nobody has measured them on Blackwell.
SPILLED = {"q_b 64": 1_300, "wo_a 8192": 300}


@pytest.fixture(scope="module", params=compiling.TARGETS)
def rows(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What the compiler made of the products and the sampler for one target; no GPU is involved."""
    pytest.importorskip("triton", reason="this torch comes without triton")
    modules = ("linear.compiled", "sample.compiled")
    return [row for module in modules for row in compiling.rows(module, request.param)]


def test_every_kernel_is_machine_code_with_the_matrix_unit_that_was_meant(rows: list[dict[str, Any]]) -> None:
    assert len(rows) == 4 * 3 + 2 + 4
    for row in rows:
        assert row["stack"] <= SPILLED.get(row["name"], 0), row
        assert row["local"] == 0, row
        if not row.get("matrix"):
            assert row["name"] in ("norm", "swiglu", "scan", "mass", "settle", "logprobs"), row
            continue
        assert row["shared"] <= 227 * 1024, row
        wide = "e4m3" if row["name"].startswith("q_") else "bf16"
        if row["arch"] == 90:
            assert all(word.startswith("wgmma") and wide in word for word in row["matrix"]), row
        if row["name"].endswith("8192"):
            assert row["cp.async.bulk.tensor"], "tiles come by the copy engine"


def test_results_that_are_quantised_leave_as_e4m3(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["name"].startswith("wo_a") or row["name"] in ("norm", "swiglu"):
            assert row["cvt.rn.satfinite.e4m3x2"], row
