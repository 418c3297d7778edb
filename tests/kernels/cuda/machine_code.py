"""What NVRTC makes of a source for Hopper, and what the tools that come with Triton say of it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from dsv4.errors import Violation
from dsv4.kernels.cuda.compile import Nvrtc


def made_of(source: Path) -> tuple[bytes, str]:
    """A source's cubin and the compiler's log; the test is skipped where there is no NVRTC."""
    try:
        return Nvrtc().cubin(source, "sm_90a")
    except Violation as error:
        if "there is no NVRTC" in str(error):
            pytest.skip(str(error))
        raise


def said(tool: str, flag: str, cubin: bytes, folder: Path) -> str:
    """What nvdisasm or cuobjdump says of a cubin."""
    triton = pytest.importorskip("triton", reason=f"{tool} comes with triton")
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    return subprocess.run([path, flag, file], capture_output=True, text=True, check=True).stdout


def code_of(cubin: bytes, folder: Path) -> dict[str, str]:
    """Machine code by entry, as nvdisasm writes it."""
    parts = re.split(r"//-+ \.text\.(\w+)\s+-+", said("nvdisasm", "-c", cubin, folder))
    return dict(zip(parts[1::2], parts[2::2], strict=True))
