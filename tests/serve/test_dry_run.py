"""`--dry-run`: a table or an object, a status, and nothing served."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serve.process import spawned

from dsv4.config.directory import DEMO
from dsv4.config.engine import EngineConfig
from dsv4.serve.launch import run

FLASH = Path(__file__).parents[1] / "data" / "deepseek_v4" / "configs" / "V4-Flash.config.json"
SMALL = ["demo", "--kv-cache-memory-bytes", "32MiB", "--max-num-seqs", "4", "--max-model-len", "1024"]


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """`run` takes logging over, as a process may."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def start(_config: EngineConfig) -> Any:
    raise AssertionError("a dry run starts no engine")


def dry(*args: str, **variables: str) -> int:
    return run([*args, "--dry-run"], variables, start)


def test_json_has_the_documented_keys_and_none_that_is_not_computed(capsys: pytest.CaptureFixture[str]) -> None:
    assert dry(*SMALL, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {
        "model", "weights_bytes", "weights_source", "kv_cache_memory_bytes", "max_model_len", "max_num_seqs", "pools",
        "transient_reserve_bytes", "per_request_fixed_bytes", "bytes_per_token", "padding_bytes_per_token", "capacity",
        "fits", "limiting_term", "suggestions", "settings",
    }  # fmt: skip
    assert [set(pool) for pool in found["pools"]] == [{"name", "blocks", "block_bytes", "bytes"}] * 3
    assert [pool["name"] for pool in found["pools"]] == ["full", "swa", "state"]
    for pool in found["pools"]:
        assert pool["bytes"] == (pool["blocks"] + 1) * pool["block_bytes"]
    assert set(found["capacity"][0]) == {"context", "max_concurrent", "request_bytes"}
    assert found["fits"] is True
    assert found["settings"]["max_num_seqs"] == {"value": "4", "source": "given", "reason": "as given"}


def test_people_get_a_table_with_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert dry(*SMALL, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert dry(*SMALL) == 0
    table = capsys.readouterr().out
    for number in (
        found["weights_bytes"], found["per_request_fixed_bytes"], found["transient_reserve_bytes"],
        *(pool["bytes"] for pool in found["pools"]), *(row["request_bytes"] for row in found["capacity"]),
    ):  # fmt: skip
        assert f"{number:,}" in table
    assert "fits         yes" in table


def test_what_does_not_fit_is_status_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert dry("demo", "--kv-cache-memory-bytes", "1000", "--json") == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["fits"], found["limiting_term"], found["pools"]) == (False, "kv_cache_memory_bytes", [])
    assert found["suggestions"]


def test_a_gpu_is_planned_for_without_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shutil.copy(FLASH, tmp_path / "config.json")
    assert dry(str(tmp_path), "--device", "cuda", "--json") == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert (settings["device"]["value"], settings["recipe"]["value"]) == ("cuda", "h200")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["/nowhere/at/all"], "does not exist"),
        (["demo", "--max-num-seqs", "9", "--max-num-batched-tokens", "8"], "max_num_batched_tokens is 8"),
        (["demo", "--max-model-len", "100000"], "max_position_embeddings"),
        (
            ["demo", "--device", "cuda"],
            "index_n_heads is 16; the GPU's kernels take 64. Use device 'cpu'",
        ),
    ],
)
def test_what_cannot_work_is_status_2(capsys: pytest.CaptureFixture[str], args: list[str], words: str) -> None:
    assert dry(*args) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert words in error


def test_the_variable_says_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(SMALL, {"DSV4_DRY_RUN": "on", "DSV4_JSON": "1"}, start) == 0
    assert json.loads(capsys.readouterr().out)["max_num_seqs"] == 4


def test_json_alone_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*SMALL, "--json"], {}, start) == 2
    assert "give both" in capsys.readouterr().err


def test_the_command_needs_no_weights_and_no_tokenizer(tmp_path: Path) -> None:
    shutil.copy(DEMO / "config.json", tmp_path)
    args = (str(tmp_path), "--dry-run", "--json", "--context-length", "512")
    with spawned("dsv4.serve", *args, stderr=subprocess.PIPE) as popen:
        out, error = popen.communicate(timeout=30)
    assert popen.returncode == 0, error
    assert "--context-length is --max-model-len here" in error
    found = json.loads(out)
    assert found["max_model_len"] == 512
    assert found["weights_source"].startswith("schema: ")
