"""The few checks every op makes of its arguments, and the one error they raise."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from dsv4.errors import Violation

T = TypeVar("T")


def expect(holds: bool, message: str) -> None:  # noqa: FBT001 - the condition is the argument
    """Raises Violation unless `holds`: an op was called with arguments outside its contract."""
    if not holds:
        raise Violation(message)


def present(value: T | None, name: str) -> T:
    """The value of an optional argument or pool that this op cannot do without. Raises Violation."""
    if value is None:
        raise Violation(f"there is no {name}, which this op needs")
    return value


def expect_rows(x: Tensor, name: str, width: int, dtype: torch.dtype = torch.float32) -> None:
    """Raises Violation unless x is [..., width] of `dtype`."""
    if x.dtype is not dtype or x.shape[-1] != width:
        raise Violation(f"{name} is {x.dtype} {tuple(x.shape)}; this op takes {dtype} [..., {width}]")


def expect_slots(slots: Tensor, num_slots: int) -> None:
    """Slots lie in 0..num_slots; the check reads the device, so it is for tests and for the CPU."""
    if slots.numel() and (int(slots.min()) < 0 or int(slots.max()) >= num_slots):
        raise Violation(f"slots {int(slots.min())}..{int(slots.max())} are outside a pool of {num_slots} slots")
