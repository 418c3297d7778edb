"""Which implementation serves sparse attention: CUDA C++ on Hopper, else Triton, or what DSV4_SPARSE_DECODE names.

One of them serves all batches, since their bits differ. CUDA's is the faster one but for one to some eight tokens of C4
layers and a single token of window layers (docs/notes/attention.md).
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
