# mypy: disable-error-code="import-untyped, untyped-decorator"
"""Everything between the q and kv projections and attention, in one launch; and the rotation back of its output.

    q   [T, H, 512] --- per-head RMS (no weight) --- RoPE ---------------------------> q, in place
    kv  [T, 512] ------ RMSNorm --- RoPE --- FP8 per 64 of the first 448 channels ---> paged pool, 584 bytes a row

Everything is rounded to bf16 where the official code holds bf16: after each norm and each rotation, and inside the head
norm (squares, mean, its root). Arithmetic is float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4.kernels.cache.pack_rows import KV_DIM, ROPE_DIM, norm_rotate_rows, rotate_rows, store_kv_rows
from dsv4.kernels.contract import expect
from dsv4.kernels.convert import round_bf16, to_bf16

ROWS = 2  # of one program: heads of a token for q, tokens for kv; one warp, so that no sum crosses a barrier
PAIRS = ROPE_DIM // 2


@triton.jit
def _norm_rope_store(
    q_ptr: tl.tensor,
    kv_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    bytes_ptr: tl.tensor,
    halves_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    T: int,
    kv_row: int,
    eps: float,
    H: tl.constexpr,
    R: tl.constexpr,
    PAGE: tl.constexpr,
    STRIDE: tl.constexpr,
    ANGLES: tl.constexpr,
) -> None:
    """Grid (cdiv(T, R) + T H / R,): blocks of R kv rows first, then blocks of R heads of one token."""
    channels = tl.arange(0, 512)
    program = tl.program_id(0)
    kv_programs = tl.cdiv(T, R)
    if program < kv_programs:
        tokens = (program * R + tl.arange(0, R)).to(tl.int64)
        inside = tokens < T
        slots = tl.load(slots_ptr + tokens, mask=inside, other=-1).to(tl.int64)
        at = tokens[:, None] * kv_row + channels[None, :]
        x = tl.load(kv_ptr + at, mask=inside[:, None], other=0.0).to(tl.float32)
        x = norm_rotate_rows(x, weight_ptr, cos_ptr, sin_ptr, tokens, inside, eps, R, 512, ANGLES)
        store_kv_rows(x, bytes_ptr, halves_ptr, slots, inside & (slots >= 0), R, PAGE, STRIDE)
    else:
        block = (program - kv_programs).to(tl.int64)
        token = block // (H // R)
        rows = block * R + tl.arange(0, R)
        at = rows[:, None] * 512 + channels[None, :]
        x = tl.load(q_ptr + at).to(tl.float32)
        mean = round_bf16(tl.sum(round_bf16(x * x), axis=1) / 512)
        inverse = round_bf16(tl.rsqrt(round_bf16(mean + eps)))
        x = round_bf16(x * inverse[:, None])
        tokens = token + tl.zeros([R], tl.int64)
        x = rotate_rows(x, cos_ptr, sin_ptr, tokens, tokens >= 0, R, 512, ANGLES)
        tl.store(q_ptr + at, to_bf16(x))


@triton.jit
def _rotate_back(
    o_ptr: tl.tensor, cos_ptr: tl.tensor, sin_ptr: tl.tensor, H: tl.constexpr, D: tl.constexpr, ANGLES: tl.constexpr
) -> None:
    """Grid (T,): the trailing channels of all heads of one token."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, H)
    channel = tl.arange(0, 2 * ANGLES)
    at = (token * H + head[:, None]) * D + (D - 2 * ANGLES) + channel[None, :]
    angle = tl.arange(0, ANGLES)
    cos = tl.load(cos_ptr + token * ANGLES + angle)[None, :]
    sin = tl.load(sin_ptr + token * ANGLES + angle)[None, :]
    a, b = tl.split(tl.reshape(tl.load(o_ptr + at).to(tl.float32), [H, ANGLES, 2]))
    turned = tl.reshape(tl.join(a * cos + b * sin, b * cos - a * sin), [H, 2 * ANGLES])
    tl.store(o_ptr + at, to_bf16(turned))


def norm_rope_store(
    q: Tensor, kv: Tensor, weight: Tensor, angles: tuple[Tensor, Tensor], pool: Tensor, slots: Tensor,
    *, page_rows: int, eps: float = 1e-6,
) -> None:  # fmt: skip
    """Normalises and rotates q in place; normalises, rotates, quantises and stores kv.

    q       [T, H, 512] bf16, contiguous, H even; overwritten
    kv      [T, 512] bf16, rows of any stride: it lies beside q_a in one product's result
    weight  [512] bf16 or float32
    angles  cos and sin [T, 32] float32
    pool    [blocks, page bytes] uint8, contiguous, pages of `page_rows` rows in the 584-byte format
    slots   [T] int32 or int64, distinct; a negative slot stores nothing
    cost    (2 H + 1) x 1024 + 584 + 256 bytes per token, one launch
    """
    T, H, D = q.shape
    expect(D == KV_DIM and kv.shape == (T, KV_DIM) and H % ROWS == 0, f"q {tuple(q.shape)}, kv {tuple(kv.shape)}")
    expect(
        q.dtype is kv.dtype is torch.bfloat16 and q.is_contiguous() and kv.stride(1) == 1,
        "q: bf16, contiguous; kv: bf16, contiguous rows",
    )
    expect(slots.shape == (T,) and weight.shape == (KV_DIM,), f"slots {tuple(slots.shape)}")
    _check_angles(angles, T)
    check_pool(pool, page_rows)
    if T:
        cos, sin = angles
        _norm_rope_store[(triton.cdiv(T, ROWS) + T * H // ROWS,)](
            q, kv, weight, cos, sin, pool, pool.view(torch.bfloat16), slots, T, kv.stride(0), eps,
            H=H, R=ROWS, PAGE=page_rows, STRIDE=pool.stride(0), ANGLES=PAIRS, num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip


def rotate_back(o: Tensor, angles: tuple[Tensor, Tensor]) -> None:
    """The inverse rotation of the last 64 channels of every head, in place.

    o       [T, H, D] bf16, contiguous, H a power of two; overwritten
    angles  cos and sin [T, 32] float32, of the query's position
    cost    256 H + 256 bytes per token, one launch
    """
    T, H, D = o.shape
    expect(
        o.dtype is torch.bfloat16 and o.is_contiguous() and D >= ROPE_DIM and H & (H - 1) == 0, f"o {tuple(o.shape)}"
    )
    _check_angles(angles, T)
    if T:
        _rotate_back[(T,)](o, *angles, H=H, D=D, ANGLES=PAIRS, num_warps=4, enable_fp_fusion=False)


def check_pool(pool: Tensor, page_rows: int) -> None:
    """Raises Violation unless pool holds pages of that many 584-byte rows."""
    fits = pool.dtype is torch.uint8 and pool.dim() == 2 and pool.is_contiguous() and pool.shape[1] % 2 == 0
    expect(fits and pool.shape[1] >= page_rows * 584, f"a pool {tuple(pool.shape)} for pages of {page_rows} rows")


def _check_angles(angles: tuple[Tensor, Tensor], T: int) -> None:
    for x in angles:
        expect(x.shape == (T, PAIRS) and x.dtype is torch.float32 and x.is_contiguous(), f"angles {tuple(x.shape)}")
