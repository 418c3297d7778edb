"""Which implementation serves sparse attention on a device: Triton, or CUDA C++ on Hopper where it is asked for.

DSV4_SPARSE_DECODE=cuda asks for it, and fails where it cannot serve. Nothing falls back later: the choice is made once
per device, logged with its reason, and told in the startup report. One kernel serves all batches, since their bits
differ: CUDA's was faster from 32 or 64 tokens on and up to 2.5 times slower at fewer when it was last measured
(docs/notes/attention.md), so that Triton is the default.
"""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import dataclass

import torch

from dsv4.kernels.attention import hopper
from dsv4.kernels.contract import expect

CUDA, TRITON = "cuda", "triton"
VARIABLE = "DSV4_SPARSE_DECODE"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """Who serves, and why."""

    name: str
    why: str


def _check_hopper(device: torch.device) -> None:
    """Compiles the kernels for a device. Raises Violation with the reason where there are none."""
    expect(device.type == "cuda", f"{device.type} runs no CUDA code")
    capability = torch.cuda.get_device_capability(device)
    expect(capability == (9, 0), f"compute capability {capability[0]}.{capability[1]} is not Hopper's 9.0")
    hopper.kernels_on(device)


@functools.cache
def choice(device: torch.device) -> Choice:
    """Decided at the first call for a device. Raises Violation if what is asked for cannot serve."""
    asked = os.environ.get(VARIABLE, "")
    expect(asked in {"", CUDA, TRITON}, f"{VARIABLE}={asked}: neither {CUDA} nor {TRITON}")
    if asked == CUDA:
        _check_hopper(device)
        return _told(device, Choice(CUDA, f"{VARIABLE} asks for it"))
    return _told(device, Choice(TRITON, f"{VARIABLE} asks for it" if asked else "the default"))


def _told(device: torch.device, made: Choice) -> Choice:
    _log.info("sparse attention on %s: %s serves (%s)", device, made.name, made.why)
    return made


def served_on(device: str) -> Choice:
    """The same by a device's name, for who has no torch."""
    found = torch.device(device)
    if found.type == "cuda" and found.index is None:
        found = torch.device("cuda", torch.cuda.current_device())  # as tensors name it
    return choice(found)
