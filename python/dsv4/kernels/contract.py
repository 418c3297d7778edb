"""The few checks every op makes of its arguments, and the one error they raise."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4.errors import Violation


def expect(holds: bool, message: str) -> None:  # noqa: FBT001 - the condition is the argument
    """Raises Violation unless `holds`: an op was called with arguments outside its contract."""
    if not holds:
        raise Violation(message)


def expect_rows(x: Tensor, name: str, width: int, dtype: torch.dtype = torch.float32) -> None:
    """x is [..., width] of `dtype`."""
    if x.dtype is not dtype or x.shape[-1] != width:
        raise Violation(f"{name} is {x.dtype} {tuple(x.shape)}; this op takes {dtype} [..., {width}]")


def expect_slots(slots: Tensor, num_slots: int) -> None:
    """Slots lie in 0..num_slots; the check reads the device, so it is for tests and for the CPU."""
    if slots.numel() and (int(slots.min()) < 0 or int(slots.max()) >= num_slots):
        raise Violation(f"slots {int(slots.min())}..{int(slots.max())} are outside a pool of {num_slots} slots")
