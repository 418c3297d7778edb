"""Launches of kernels from cubins on torch's current stream, through the driver."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch

from dsv4.errors import Violation

_MAX_DYNAMIC_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_INVALID_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT
_EARLY = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_BYTES, _PLAIN, _SWIZZLE, _PROMOTION, _ZEROS = 0, 0, 3, 3, 0  # CU_TENSOR_MAP_: UINT8, 128B, L2_256B, and defaults


class TensorMap(ctypes.Structure):
    """CUtensorMap, and TensorMap of machine.cuh: a matrix in global memory and the boxes that are copied of it."""

    _fields_ = (("opaque", ctypes.c_uint64 * 16),)


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute."""

    _fields_ = (("id", ctypes.c_uint32), ("padding", ctypes.c_uint32), ("value", ctypes.c_uint32 * 16))


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("cut", ctypes.c_uint32 * 7),  # blocks, threads and bytes of shared memory
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", ctypes.c_uint32),
    )


def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise Violation(f"there is no CUDA driver: {error}") from error


@dataclass(frozen=True, slots=True)
class Kernel:
    """One entry of a loaded cubin, for one device.

    shared_bytes  dynamic shared memory of every launch
    """

    driver: ctypes.CDLL
    context: ctypes.c_void_p
    function: ctypes.c_void_p
    name: str
    threads: int
    shared_bytes: int

    def launch(self, blocks: int, arguments: ctypes.Structure, *, early: bool = False) -> None:
        """Runs so many blocks on the current stream; `arguments` is the kernel's only parameter.

        early  the launch may start before the one before it has ended; the kernel waits where it has to
        """
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        attributes = (_Attribute(_EARLY, 0, (1,)),) if early else ()
        config = _Config(
            (blocks, 1, 1, self.threads, 1, 1, self.shared_bytes),
            torch.cuda.current_stream().cuda_stream,
            (_Attribute * len(attributes))(*attributes),
            len(attributes),
        )
        status = self.driver.cuLaunchKernelEx(ctypes.byref(config), self.function, parameters, None)
        if status == _INVALID_CONTEXT:  # a thread's first word to the driver
            check(self.driver, self.driver.cuCtxSetCurrent(self.context), "context")
            status = self.driver.cuLaunchKernelEx(ctypes.byref(config), self.function, parameters, None)
        check(self.driver, status, f"launch of {self.name}")


class Matrix(NamedTuple):
    """Contiguous rows of bytes in global memory, to be copied in boxes of `box_rows` x 128 bytes."""

    address: int
    rows: int
    row_bytes: int
    box_rows: int


@functools.lru_cache(maxsize=4096)
def tensor_map(matrix: Matrix) -> TensorMap:
    """The driver's encoding of a matrix for `copy_box`; the same addresses come again and again."""
    driver = _driver()
    room = ctypes.create_string_buffer(ctypes.sizeof(TensorMap) + 64)
    aligned = TensorMap.from_buffer(room, -ctypes.addressof(room) % 64)  # as the driver wants it
    size = (ctypes.c_uint64 * 2)(matrix.row_bytes, matrix.rows)
    box, steps = (ctypes.c_uint32 * 2)(128, matrix.box_rows), (ctypes.c_uint32 * 2)(1, 1)
    stride = (ctypes.c_uint64 * 1)(matrix.row_bytes)
    status = driver.cuTensorMapEncodeTiled(
        ctypes.byref(aligned), _BYTES, 2, ctypes.c_void_p(matrix.address), size, stride, box, steps,
        _PLAIN, _SWIZZLE, _PROMOTION, _ZEROS,
    )  # fmt: skip
    check(driver, status, f"tensor map of {matrix}")
    return TensorMap.from_buffer_copy(aligned)


def check(driver: ctypes.CDLL, status: int, what: str) -> None:
    """Raises Violation with the driver's name of an error."""
    if status:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(text))
        raise Violation(f"{what}: {text.value.decode() if text.value else status}")


class Module:
    """A cubin on the current device."""

    def __init__(self, code: bytes) -> None:
        torch.zeros(1, device="cuda")  # torch makes the context that the module joins
        self._driver = _driver()
        self._context, self._module = ctypes.c_void_p(), ctypes.c_void_p()
        check(self._driver, self._driver.cuCtxGetCurrent(ctypes.byref(self._context)), "context")
        check(self._driver, self._driver.cuModuleLoadData(ctypes.byref(self._module), code), "load of a cubin")

    def kernel(self, name: str, threads: int, shared_bytes: int) -> Kernel:
        """An entry, ready to be launched with so much shared memory."""
        function = ctypes.c_void_p()
        status = self._driver.cuModuleGetFunction(ctypes.byref(function), self._module, name.encode())
        check(self._driver, status, f"entry {name}")
        status = self._driver.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED_BYTES, shared_bytes)
        check(self._driver, status, f"{shared_bytes} bytes of shared memory for {name}")
        return Kernel(self._driver, self._context, function, name, threads, shared_bytes)
