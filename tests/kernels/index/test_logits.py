from __future__ import annotations

import pytest
import torch
from tests.kernels.index.cases import TOLERANCE, UNTOUCHED, Case, Kind, far_apart

from dsv4.errors import Violation
from dsv4.kernels.index import hopper, logits


@pytest.mark.parametrize("kind", ["fp8", "fp4"])
def test_scores_of_visible_keys_and_nothing_else(kind: Kind, device: torch.device) -> None:
    case = Case([3, 66, 67, 68, 300, 515, 1501], kind)
    scores = case.run(device)
    for t, position in enumerate(case.positions):
        count = (position + 1) // 4
        if count <= 16:  # all of them are chosen anyway
            count = 0
        else:
            want = case.expected(t).double()
            error = float((scores[t, :count].double() - want).norm() / want.norm())
            assert error < TOLERANCE, f"token {t}: relative error {error}"
        assert (scores[t, count:] == UNTOUCHED).all()


@pytest.mark.parametrize("kind", ["fp8", "fp4"])
def test_bits_do_not_depend_on_the_batch(kind: Kind, device: torch.device) -> None:
    case = Case(
        [400, 801, *[3000] * 40] if device.type == "cuda" else [400, 801], kind
    )  # also several tiles to a block
    together = case.run(device)
    case.positions[0] = 3
    assert torch.equal(case.run(device)[1], together[1])


@pytest.mark.parametrize("tiles", [1, 3, 12])
def test_cuda_gives_the_same_bits_however_the_work_is_cut(
    tiles: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        pytest.skip("there is no Hopper GPU; test_emulated.py has the kernel on the CPU")
    case = Case([2900, 801, 3000], "fp4")
    monkeypatch.setattr(hopper, "cut_of", lambda *_: hopper.Cut(-(-12 // tiles), tiles))
    scores = case.run(device)
    monkeypatch.setattr(hopper, "cut_of", lambda *_: hopper.Cut(6, 2))
    assert torch.equal(case.run(device), scores)
    for t, position in enumerate(case.positions):
        want = case.expected(t).double()
        assert (scores[t, : (position + 1) // 4].double() - want).norm() / want.norm() < TOLERANCE


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, in the interpreter
def test_a_nan_key_spoils_its_own_score_only(device: torch.device) -> None:
    case = Case([400], "fp8")
    clean = case.run(device)
    page, at = divmod(int(case.slots[0][7]), 64)
    case.pool[page, 64 * 128 :].view(torch.float32)[at] = torch.nan
    scores = case.run(device)
    others = torch.arange(100) != 7
    assert scores[0, 7].isnan()
    assert torch.equal(scores[0, :100][others], clean[0, :100][others])


def test_fp4_scales_up_to_2_to_the_11_apart_are_exact(device: torch.device) -> None:
    case, want = far_apart()
    error = (case.run(device)[0, :65].double() - want).norm() / want.norm()
    assert error < TOLERANCE
    if device.type == "cpu":  # float32 products of exact values
        assert error < 1e-6


def test_no_tokens_and_no_keys(device: torch.device) -> None:
    case = Case([300], "fp8")
    none = torch.zeros(0, dtype=torch.int32, device=device)
    pool, table = case.pool.to(device), case.table.to(device)
    q, w = case.q[:0].to(device), case.w[:0].to(device)
    logits.index_scores(q, w, pool, table, none, none, torch.zeros(0, 64, device=device), "fp8", k=16)
    assert (case.run(device, k=75) == UNTOUCHED).all()


def test_what_is_outside_the_contract_is_refused(device: torch.device) -> None:
    case = Case([300], "fp4")
    case.kind = "fp8"  # the pool's pages are too short for these keys
    with pytest.raises(Violation, match="pages of 4352 bytes"):
        case.run(device)


def test_blocks_have_equal_work_and_cover_all_keys() -> None:
    for T in (1, 7, 64, 500):
        for keys in (1, 127, 128, 2048, 16_384, 262_144):
            tiles = -(-keys // 128)
            each = logits.tiles_of(T, keys, 132)
            blocks = -(-tiles // each)
            assert 1 <= each <= tiles
            assert each * blocks - tiles < blocks
