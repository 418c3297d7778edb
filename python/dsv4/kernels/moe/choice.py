"""Which implementation serves W4A8 experts on a device: CUDA C++ on Hopper, else Triton. DSV4_EXPERTS names one.

The bits of the two differ (hopper.py says how), so one of them serves a layer in all steps, whatever their size. A
layer whose scales do not fold (fold.py) stays with Triton; that depends on its weights alone.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from dsv4.errors import Violation
from dsv4.kernels.cuda.choice import CUDA, Choice, decided
from dsv4.kernels.moe import experts as triton
from dsv4.kernels.moe import hopper
from dsv4.kernels.moe.hopper import FoldedExperts
from dsv4.kernels.moe.weights import Experts

VARIABLE = "DSV4_EXPERTS"

_log = logging.getLogger(__name__)


@functools.cache
def choice(device: torch.device) -> Choice:
    """Decided at the first call for a device. Raises Violation if what is asked for cannot serve."""
    return decided("routed experts", VARIABLE, device, hopper.kernels_on)


def prepared(weights: Experts, what: str) -> Experts | FoldedExperts:
    """A layer's `fp8` experts as whoever serves them reads them; `what` is its name in the log."""
    if choice(weights.w13.codes.device).name != CUDA:
        return weights
    try:
        return hopper.folded(weights)
    except Violation as why:
        _log.warning("%s stays with Triton: %s", what, why)
        return weights


def experts(
    x: Tensor, chosen: triton.Chosen, weights: Experts | FoldedExperts, *, limit: float, shared: Tensor | None = None
) -> Tensor:
    """What the routed experts make of x as W4A8, as `experts.experts` says."""
    if isinstance(weights, FoldedExperts):
        return hopper.experts(x, chosen, weights, limit=limit, shared=shared)
    return triton.experts(x, chosen, weights, "w4a8", limit=limit, shared=shared)
