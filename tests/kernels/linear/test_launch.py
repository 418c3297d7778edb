"""What the launch of an FP8 product says to the driver, as a stand-in for it heard."""

from __future__ import annotations

import contextlib
import ctypes

import pytest
import torch
from tests.kernels.cuda.stand_in import early

from dsv4.kernels.cuda.device import Module
from dsv4.kernels.linear import hopper


@pytest.fixture
def _kernels(driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    del driver
    module = Module(b"cubin")
    entries = {s: module.kernel(f"fp8_{s.kernel}", 384, cost.shared_bytes) for s, cost in hopper.SHAPES.items()}
    monkeypatch.setattr(hopper, "kernels_on", lambda _: hopper.Kernels(entries, 132))
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize(
    ("T", "N", "splits", "shape", "blocks"),
    [(64, 4096, 4, (64, 64), 64), (8192, 4096, 4, (128, 128), 132), (64, 32768, 1, (64, 128), 132)],
)
def test_a_launch_has_its_cut_and_its_matrices(
    driver: ctypes.CDLL, T: int, N: int, splits: int, shape: tuple[int, int], blocks: int
) -> None:
    x, w = torch.empty(T, 4096, dtype=torch.uint8), torch.empty(N, 4096, dtype=torch.uint8)
    scales = torch.empty(8, T, dtype=torch.int32), torch.empty(N // 128, 8, dtype=torch.int32)
    out = torch.empty(T, N, dtype=torch.bfloat16)
    given = hopper.Arguments()
    driver.keep(ctypes.byref(given), ctypes.sizeof(given))
    for _ in range(2):  # the second time with the encodings of the first; the first word to a driver is heard twice
        hopper.launch(x, scales[0], w, scales[1], out, splits)
        cut, pointers = (ctypes.c_uint * 7)(), (ctypes.c_void_p * 4)()
        driver.told(cut, pointers)
        assert list(cut) == [blocks, 1, 1, 384, 1, 1, hopper.SHAPES[hopper.Shape(*shape)].shared_bytes]
        assert early(driver)
        assert list(given.x.opaque)[:3] == [x.data_ptr(), T, 4096]
        assert list(given.w.opaque)[:3] == [w.data_ptr(), N, 4096]
        assert (given.x.opaque[15], given.w.opaque[15]) == shape
        assert (given.x_sf, given.w_sf, given.out) == (scales[0].data_ptr(), scales[1].data_ptr(), out.data_ptr())
        numbers = (given.num_rows, given.num_columns, given.segments, given.steps, given.words)
        assert numbers == (T, N, splits, 32 // splits, 8)
        assert given.timeline is None
