"""What a launch says to the driver, as a stand-in for it heard."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dsv4.errors import Violation
from dsv4.kernels.cuda import device


class Argument(ctypes.Structure):
    _fields_ = (("first", ctypes.c_void_p), ("second", ctypes.c_int32))


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc, which builds the stand-in")
    library = tmp_path / "driver.so"
    source = Path(__file__).with_name("driver.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    loaded = ctypes.CDLL(str(library))
    monkeypatch.setattr(device, "_driver", lambda: loaded)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0x99000000AB))
    return loaded


def test_a_launch_has_its_cut_its_stream_and_its_arguments(driver: ctypes.CDLL) -> None:
    kernel = device.Module(b"cubin and more").kernel("sparse", 384, 229_440)
    kernel.launch(132, Argument(0x5500000001, 7))  # the first attempt hears that this thread has no context
    cut, pointers = (ctypes.c_uint * 7)(), (ctypes.c_void_p * 4)()
    driver.told(cut, pointers)
    assert list(cut) == [132, 1, 1, 384, 1, 1, 229_440]
    assert list(pointers) == [0x7700000002, 0x99000000AB, 0x5500000001, None]


def test_what_the_driver_refuses_is_told(driver: ctypes.CDLL) -> None:
    with pytest.raises(Violation, match="load of a cubin: no binary"):
        device.Module(b"something else")
    with pytest.raises(Violation, match="300000 bytes of shared memory for sparse"):
        device.Module(b"cubin").kernel("sparse", 384, 300_000)
