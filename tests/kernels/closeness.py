"""How close a kernel must come to its reference: one named tolerance per family, and bits where nothing is summed."""

from __future__ import annotations

import torch
from torch import Tensor

# Largest relative error ||out - reference|| / ||reference||, and largest difference over the largest value.
TOLERANCES = {
    "mhc coefficients": (2e-6, 1e-5),  # float32 sums of 4 C products in another order
    "mhc post": (3e-3, 8e-3),  # bf16 rounding of the float32 reference
    "mhc input": (3e-3, 8e-3),
    "compressed rows": (2e-3, 0.14),  # a neighbour in bf16 may be a neighbour in E4M3 or E2M1
    "compress state": (1e-6, 1e-5),
}


def assert_close(out: Tensor, reference: Tensor, family: str) -> None:
    relative, largest = TOLERANCES[family]
    out, reference = out.double().cpu(), reference.double().cpu()
    assert out.shape == reference.shape
    if not out.numel():
        return
    difference = out - reference
    error = float(difference.norm() / reference.norm().clamp_min(1e-30))
    peak = float(difference.abs().max() / reference.abs().max().clamp_min(1e-30))
    assert error <= relative, f"{family}: relative error {error:.3g} > {relative}"
    assert peak <= largest, f"{family}: largest difference {peak:.3g} of the largest value > {largest}"


def assert_bits(out: Tensor, reference: Tensor) -> None:
    assert out.shape == reference.shape
    assert out.dtype is reference.dtype
    a, b = (x.cpu().contiguous().view(torch.uint8) for x in (out, reference))
    assert int((a != b).sum()) == 0, f"{int((a != b).sum())} of {a.numel()} bytes differ"
