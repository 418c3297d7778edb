"""Named tolerances of the experts: largest relative error, and largest difference over the largest value."""

from __future__ import annotations

from torch import Tensor

TOLERANCES = {
    "w4a16": (3e-3, 8e-3),  # bf16 rounding of two products, of the activation and of the result
    # A value on the edge between two codes of its format may fall to either side after a bf16 rounding of its own.
    "w4a8": (6e-3, 2e-2),
    # The matrix units keep fewer bits than float32 while they add 128 channels, so more values are on such an edge.
    "w4a8 of 128 channels": (1e-2, 3e-2),
    "w4a4": (2e-2, 5e-2),
    "routing weights": (1e-6, 2e-6),  # float32 sums of C products in another order
    "shared": (6e-3, 2e-2),
}


def assert_close(out: Tensor, reference: Tensor, family: str) -> None:
    relative, largest = TOLERANCES[family]
    out, reference = out.double().cpu(), reference.double().cpu()
    assert out.shape == reference.shape
    difference = out - reference
    error = float(difference.norm() / reference.norm().clamp_min(1e-30))
    peak = float(difference.abs().max() / reference.abs().max().clamp_min(1e-30))
    assert error <= relative, f"{family}: relative error {error:.3g} > {relative}"
    assert peak <= largest, f"{family}: largest difference {peak:.3g} of the largest value > {largest}"
