"""Packed rows and pages: sizes, offsets, round trips."""

from __future__ import annotations

import pytest
import torch

from dsv4.errors import Violation
from dsv4.kernels.cache.reference import Kind, Layout, gather, pack_rows, store, unpack_rows

KV = Layout("fp8_ds_mla", 512, 64, 64)
FP4 = Layout("fp4", 128, 0, 64)
FP8 = Layout("fp8", 128, 0, 64)


def test_row_bytes() -> None:
    rows: dict[Kind, int] = {"fp8_ds_mla": 584, "bf16": 1024, "float32": 2048}
    assert {kind: _row_bytes(kind, 512, 64) for kind in rows} == rows
    index: dict[Kind, int] = {"fp4": 68, "fp8": 132, "float32": 512}
    assert {kind: _row_bytes(kind, 128, 0) for kind in index} == index


def _row_bytes(kind: Kind, dim: int, rope_dim: int) -> int:
    layout = Layout(kind, dim, rope_dim, 64)
    data, scales = pack_rows(torch.randn(3, dim), layout)
    assert data.shape == (3, layout.data_bytes)
    assert (0 if scales is None else scales.shape[1]) == layout.scale_bytes
    return layout.data_bytes + layout.scale_bytes


@pytest.mark.parametrize(("rows", "page"), [(256, 149_760), (64, 37_440), (2, 1_728)])
def test_kv_pages_are_a_multiple_of_576_bytes(rows: int, page: int) -> None:
    assert KV._replace(page_rows=rows).page_bytes == page


def test_index_pages_have_no_padding() -> None:
    assert (FP8.page_bytes, FP4.page_bytes) == (8_448, 4_352)


@pytest.mark.parametrize("slot", [64, 65, 127, 190])
def test_a_kv_row_lies_where_flash_mla_reads_it(slot: int) -> None:
    """448 E4M3, 128 bytes of bf16 at 576 n; seven scale bytes and a zero at 576 N + 8 n."""
    pool = torch.full((3, KV.page_bytes), 0xEE, dtype=torch.uint8)
    row = torch.randn(1, 512)
    store(pool, torch.tensor([slot]), row, KV)
    page, n = pool[slot // 64], slot % 64
    exponents = page[576 * 64 + 8 * n : 576 * 64 + 8 * n + 8]
    assert exponents[7] == 0
    values = page[576 * n : 576 * n + 448].view(torch.float8_e4m3fn).float().view(7, 64)
    nope = (values * 2.0 ** (exponents[:7].float() - 127)[:, None]).flatten()
    assert (nope - row[0, :448]).abs().max() < 0.25
    assert torch.equal(page[576 * n + 448 : 576 * (n + 1)].view(torch.bfloat16), row[0, 448:].to(torch.bfloat16))
    assert torch.equal(gather(pool, torch.tensor([slot]), KV)[0, :448], nope)
    assert int((pool != 0xEE).sum()) <= 584


def test_an_fp4_index_row_lies_where_deep_gemm_reads_it() -> None:
    """64 bytes of pairs at 64 n; one little-endian word of four E8M0 bytes at 64 N + 4 n."""
    pool = torch.zeros(2, FP4.page_bytes, dtype=torch.uint8)
    row = torch.zeros(1, 128)
    row[0, 0], row[0, 33] = 6.0, -12.0
    store(pool, torch.tensor([64 + 5]), row, FP4)
    assert pool[1, 64 * 5 : 64 * 6].tolist() == [0x07, *[0] * 15, 0xF0, *[0] * 47]
    assert pool[1, 64 * 64 + 4 * 5 : 64 * 64 + 4 * 6].tolist() == [127, 128, 1, 1]


def test_an_fp8_index_row_has_one_float32_scale() -> None:
    pool = torch.zeros(1, FP8.page_bytes, dtype=torch.uint8)
    row = torch.randn(1, 128) * 100
    store(pool, torch.tensor([9]), row, FP8)
    scale = pool[0, 128 * 64 + 36 : 128 * 64 + 40].clone().view(torch.float32)
    assert scale.log2() == scale.log2().round()
    assert torch.equal(
        gather(pool, torch.tensor([9]), FP8)[0], pool[0, 128 * 9 : 128 * 10].view(torch.float8_e4m3fn).float() * scale
    )


@pytest.mark.parametrize(
    "layout", [KV, FP4, FP8, KV._replace(kind="bf16"), KV._replace(kind="float32"), KV._replace(dim=128)]
)
@pytest.mark.parametrize("scale", [0.0, 1e-5, 1.0, 400.0])
def test_packing_what_was_read_gives_the_same_bytes(layout: Layout, scale: float) -> None:
    rows = torch.randn(70, layout.dim) * scale
    data, scales = pack_rows(rows, layout)
    back = unpack_rows(data, scales, layout)
    again, scales_again = pack_rows(back, layout)
    assert torch.equal(unpack_rows(again, scales_again, layout), back)
    if layout.kind == "float32":
        assert torch.equal(back, rows)


@pytest.mark.parametrize("layout", [KV, FP4, FP8, KV._replace(kind="bf16", page_rows=2), KV._replace(kind="float32")])
def test_stored_rows_are_read_back_from_any_slots(layout: Layout) -> None:
    pool = torch.full((9, layout.page_bytes), 0xFF, dtype=torch.uint8)
    slots = torch.randperm(8 * layout.page_rows)[:10] + layout.page_rows
    rows = torch.randn(10, layout.dim)
    store(pool, slots, rows, layout)
    assert torch.equal(gather(pool, slots, layout), unpack_rows(*pack_rows(rows, layout), layout))
    assert (pool[0] == 0xFF).all()


@pytest.mark.parametrize("layout", [KV, FP4, FP8, KV._replace(kind="bf16"), KV._replace(kind="float32")])
def test_poison_reads_as_nan(layout: Layout) -> None:
    pool = torch.full((1, layout.page_bytes), 0xFF, dtype=torch.uint8)
    assert gather(pool, torch.arange(64), layout).isnan().all()


def test_no_rows_do_nothing() -> None:
    pool = torch.zeros(1, KV.page_bytes, dtype=torch.uint8)
    none = torch.empty(0, dtype=torch.int64)
    store(pool, none, torch.empty(0, 512), KV)
    assert not pool.any()
    assert gather(pool, none, KV).shape == (0, 512)


def test_a_pool_of_other_pages_is_refused() -> None:
    with pytest.raises(Violation, match="pool"):
        gather(torch.zeros(1, 100, dtype=torch.uint8), torch.tensor([0]), KV)
