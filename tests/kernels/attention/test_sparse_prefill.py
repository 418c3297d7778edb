from __future__ import annotations

import pytest
import torch
from tests.kernels.attention.paged import LAYOUTS, Kind, Tokens, tokens
from tests.kernels.attention.test_sparse_decode import assert_near, rows_of, run
from torch import Tensor

from dsv4.errors import Violation
from dsv4.kernels.attention import sparse_prefill as kernel
from dsv4.kernels.cache.reference import gather, store


def prefill(x: Tokens, device: torch.device, each: int) -> Tensor:
    positions = torch.tensor(x.positions, dtype=torch.int32, device=device)
    pool, slots = x.window_pool.to(device), x.window_slots.to(device)
    q, sink = x.q.to(device), x.sink.to(device)
    return kernel.sparse_prefill(q, sink, pool, slots, positions, rows_of(x, device), each).cpu()


# Neighbours of every kind: units of 1, 1, 2, .. and back, so that rows ahead cross from token to token everywhere.
CASES: list[tuple[Kind, list[int]]] = [
    ("window", [0, 63, 126, 127, 128, 1000]),
    ("c4", [2, 3, 515, 0, 600, 1]),
    ("c128", [126, 127, 16_600, 3, 300]),
]


@pytest.mark.parametrize(("kind", "positions"), CASES)
def test_neighbours_attend_to_their_windows_and_their_compressed_rows(
    kind: Kind, positions: list[int], device: torch.device
) -> None:
    x = tokens(positions, kind)
    assert_near(prefill(x, device, len(positions)), x.expected())


@pytest.mark.parametrize(("kind", "positions"), CASES)
def test_a_token_has_the_bits_that_decode_gives_it_wherever_a_block_begins(
    kind: Kind, positions: list[int], device: torch.device
) -> None:
    x = tokens(positions, kind)
    decoded = run(x, device).view(torch.int16)
    for each in (1, 4, 6):
        assert torch.equal(prefill(x, device, each).view(torch.int16), decoded), each


def test_selected_rows_are_cut_at_k_and_pro_has_128_heads(device: torch.device) -> None:
    x = tokens([3_000, 70], "c4", k=128, heads=128)
    assert_near(prefill(x, device, 2), x.expected())


def test_no_tokens(device: torch.device) -> None:
    x = tokens([5], "window")
    empty = torch.empty(0, 128, dtype=torch.int32, device=device)
    q, pool = x.q[:0].to(device), x.window_pool.to(device)
    assert kernel.sparse_prefill(q, x.sink.to(device), pool, empty, empty[:, 0], None, 4).shape == (0, 64, 512)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, in the interpreter
def test_nan_in_one_token_does_not_reach_its_neighbours(device: torch.device) -> None:
    x = tokens([100, 101, 102], "window")
    clean = prefill(x, device, 3)
    x.q[1, 7, 3] = torch.nan
    row = gather(x.window_pool, x.window[1][:1], LAYOUTS[64])
    row[0, 500] = torch.nan
    store(x.window_pool, x.window[1][:1], row, LAYOUTS[64])
    out = prefill(x, device, 3)
    assert torch.equal(out[0], clean[0])
    assert torch.equal(out[2], clean[2])
    assert out[1].isnan().any(1).all()


def test_blocks_take_more_tokens_once_the_device_is_full() -> None:
    assert kernel.tokens_of(1, 64, 132) == kernel.tokens_of(1000, 64, 132) == 1
    assert kernel.tokens_of(8192, 64, 132) == 15
    assert kernel.tokens_of(8192, 128, 132) == kernel.tokens_of(1 << 20, 64, 132) == kernel.MOST_TOKENS


def test_what_is_outside_the_contract_is_refused(device: torch.device) -> None:
    with pytest.raises(Violation, match="q is"):
        prefill(tokens([5], "window", heads=32), device, 1)
    with pytest.raises(Violation, match="blocks of 0 tokens"):
        prefill(tokens([5], "window"), device, 0)
