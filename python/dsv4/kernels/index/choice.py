"""Which implementation serves index scores of FP4 keys: CUDA C++ on Hopper, else Triton. DSV4_INDEX_SCORES names one.

One of them serves all batches: they add heads in another order, so that a key on the edge may be chosen or not.
"""

from __future__ import annotations

import functools

import torch

from dsv4.kernels.cuda.choice import Choice, decided
from dsv4.kernels.index import hopper

VARIABLE = "DSV4_INDEX_SCORES"


@functools.cache
def choice(device: torch.device) -> Choice:
    """Decided at the first call for a device. Raises Violation if what is asked for cannot serve."""
    return decided("index scores", VARIABLE, device, hopper.kernels_on)
