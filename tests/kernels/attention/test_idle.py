"""Rows that pad a captured step: position -1, which sees no key. Their output is nobody's, and they read nothing."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.attention.paged import Kind, tokens
from tests.kernels.attention.test_sparse_decode import assert_near, rows_of, run

from dsv4.kernels.attention import plan
from dsv4.kernels.attention.sparse_prefill import sparse_prefill
from dsv4.kernels.attention.split import Split


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy: the sink's weight is infinite where no key is seen
@pytest.mark.parametrize("kind", ["window", "c4", "c128"])
def test_an_idle_row_is_zero_and_its_neighbours_are_as_they_were(kind: Kind, device: torch.device) -> None:
    x = tokens([130, 5, 300], kind)
    want = run(x, device)
    assert_near(want, x.expected())
    x.positions[1] = -1
    x.window[1] = x.window[1][:0]  # every slot of the idle row is poison now
    if x.table is not None and kind == "c4":
        x.table[1] = 3
    for split in (Split(64, 1), Split(32, 2)):
        out = run(x, device, split)
        assert torch.equal(out[[0, 2]], want[[0, 2]])
        assert not out[1].any()
    positions = torch.tensor(x.positions, dtype=torch.int32, device=device)
    pool, slots = x.window_pool.to(device), x.window_slots.to(device)
    out = sparse_prefill(x.q.to(device), x.sink.to(device), pool, slots, positions, rows_of(x, device), 3).cpu()
    assert torch.equal(out[[0, 2]], want[[0, 2]])
    assert not out[1].any()


def test_an_idle_row_has_no_window(device: torch.device) -> None:
    positions = torch.tensor([-1, 3], dtype=torch.int32, device=device)
    rows, first = torch.zeros(2, dtype=torch.int32, device=device), torch.zeros(1, dtype=torch.int32, device=device)
    table = torch.full((1, 2), 7, dtype=torch.int32, device=device)
    got = plan.window_slots(positions, rows, table, first).cpu()
    assert (got[0] == -1).all()
    assert got[1, -4:].tolist() == [448, 449, 450, 451]
