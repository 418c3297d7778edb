"""Kernels run in Triton's interpreter where there is no GPU; importing triton decides that, so it is set before."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import pytest
import torch
from tests.kernels.cuda.stand_in import stand_in

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if DEVICE == "cpu" and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run: a GPU if there is one, otherwise the interpreter."""
    triton = pytest.importorskip("triton", reason="this torch comes without triton")
    interpreted = triton.knobs.runtime.interpret
    assert interpreted or DEVICE == "cuda", "triton was imported before tests/kernels/conftest.py: run these apart"
    return torch.device(DEVICE)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """A driver that notes what it is asked to launch."""
    return stand_in(tmp_path, monkeypatch)


@pytest.fixture
def mutants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for mutants and what is built of them."""
    monkeypatch.setenv("DSV4_KERNEL_CACHE", str(tmp_path))
    return tmp_path
