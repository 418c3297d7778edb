"""The embedded checkpoint, end to end: `LLM("demo")` generates, chats, streams, and reports itself in ten lines."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.gates import assert_all_blocks_free, assert_free

from dsv4 import LLM, AsyncEngine, EngineConfig, SamplingParams
from dsv4.engine.report import fingerprint
from dsv4.errors import CheckpointError, ConfigError, UnsupportedModel
from dsv4.runtime.start import load
from dsv4.types import ChatRequest

FLASH = Path(__file__).parents[1] / "data" / "deepseek_v4" / "configs" / "V4-Flash.config.json"
SMALL = EngineConfig(kv_cache_memory_bytes=32 << 20, max_num_seqs=4, max_model_len=1024, max_num_batched_tokens=128)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", config=SMALL) as engine:
        yield engine
        assert_free(engine.stats())


def test_it_generates_and_repeats_itself_when_greedy(llm: LLM) -> None:
    params = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
    first, second = (llm.generate(["Call me Ishmael.", "Emma Woodhouse,"], params) for _ in range(2))
    assert first == second
    assert all(len(each.token_ids) == 6 and each.finish_reason == "length" for each in first)
    assert first[0].text == llm.tokenizer.decode(first[0].token_ids)
    streamed = list(llm.stream("Call me Ishmael.", params))
    assert "".join(delta.content for delta in streamed) == first[0].text


def test_it_answers_a_chat(llm: LLM) -> None:
    found = llm.chat(
        [{"role": "user", "content": "Hello"}], SamplingParams(max_tokens=4, ignore_eos=True), thinking=True
    )
    assert found.reasoning
    assert found.content == ""
    quiet = llm.chat([{"role": "user", "content": "Hello"}], SamplingParams(max_tokens=4, seed=1), thinking=False)
    assert quiet.reasoning == ""


def test_the_report_has_ten_lines_that_say_what_was_chosen(llm: LLM) -> None:
    report = dict(llm.info.report)
    assert list(report) == [
        "model", "device", "dtype", "pools", "kernels", "limits", "parsers", "drafting", "capacity", "weights",
    ]  # fmt: skip
    assert report["model"].startswith("demo (")
    assert report["dtype"].startswith("bfloat16, KV rows fp8_ds_mla, index rows fp4")
    assert report["drafting"] == "off: the checkpoint carries MTP; drafting comes later"
    assert "context 1024" in report["limits"]
    assert "given" in report["pools"]
    assert llm.info.fingerprint.startswith("fp_")
    assert llm.info.served_name == "demo"


def test_the_asynchronous_engine_does_the_same(llm: LLM) -> None:
    params = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    expected = llm.chat([{"role": "user", "content": "Hi"}], params)

    async def work() -> None:
        async with AsyncEngine.running(SMALL) as engine:
            found = await engine.chat(ChatRequest(messages=({"role": "user", "content": "Hi"},)), params)
            assert found == expected
            assert engine.info.fingerprint == llm.info.fingerprint
            async for _ in engine.generate("Hello", SamplingParams(max_tokens=500)):
                break
            await assert_all_blocks_free(engine)

    asyncio.run(work())


def test_a_gpu_that_is_not_there_is_missed_before_a_weight_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(FLASH, tmp_path / "config.json")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch sees no GPU here"):
        load(EngineConfig(model=str(tmp_path), load_format="dummy", device="cuda", kv_cache_memory_bytes=1 << 30))


@pytest.mark.parametrize(
    ("settings", "kind", "complaint"),
    [
        ({"model": "/nowhere/at/all"}, CheckpointError, "does not exist"),
        ({"device": "cuda"}, UnsupportedModel, "index_n_heads is 16; the GPU's kernels take 64"),
        ({"kv_cache_memory_bytes": 4096}, ConfigError, "4096 bytes of KV memory are too few"),
        ({"max_model_len": 1 << 20}, ConfigError, "max_position_embeddings"),
        ({"tokenizer": "/nowhere/at/all"}, CheckpointError, "tokenizer"),
    ],
)
def test_what_cannot_start_says_why(settings: dict[str, Any], kind: type[Exception], complaint: str) -> None:
    with pytest.raises(kind, match=complaint):
        LLM(**settings)

    async def work() -> None:
        async with AsyncEngine.running(EngineConfig(**settings)):
            raise AssertionError("it must not start")

    with pytest.raises(kind, match=complaint):
        asyncio.run(work())


def test_the_fingerprint_changes_with_what_changes_the_numbers_and_with_nothing_else(llm: LLM) -> None:
    parts = {"digest": "1234", "release": "0.1", "kernels": "reference", "numerics": "bfloat16/fp8_ds_mla/fp4"}
    assert len({fingerprint(**parts), *(fingerprint(**parts | {name: "other"}) for name in parts)}) == 5
    with LLM("demo", config=SMALL, max_num_seqs=2, served_model_name="mine") as other:
        assert other.info.fingerprint == llm.info.fingerprint
        assert other.info.served_name == "mine"
