"""A driver in place of the CUDA driver, which notes what it is asked for (driver.c)."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dsv4.kernels.cuda import device


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """Builds it and puts it in place."""
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc, which builds the stand-in")
    library = folder / "driver.so"
    source = Path(__file__).with_name("driver.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    loaded = ctypes.CDLL(str(library))
    monkeypatch.setattr(device, "_driver", lambda: loaded)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0x99000000AB))
    return loaded


def early(driver: ctypes.CDLL) -> bool:
    """Whether the launch may start early."""
    return bool(driver.asked_early())
