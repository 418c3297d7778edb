"""What is allocated, and the numbers that the core plans with."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.model.oracle import model_config

from dsv4 import _core
from dsv4.model.caches import Layouts, allocate, geometry_numbers
from dsv4.model.numerics import FLOAT32, Numerics

FLASH = model_config(head_dim=512, sliding_window=128, num_hidden_layers=5, compress_ratios=(0, 0, 4, 128, 4))
PACKED = Numerics("bfloat16", "fp8_ds_mla", "fp4")
ALL = [
    FLOAT32,
    PACKED,
    Numerics("bfloat16", "fp8_ds_mla", "fp8"),
    Numerics("bfloat16", "bf16", "float32"),
    Numerics("float32", "bf16", "fp8"),
]


def test_numbers_of_the_official_rows() -> None:
    numbers = geometry_numbers(FLASH, PACKED)
    assert (numbers.kv_data_bytes, numbers.kv_scale_bytes, numbers.kv_page_multiple) == (576, 8, 576)
    assert (numbers.index_data_bytes, numbers.index_scale_bytes) == (64, 4)
    assert (numbers.c4_state_bytes, numbers.index_state_bytes) == (8 * 2 * 1024 * 4, 8 * 2 * 256 * 4)
    assert numbers.c128_state_bytes == 6 * 1024
    fp8 = geometry_numbers(FLASH, dataclasses.replace(PACKED, index="fp8"))
    assert (fp8.index_data_bytes, fp8.index_scale_bytes) == (128, 4)


def test_draft_layers_come_last_and_have_a_window_only() -> None:
    assert geometry_numbers(FLASH, PACKED, num_draft_layers=1).ratios == (0, 0, 4, 128, 4, 0)
    caches = allocate(FLASH, PACKED, num_full_blocks=1, num_swa_blocks=1, num_slots=1, num_draft_layers=1)
    assert len(caches.layers) == 6
    assert caches.layers[5].c4 is None


@pytest.mark.parametrize("numerics", ALL, ids=str)
@pytest.mark.parametrize("head_dim", [128, 512])
def test_the_core_and_the_pools_agree_on_every_page(numerics: Numerics, head_dim: int) -> None:
    config = dataclasses.replace(FLASH, head_dim=head_dim)
    geometry = _core.Geometry(**dataclasses.asdict(geometry_numbers(config, numerics)))
    caches = allocate(config, numerics, num_full_blocks=3, num_swa_blocks=5, num_slots=2)
    c4, c128 = caches.layers[2], caches.layers[3]
    assert c4.c4 is not None
    assert c4.index is not None
    assert c4.c4_state is not None
    assert c4.index_state is not None
    assert c128.c128 is not None
    assert c128.c128_state is not None
    assert geometry.swa_page_bytes == c4.swa.shape[1]
    assert geometry.c4_page_bytes == c4.c4.shape[1]
    assert geometry.index_page_bytes == c4.index.shape[1]
    assert geometry.c128_page_bytes == c128.c128.shape[1]
    assert geometry.full_block_bytes == 2 * (c4.c4.shape[1] + c4.index.shape[1]) + c128.c128.shape[1]
    states = 2 * (c4.c4_state[0].nbytes + c4.index_state[0].nbytes) + c128.c128_state[0].nbytes
    assert geometry.state_slot_bytes == states


@pytest.mark.parametrize("numerics", ALL, ids=str)
def test_block_0_of_every_pool_is_poison(numerics: Numerics) -> None:
    caches = allocate(FLASH, numerics, num_full_blocks=3, num_swa_blocks=5, num_slots=2)
    for layer in caches.layers:
        assert len(layer.swa) == 6
        for pool in (layer.swa, layer.c4, layer.index, layer.c128):
            assert pool is None or bool((pool[0] == 0xFF).all())
            assert pool is None or not pool[1:].any()
        for state in (layer.c4_state, layer.index_state, layer.c128_state):
            assert state is None or (len(state) == 3 and bool(state[0].isnan().all()))


def test_every_kind_of_pool_has_its_layout() -> None:
    layouts = Layouts.of(FLASH, PACKED)
    assert [layouts.swa.page_rows, layouts.c4.page_rows, layouts.index.page_rows, layouts.c128.page_rows] == [
        64,
        64,
        64,
        2,
    ]
    assert (layouts.index.kind, layouts.index.rope_dim) == ("fp4", 0)
    assert torch.tensor([x.dim for x in (layouts.swa, layouts.c4, layouts.c128)]).eq(512).all()
