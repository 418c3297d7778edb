"""What a GPU takes is told without one: the check's numbers are the kernels', and it needs no Triton."""

from __future__ import annotations

import subprocess
import sys

from dsv4.kernels.attention import split
from dsv4.kernels.index import queries
from dsv4.model.gpu import dimensions


def test_the_numbers_are_the_kernels() -> None:
    assert (dimensions.HEAD_DIM, dimensions.INDEX_DIM, dimensions.INDEX_HEADS) == (
        split.DIM,
        queries.DIM,
        queries.HEADS,
    )


def test_a_dry_run_for_a_gpu_needs_no_triton() -> None:
    program = "import sys; sys.modules['triton'] = None; import dsv4.runtime.plan"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
