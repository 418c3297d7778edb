"""Attention over blocks of keys against the formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dsv4.kernels.attention.reference import Keys, attend


def formula(q: Tensor, rows: Tensor, visible: Tensor, sink: Tensor, scale: float) -> Tensor:
    out = torch.zeros_like(q)
    for t in range(len(q)):
        keys = rows[t][visible[t]].double()
        s = q[t].double() @ keys.T * scale
        m = s.amax(-1, keepdim=True)
        p = (s - m).exp()
        out[t] = (p / (p.sum(-1, keepdim=True) + (sink[:, None].double() - m).exp()) @ keys).float()
    return out


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("n", [1, 3, 9])
def test_attention_with_a_sink_in_the_denominator_only(n: int, *, shared: bool) -> None:
    q, sink = torch.randn(n, 4, 32), torch.randn(4) * 3
    parts = []
    for blocks in (2, 1):
        rows = torch.randn(1 if shared else n, 64 * blocks, 32)
        visible = torch.rand(n, 64 * blocks) < 0.3
        visible[:, 0] = True
        parts.append(Keys(rows, visible))
    want = formula(
        q,
        torch.cat([part.rows.expand(n, -1, -1) for part in parts], 1),
        torch.cat([part.visible for part in parts], 1),
        sink,
        32**-0.5,
    )
    assert torch.allclose(attend(q, parts, sink, 32**-0.5, bf16_weights=False), want, atol=1e-5)
    rounded = attend(q, parts, sink, 32**-0.5, bf16_weights=True)
    assert torch.allclose(rounded, want, atol=2e-2)
    assert not torch.allclose(rounded, want, atol=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_rows_that_are_not_visible_may_hold_anything(bad: float) -> None:
    q, sink, visible = torch.randn(2, 4, 32), torch.randn(4), torch.zeros(2, 64, dtype=torch.bool)
    visible[:, :5] = True
    visible[1, 5] = True
    rows = torch.randn(1, 64, 32)
    clean = attend(q, [Keys(rows, visible)], sink, 1.0, bf16_weights=False)
    rows[0, 5:] = bad
    broken = attend(q, [Keys(rows, visible)], sink, 1.0, bf16_weights=False)
    assert torch.equal(broken[0], clean[0])
    assert broken[1].isnan().all()
