"""The bytes are the published ones."""

from __future__ import annotations

from benches.replay import geometry


def test_every_formula_gives_its_published_total() -> None:
    geometry.check()


def test_a_full_block_has_exactly_the_rows_of_its_layers() -> None:
    c4 = 21 * 64 * (584 + 132)
    c128 = 20 * 2 * 584
    assert geometry.full_block_bytes() == c4 + c128 == 985_664
    assert geometry.full_block_bytes("fp4") == 985_664 - 21 * 64 * 64


def test_a_window_is_43_layers_of_128_rows() -> None:
    assert geometry.window_bytes() == 43 * 128 * 584


def test_a_larger_swa_ratio_costs_sglang_more_per_token() -> None:
    assert geometry.sglang_token_bytes(0.0) == geometry.full_block_bytes() / 256
    assert geometry.sglang_token_bytes(0.3) > geometry.sglang_token_bytes(0.005)


def test_a_running_request_has_its_chunk_its_window_and_its_state() -> None:
    assert geometry.running_bytes(2048) == 35 * 44 * 37_440 + 21 * 8 * 10_240 + 20 * 6_144


def test_sglangs_ratio_is_a_much_larger_share_of_its_bytes() -> None:
    assert round(100 * geometry.sglang_swa_bytes(0.1)) == 51
