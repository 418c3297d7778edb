"""Launches of kernels from cubins on torch's current stream, through the driver."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

from dsv4.errors import Violation

_MAX_DYNAMIC_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_INVALID_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT


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

    def launch(self, blocks: int, arguments: ctypes.Structure) -> None:
        """Runs so many blocks on the current stream; `arguments` is the kernel's only parameter."""
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        cut = (blocks, 1, 1, self.threads, 1, 1, self.shared_bytes)
        status = self.driver.cuLaunchKernel(self.function, *cut, stream, parameters, None)
        if status == _INVALID_CONTEXT:  # a thread's first word to the driver
            check(self.driver, self.driver.cuCtxSetCurrent(self.context), "context")
            status = self.driver.cuLaunchKernel(self.function, *cut, stream, parameters, None)
        check(self.driver, status, f"launch of {self.name}")


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
