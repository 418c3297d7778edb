"""Lines become chains whose equal numbers mean equal prefixes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benches.replay import trace
from benches.replay.__main__ import main

LINE = json.dumps({"timestamp": 0, "input_length": 1400, "output_length": 100, "hash_ids": [0, 7, 9]})


def test_an_id_is_two_blocks_and_the_prompt_ends_behind_its_last_whole_id() -> None:
    request = trace.parse(LINE, 0)
    assert request.blocks == (0, 1, 14, 15)
    assert (request.num_prompt_tokens, request.num_output_tokens) == (1025, 0)
    assert request.num_input_tokens == 1400
    assert request.chain == request.blocks


def test_raw_keeps_the_half_id_the_rest_and_the_output() -> None:
    request = trace.parse(LINE, 3, "raw")
    assert request.blocks == (0, 1, 14, 15, 18)
    assert (request.num_prompt_tokens, request.num_output_tokens) == (1400, 100)
    assert len(request.chain) == 1500 // 256 == 5
    longer = trace.parse(LINE.replace("100", "400"), 3, "raw")
    assert longer.chain == (*request.blocks, request.first_private, request.first_private + 1)


def test_the_last_token_is_always_computed() -> None:
    assert trace.request([1, 2, 3], 0, prompt=768).num_hit_blocks == 2
    assert trace.request([1, 2, 3], 0, prompt=769).num_hit_blocks == 3


def test_ids_that_do_not_cover_the_input_are_refused() -> None:
    with pytest.raises(ValueError, match="line 5: 2 hash ids for 1400 tokens"):
        trace.parse(LINE.replace("[0, 7, 9]", "[0, 7]"), 4)


def test_tokens_differ_exactly_where_blocks_do() -> None:
    one, other = trace.request([1, 2], 0, prompt=600), trace.request([1, 70_000], 1, prompt=600)
    a, b = trace.prompt_tokens(one), trace.prompt_tokens(other)
    assert len(a) == len(b) == 600
    assert a[:256] == b[:256]
    assert a[256:512] != b[256:512]
    assert a[512:] != b[512:]
    assert max(a + b) < 129_280


def test_without_the_trace_the_replay_is_skipped_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "absent.jsonl"), "--notes", str(tmp_path)]) == 0
    assert "skipped: no trace at" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_replay_writes_its_notes_and_figure(tmp_path: Path) -> None:
    path = tmp_path / "small.jsonl"
    path.write_text("\n".join([LINE] * 4) + "\n")
    assert main([str(path), "--notes", str(tmp_path / "notes"), "--sizes", "5"]) == 0
    text = (tmp_path / "notes" / "replay.md").read_text()
    assert trace.digest(path) in text
    # 4 prompts of 1,400 tokens; the 2nd to 4th find 1,024 each: 3072 / 5600
    assert "| vLLM latest | 54.86 (100.0 %) |" in text
    assert (tmp_path / "notes" / "replay.svg").read_text().startswith("<svg ")
