"""Which implementation serves sparse attention on a device: Triton, or CUDA C++ where DSV4_SPARSE_DECODE=cuda asks.

One kernel serves all batches, since their bits differ: CUDA's was faster from 32 or 64 tokens on and up to 2.5 times
slower at fewer when it was last measured (docs/notes/attention.md), so that Triton is the default.
"""

from __future__ import annotations

import functools

import torch

from dsv4.kernels.attention import hopper
from dsv4.kernels.cuda.choice import Choice, decided

VARIABLE = "DSV4_SPARSE_DECODE"


@functools.cache
def choice(device: torch.device) -> Choice:
    """Decided at the first call for a device. Raises Violation if what is asked for cannot serve."""
    return decided("sparse attention", VARIABLE, device, hopper.kernels_on)
