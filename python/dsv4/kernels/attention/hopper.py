"""Sparse decode on Hopper: the launch of sparse_decode.cu, and of sparse_decode_pair.cu where a token has two blocks.

What is computed is `sparse_decode`'s to say. Both give a token the same bits.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dsv4.kernels.cuda.compile import cubin
from dsv4.kernels.cuda.device import Kernel, Module

FOLDER = Path(__file__).parent


class Arguments(ctypes.Structure):
    """The source's struct of this name."""

    _fields_ = (
        ("q", ctypes.c_void_p),
        ("sink", ctypes.c_void_p),
        ("window_pool", ctypes.c_void_p),
        ("window_stride", ctypes.c_int64),
        ("window_slots", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("extra_pool", ctypes.c_void_p),
        ("extra_stride", ctypes.c_int64),
        ("extra", ctypes.c_void_p),
        ("extra_row", ctypes.c_int64),
        ("token_rows", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("num_tokens", ctypes.c_int32),
        ("groups", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("most", ctypes.c_int32),
        ("ratio", ctypes.c_int32),
        ("page_shift", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("unused", ctypes.c_int32),
        ("timeline", ctypes.c_void_p),
    )


@dataclass(frozen=True, slots=True)
class Cut:
    """How a launch is cut: never changes a result.

    blocks  all of them, so many per token and 64 heads; what the device has no room for waits in their loops
    """

    blocks_per_token: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A kernel of the sources. The shared memory is what it says itself in a static_assert."""

    name: str
    threads: int
    shared_bytes: int

    @property
    def source(self) -> Path:
        """Where it is written."""
        return FOLDER / f"{self.name}.cu"


ENTRIES = {1: Entry("sparse_decode", 384, 229_424), 2: Entry("sparse_decode_pair", 512, 221_520)}
"""By blocks per token."""


def cut_of(num_tokens: int, num_heads: int, num_sms: int) -> Cut:
    """Two blocks per token and 64 heads while the device has room for both, then one; no more than run at once."""
    work = num_tokens * (num_heads // 64)
    each = 2 if 2 * work <= num_sms else 1
    return Cut(each, each * min(work, num_sms // each))


@dataclass(frozen=True, slots=True)
class Inputs:
    """Checked tensors of one call, as the Triton kernel takes them.

    kind   0: no compressed rows, 1: slots, 2: a block table
    extra  slots [T, most] or block table [B, most / 2], int32
    """

    q: Tensor
    sink: Tensor
    window_pool: Tensor
    window_slots: Tensor
    positions: Tensor
    kind: int
    extra_pool: Tensor
    extra: Tensor
    token_rows: Tensor
    page: int
    most: int
    ratio: int

    def arguments(self, out: Tensor, scale: float) -> Arguments:
        """The kernel's arguments; `scale` of scores, times log2 e."""
        return Arguments(
            self.q.data_ptr(),
            self.sink.data_ptr(),
            self.window_pool.data_ptr(),
            self.window_pool.stride(0),
            self.window_slots.data_ptr(),
            self.positions.data_ptr(),
            self.extra_pool.data_ptr(),
            self.extra_pool.stride(0),
            self.extra.data_ptr(),
            self.extra.stride(0),
            self.token_rows.data_ptr(),
            out.data_ptr(),
            self.q.shape[0],
            self.q.shape[1] // 64,
            self.kind,
            self.most,
            self.ratio,
            self.page.bit_length() - 1,
            scale,
            0,
            None,
        )


@dataclass(frozen=True, slots=True)
class Kernels:
    """The kernels on one device, by blocks per token."""

    loaded: dict[int, Kernel]
    num_sms: int


@functools.cache
def kernels_on(device: torch.device) -> Kernels:
    """Compiles the sources, or takes them from disk, and loads them. Raises Violation where that fails."""
    with torch.cuda.device(device):
        loaded = {
            each: Module(cubin(entry.source)).kernel(entry.name, entry.threads, entry.shared_bytes)
            for each, entry in ENTRIES.items()
        }
        return Kernels(loaded, torch.cuda.get_device_properties(device).multi_processor_count)


def launch(inputs: Inputs, out: Tensor, scale: float, cut: Cut | None = None) -> None:
    """Fills `out`; at least one token. `cut` is for tests: the launch chooses its own."""
    kernels = kernels_on(inputs.q.device)
    T, H, _ = inputs.q.shape
    cut = cut or cut_of(T, H, kernels.num_sms)
    with torch.cuda.device(inputs.q.device):
        kernels.loaded[cut.blocks_per_token].launch(cut.blocks, inputs.arguments(out, scale))
