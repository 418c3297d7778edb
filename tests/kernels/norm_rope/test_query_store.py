from __future__ import annotations

import pytest
import torch
from tests.kernels.closeness import assert_bits
from torch import Tensor

from dsv4.errors import Violation
from dsv4.kernels.cache import reference as cache
from dsv4.kernels.norm_rope import reference

query_store = pytest.importorskip("dsv4.kernels.norm_rope.query_store")

EPS = 1e-6
LAYOUT = cache.Layout("fp8_ds_mla", 512, 64, 64)
POISON = 0xA5


def grid(*shape: int, device: torch.device) -> Tensor:
    """bf16 values whose squares add up exactly in float32, so that every order of summation gives the same bits."""
    return (torch.randint(-15, 16, shape, device=device).float() / 8).to(torch.bfloat16)


def bf16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).float()


def make_angles(T: int, device: torch.device) -> tuple[Tensor, Tensor]:
    angle = torch.rand(T, 32, device=device) * 6
    return angle.cos(), angle.sin()


def expected_q(q: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    x = q.float()
    mean = bf16(reference.row_sum(bf16(x * x)) / x.shape[-1])
    x = bf16(x * bf16(bf16(mean + EPS).rsqrt()))
    return reference.rotate(x, *angles).to(torch.bfloat16)


def expected_kv(kv: Tensor, weight: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    return bf16(reference.rotate(bf16(reference.rms_norm(kv.float(), weight.float(), EPS)), *angles))


def poisoned(layout: cache.Layout, device: torch.device) -> Tensor:
    return torch.full((4, layout.page_bytes), POISON, dtype=torch.uint8, device=device)


@pytest.mark.parametrize(("T", "H"), [(0, 8), (1, 16), (8, 8), (9, 8)])
def test_rows_and_bytes_are_those_of_the_reference(T: int, H: int, device: torch.device) -> None:
    q, kv = grid(T, H, 512, device=device), grid(T, 512, device=device)
    weight, angles = torch.rand(512, device=device) + 0.5, make_angles(T, device)
    slots = torch.randperm(4 * 64, device=device)[:T]
    pool, want = poisoned(LAYOUT, device), poisoned(LAYOUT, device)
    want_q = expected_q(q, angles)
    cache.store(want, slots, expected_kv(kv, weight, angles), LAYOUT)
    query_store.norm_rope_store(q, kv, weight, angles, pool, slots.int(), page_rows=64)
    assert_bits(q, want_q)
    assert_bits(pool, want)


def test_kv_may_lie_beside_other_columns(device: torch.device) -> None:
    q, wide = grid(3, 8, 512, device=device), grid(3, 1024 + 512, device=device)
    weight, angles, slots = torch.rand(512, device=device) + 0.5, make_angles(3, device), torch.tensor([7, 3, 200])
    pool, want = poisoned(LAYOUT, device), poisoned(LAYOUT, device)
    cache.store(want, slots.to(device), expected_kv(wide[:, 1024:], weight, angles), LAYOUT)
    query_store.norm_rope_store(q, wide[:, 1024:], weight, angles, pool, slots.int().to(device), page_rows=64)
    assert_bits(pool, want)


@pytest.mark.parametrize("page_rows", [2, 256])
def test_every_page_size_has_its_own_places(page_rows: int, device: torch.device) -> None:
    layout = cache.Layout("fp8_ds_mla", 512, 64, page_rows)
    q, kv = grid(3, 8, 512, device=device), grid(3, 512, device=device)
    weight, angles = torch.ones(512, dtype=torch.bfloat16, device=device), make_angles(3, device)
    slots = torch.tensor(
        [4 * page_rows - 1, 0, page_rows], device=device
    )  # the largest legal one, the first, a second page
    pool, want = poisoned(layout, device), poisoned(layout, device)
    cache.store(want, slots, expected_kv(kv, weight, angles), layout)
    query_store.norm_rope_store(q, kv, weight, angles, pool, slots, page_rows=page_rows)
    assert_bits(pool, want)


def test_a_negative_slot_stores_nothing(device: torch.device) -> None:
    q, kv = grid(2, 8, 512, device=device), grid(2, 512, device=device)
    pool, angles = poisoned(LAYOUT, device), make_angles(2, device)
    slots = torch.tensor([-1, -1], device=device, dtype=torch.int32)
    query_store.norm_rope_store(q, kv, torch.ones(512, device=device), angles, pool, slots, page_rows=64)
    assert bool((pool == POISON).all())


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # numpy, about the NaN
def test_a_nan_marks_its_own_row_and_no_other(device: torch.device) -> None:
    q, kv = grid(3, 8, 512, device=device), grid(3, 512, device=device)
    weight, angles = torch.ones(512, device=device), make_angles(3, device)
    want = expected_kv(kv, weight, angles)
    kv[1, 5] = float("nan")
    pool, slots = poisoned(LAYOUT, device), torch.arange(3, device=device)
    query_store.norm_rope_store(q, kv, weight, angles, pool, slots, page_rows=64)
    rows = cache.gather(pool, slots, LAYOUT)
    fine = cache.unpack_rows(*cache.pack_rows(want, LAYOUT), LAYOUT)
    assert bool(rows[1].isnan().all())
    assert_bits(rows[[0, 2]], fine[[0, 2]])


@pytest.mark.parametrize("T", [0, 1, 3])
def test_rotating_back_changes_the_trailing_channels_alone(T: int, device: torch.device) -> None:
    o, angles = torch.randn(T, 8, 512, device=device).to(torch.bfloat16), make_angles(T, device)
    want = reference.rotate(o.float(), *angles, inverse=True).to(torch.bfloat16)
    query_store.rotate_back(o, angles)
    assert_bits(o, want)


def test_arguments_outside_the_contract_are_refused(device: torch.device) -> None:
    q, kv, slots = grid(1, 8, 512, device=device), grid(1, 512, device=device), torch.zeros(1, dtype=torch.int32)
    weight, angles, pool = torch.ones(512, device=device), make_angles(1, device), poisoned(LAYOUT, device)
    with pytest.raises(Violation, match="pool"):
        query_store.norm_rope_store(q, kv, weight, angles, pool, slots, page_rows=256)
    with pytest.raises(Violation, match="angles"):
        query_store.norm_rope_store(q, kv, weight, make_angles(2, device), pool, slots, page_rows=64)
    with pytest.raises(Violation, match="contiguous"):
        query_store.norm_rope_store(
            q.transpose(1, 2).contiguous().transpose(1, 2), kv, weight, angles, pool, slots, page_rows=64
        )
