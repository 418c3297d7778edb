"""What a launch says to the driver, as a stand-in for it heard."""

from __future__ import annotations

import ctypes

import pytest
from tests.kernels.cuda.stand_in import early

from dsv4.errors import Violation
from dsv4.kernels.cuda import device


class Argument(ctypes.Structure):
    _fields_ = (("first", ctypes.c_void_p), ("second", ctypes.c_int32))


def test_a_launch_has_its_cut_its_stream_and_its_arguments(driver: ctypes.CDLL) -> None:
    kernel = device.Module(b"cubin and more").kernel("sparse", 384, 229_440)
    kernel.launch(132, Argument(0x5500000001, 7))  # the first attempt hears that this thread has no context
    cut, pointers = (ctypes.c_uint * 7)(), (ctypes.c_void_p * 4)()
    driver.told(cut, pointers)
    assert list(cut) == [132, 1, 1, 384, 1, 1, 229_440]
    assert list(pointers) == [0x7700000002, 0x99000000AB, 0x5500000001, None]
    assert not early(driver)


def test_a_launch_asks_for_an_early_start(driver: ctypes.CDLL) -> None:
    kernel = device.Module(b"cubin").kernel("sparse", 384, 1024)
    kernel.launch(8, Argument(1, 2), early=True)
    assert early(driver)


@pytest.mark.usefixtures("driver")
def test_a_tensor_map_is_encoded_where_the_driver_wants_it() -> None:
    for i in range(20):  # wherever the room for it happens to lie
        address = 0x7000000000 + 4096 * i
        found: list[int] = list(device.tensor_map(device.Matrix(address, 300, 4096, 64)).opaque)
        assert found[:3] + found[15:] == [address, 300, 4096, 64]


def test_what_the_driver_refuses_is_told(driver: ctypes.CDLL) -> None:
    with pytest.raises(Violation, match="load of a cubin: no binary"):
        device.Module(b"something else")
    with pytest.raises(Violation, match="300000 bytes of shared memory for sparse"):
        device.Module(b"cubin").kernel("sparse", 384, 300_000)
