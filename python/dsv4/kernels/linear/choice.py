"""Which implementation serves FP8 products of more than FEW rows: CUDA C++ on Hopper, else Triton.

DSV4_FP8_LINEAR names one.

Both give a row the same bits, so that either may serve any number of rows; fewer are Triton's `few_rows` in any case.
"""

from __future__ import annotations

import functools

import torch

from dsv4.kernels.cuda.choice import Choice, decided
from dsv4.kernels.linear import hopper

VARIABLE = "DSV4_FP8_LINEAR"
FEW = 16


@functools.cache
def choice(device: torch.device) -> Choice:
    """Decided at the first call for a device. Raises Violation if what is asked for cannot serve."""
    return decided("FP8 products", VARIABLE, device, hopper.kernels_on)
