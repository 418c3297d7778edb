"""Which implementation serves an op on a device: CUDA C++ on Hopper, else Triton.

An environment variable asks for one, which serves or fails. Where nothing is asked, CUDA C++ serves if there are a
Hopper GPU and a compiler, and Triton otherwise. Nothing falls back later: an op decides once per device, the choice is
logged with its reason, and told in the startup report.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dsv4.errors import Violation
from dsv4.kernels.contract import expect

CUDA, TRITON = "cuda", "triton"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """Who serves, and why."""

    name: str
    why: str


def decided(op: str, variable: str, device: torch.device, kernels_on: Callable[[torch.device], object]) -> Choice:
    """Asks the environment first; `kernels_on` compiles for a device.

    Raises Violation if what is asked for cannot serve.
    """
    asked = os.environ.get(variable, "")
    expect(asked in {"", CUDA, TRITON}, f"{variable}={asked}: neither {CUDA} nor {TRITON}")
    if asked == CUDA:
        _compile_on_hopper(device, kernels_on)
        made = Choice(CUDA, f"{variable} asks for it")
    elif asked == TRITON:
        made = Choice(TRITON, f"{variable} asks for it")
    else:
        made = _unasked(device, kernels_on)
    _log.info("%s on %s: %s serves (%s)", op, device, made.name, made.why)
    return made


def _unasked(device: torch.device, kernels_on: Callable[[torch.device], object]) -> Choice:
    if device.type != "cuda":
        return Choice(TRITON, "the default")
    try:
        _compile_on_hopper(device, kernels_on)
    except Violation as reason:
        return Choice(TRITON, str(reason))
    return Choice(CUDA, "the default on Hopper")


def _compile_on_hopper(device: torch.device, kernels_on: Callable[[torch.device], object]) -> None:
    expect(device.type == "cuda", f"{device.type} runs no CUDA code")
    capability = torch.cuda.get_device_capability(device)
    expect(capability == (9, 0), f"compute capability {capability[0]}.{capability[1]} is not Hopper's 9.0")
    kernels_on(device)


def named(device: str) -> torch.device:
    """A device by its name, with its index, as tensors name it."""
    found = torch.device(device)
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return found
