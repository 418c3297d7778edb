"""What the launch of an expert's products says to the driver, as a stand-in for it heard."""

from __future__ import annotations

import contextlib
import ctypes

import pytest
import torch
from tests.kernels.cuda.stand_in import early

from dsv4.kernels.cuda.device import Module

pytest.importorskip("triton")
from dsv4.kernels.moe import hopper
from dsv4.kernels.moe.fold import Folded
from dsv4.kernels.moe.permute import Blocks
from dsv4.kernels.moe.place import Placed


@pytest.fixture
def _kernels(driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    del driver
    module = Module(b"cubin")
    up, down = (module.kernel(f"grouped_{name}", hopper.THREADS, hopper.SHARED_BYTES) for name in ("up", "down"))
    monkeypatch.setattr(hopper, "kernels_on", lambda _: hopper.Kernels(up, down, 133))
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize(("num_blocks", "thread_blocks"), [(2, 4), (600, 132)])
def test_a_launch_has_its_matrices(driver: ctypes.CDLL, num_blocks: int, thread_blocks: int) -> None:
    places = num_blocks * 64
    rows = Placed(
        torch.empty(places, 256, dtype=torch.uint8), torch.empty(2, places, dtype=torch.bfloat16), torch.empty(places)
    )
    weight = Folded(torch.empty(7, 4, 2, 8704, dtype=torch.uint8), torch.empty(7, 512), gated=True)
    blocks = Blocks(torch.empty(places, dtype=torch.int32), torch.empty(num_blocks, dtype=torch.int32), 64)
    out = torch.empty(places, 256, dtype=torch.bfloat16)
    given = hopper.Arguments()
    driver.keep(ctypes.byref(given), ctypes.sizeof(given))
    for _ in range(2):  # the second time with the encodings of the first; the first word to a driver is heard twice
        hopper.launch(rows, weight, blocks, out, 7.0)
        cut, pointers = (ctypes.c_uint * 7)(), (ctypes.c_void_p * 4)()
        driver.told(cut, pointers)
        assert list(cut) == [thread_blocks, 1, 1, 640, 1, 1, hopper.SHARED_BYTES]
        assert early(driver)
        assert [*given.x.opaque[:3], given.x.opaque[15]] == [rows.values.data_ptr(), places, 256, 32]
        assert [*given.w.opaque[:3], given.w.opaque[15]] == [weight.tiles.data_ptr(), 7 * 4 * 2 * 68, 128, 68]
        assert [*given.sf.opaque[:3], given.sf.opaque[15]] == [rows.scales.data_ptr(), 2 * places // 64, 128, 1]
        assert rows.weights is not None
        assert [*given.last.opaque[:3], given.last.opaque[15]] == [rows.weights.data_ptr(), places // 32, 128, 2]
        pointers_given = (given.w_sf, given.order, given.expert, given.out)
        assert pointers_given == tuple(x.data_ptr() for x in (weight.scale, blocks.order, blocks.expert, out))
        assert (given.limit, given.num_blocks, given.num_rows, given.steps) == (7.0, num_blocks, 512, 2)
