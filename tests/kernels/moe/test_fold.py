"""Scales folded into E4M3 codes: exact where they fold, refused where they do not."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.moe import cases
from torch import Tensor

from dsv4.errors import Violation

pytest.importorskip("triton")
from tests.kernels.moe.emulated import pack

from dsv4.kernels.moe import fold as fold_module
from dsv4.kernels.moe.fold import SPREAD, Folded, fold, rows_in_order

VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def unfolded(matrix: Folded) -> Tensor:
    """float32 [E, N, K] in the order of the checkpoint's rows, read from the tiles as the kernel's threads do."""
    E, N, K = matrix.shape
    words = matrix.tiles[..., :8192].contiguous().view(torch.int32).long()
    codes = words.view(E, N // 128, K // 128, 2, 2, 4, 8, 4, 2, 2)
    # E tile step | group, half of the products, warp, lane / 4, lane % 4, product, row of the thread
    shifts = matrix.tiles[..., 8192:].reshape(E, N // 128, K // 128, 2, 4, 8, 2, 2, 2).long()
    # E tile step | group, warp, lane / 4, row of the thread, half of the products, product
    out = torch.empty(E, N // 64, 64, K)
    at = out.view(E, N // 128, 2, 4, 8, 2, K // 128, 2, 2, 2, 4, 4)
    # E tile group warp lane/4 row step half-of-products product | half lane%4 byte
    for half in range(2):
        for j in range(4):
            magnitude = VALUES[codes >> (16 * half + 4 * j) & 7]
            sign = 1 - 2 * (codes >> (8 * j + 3 + 4 * half) & 1)
            exponent = shifts.permute(0, 1, 2, 3, 7, 4, 5, 8, 6)[:, :, :, :, :, :, :, None] // 8 - 5
            value = (magnitude * sign * exponent.float().exp2()).to(torch.float8_e4m3fn).float()
            at[..., half, :, j] = value.permute(0, 1, 3, 5, 6, 9, 2, 4, 8, 7)
    flat = out.view(E, N, K) * matrix.scale[:, :, None]
    back = torch.empty_like(flat).view(E, N // 64, 64, K)
    back[:, :, rows_in_order(gated=matrix.gated)] = flat.view(E, N // 64, 64, K)
    return back.view(E, N, K)


def checkpoint_with(scales: Tensor) -> cases.Checkpoint:
    """Experts whose w2 has these scales, int [128 / 32], and the first of them in the other blocks."""
    at = cases.make_checkpoint(torch.device("cpu"), hidden=512, width=256)
    at.w2_scale[:] = scales[0]
    at.w2_scale[..., : len(scales)] = scales.to(torch.uint8)
    return at


@pytest.mark.parametrize("at_once", [1, 2 * 512 * 256, fold_module.AT_ONCE])
def test_folding_is_exact(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many experts it takes at once."""
    monkeypatch.setattr(fold_module, "AT_ONCE", at_once)
    at = cases.make_checkpoint(torch.device("cpu"), hidden=512, width=256)
    at.w1_scale[:] = torch.randint(100, 101 + SPREAD, at.w1_scale.shape)
    packed = pack(at)
    got = unfolded(fold(packed.w13, gated=True))
    for e in range(cases.E):
        bands = torch.stack((at.dense(e, "w1").view(-1, 32, 512), at.dense(e, "w3").view(-1, 32, 512)), 1)
        assert torch.equal(got[e], bands.reshape(-1, 512))
    down = unfolded(fold(packed.w2, gated=False))
    assert torch.equal(down, torch.stack([at.dense(e, "w2") for e in range(cases.E)]))


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ([120, 120 - SPREAD - 1, 120, 120], "2\\^12 apart"),
        ([120, 255, 120, 120], "NaN"),
        ([6, 6, 5, 0], "subnormal"),
    ],
)
def test_rows_that_do_not_fold_are_refused(scales: list[int], message: str) -> None:
    packed = pack(checkpoint_with(torch.tensor(scales)))
    with pytest.raises(Violation, match=message):
        fold(packed.w2, gated=False)


def test_a_block_of_zeros_has_no_say() -> None:
    """Neither small nor large; of minus zero, too. A row of zeros folds."""
    at = checkpoint_with(torch.tensor([120, 0, 254, 120 - SPREAD]))
    at.w2[:, :, 16:48] &= 0x88
    at.w2[0, 3] = 0
    got = unfolded(fold(pack(at).w2, gated=False))
    assert torch.equal(got, torch.stack([at.dense(e, "w2") for e in range(cases.E)]))


def test_rows_come_in_pairs_of_tiles() -> None:
    at = cases.make_checkpoint(torch.device("cpu"), hidden=256)
    with pytest.raises(Violation, match="256 x 128"):
        fold(pack(at).w2, gated=False)
