"""The whole engine with a tiny model of random weights: what a request gets does not depend on its company."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests.engine.gates import EOS, assert_all_blocks_free, assert_free, tiny_model, whole

from dsv4 import EngineConfig
from dsv4.engine.engine import LLM, AsyncEngine
from dsv4.errors import ConfigError, RequestFailed
from dsv4.types import Completion, SamplingParams

PROMPTS = [
    "Call me",
    "It was the best of times, it was the worst of times",
    "O",
    "Whether I shall turn out to be " * 20,
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    return EngineConfig(
        model=str(tiny_model(tmp_path_factory.mktemp("tiny"))),
        load_format="dummy",
        kv_cache_memory_bytes=12 << 20,
        max_model_len=1024,
        max_num_seqs=16,
        max_num_batched_tokens=128,
        seed=5,
    )


@pytest.fixture(scope="module")
def llm(config: EngineConfig) -> Iterator[LLM]:
    with LLM(config=config) as engine:
        yield engine
        engine.audit()
        assert_free(engine.stats())


def ids(found: list[Completion]) -> list[tuple[int, ...]]:
    return [each.token_ids for each in found]


def test_greedy_alone_equals_greedy_among_others(llm: LLM) -> None:
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    together = llm.generate(PROMPTS * 4, params)
    assert ids(together) == [llm.generate(prompt, params)[0].token_ids for prompt in PROMPTS] * 4


def test_a_seed_gives_the_same_alone_and_among_sixteen(llm: LLM) -> None:
    kinds = [
        SamplingParams(max_tokens=6, temperature=1.0, seed=11, ignore_eos=True),
        SamplingParams(max_tokens=6, temperature=0.8, top_p=0.9, top_k=50, min_p=0.01, seed=-3, ignore_eos=True),
        SamplingParams(max_tokens=6, temperature=1.5, repetition_penalty=1.2, seed=11, logprobs=2, ignore_eos=True),
        SamplingParams(max_tokens=6, temperature=1.0, seed=12, presence_penalty=1.0, n=2, ignore_eos=True),
    ]
    together = llm.generate(PROMPTS * 4, kinds * 4)
    alone = [each for prompt, params in zip(PROMPTS, kinds, strict=True) for each in llm.generate(prompt, params)]

    def key(each: Completion) -> Any:
        return each.token_ids, each.logprobs, each.text

    assert [key(each) for each in together] == [key(each) for each in alone] * 4


def test_seeds_and_choices_differ_from_each_other(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=8, seed=seed, n=3, ignore_eos=True) for seed in (1, 2)]
    found = ids(llm.generate([PROMPTS[0]] * 2, params))
    assert len(set(found)) == 6


def test_without_a_seed_the_engines_seed_decides(config: EngineConfig) -> None:
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    runs = []
    for _ in range(2):
        with LLM(config=config) as llm:
            runs.append(ids(llm.generate([PROMPTS[0]] * 3, params)))
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 3


def test_logprobs_are_the_log_softmax_of_the_models_logits(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    runner: Any = llm._front.driver._the_flights._runner
    seen: list[np.ndarray[Any, Any]] = []
    real = runner._sampler.sample

    def watched(logits: Any, *others: Any) -> Any:
        seen.append(logits.copy())
        return real(logits, *others)

    monkeypatch.setattr(runner._sampler, "sample", watched)
    params = SamplingParams(max_tokens=4, temperature=1.3, seed=1, logprobs=3, logit_bias={9: 3.0}, ignore_eos=True)
    found = llm.generate([3, 4, 5], params)[0]
    assert len(seen) == len(found.logprobs) == 4
    for logits, entry, token in zip(seen, found.logprobs, found.token_ids, strict=True):
        row = logits[0].astype(np.float64)
        expected = row - row.max() - np.log(np.exp(row - row.max()).sum())
        assert entry.token_id == token
        assert entry.logprob == pytest.approx(expected[token], abs=1e-5)
        order = np.argsort(-row, kind="stable")
        assert [top for top, _ in entry.top] == order[:3].tolist()
        assert order[entry.rank - 1] == token


def test_logit_bias_forces_a_token(llm: LLM) -> None:
    params = SamplingParams(max_tokens=3, temperature=0.0, logit_bias={77: 100.0})
    assert ids(llm.generate(PROMPTS[:2], params)) == [(77, 77, 77)] * 2


def test_a_frequency_penalty_spreads_what_is_said(llm: LLM) -> None:
    allowed = (77, 78, 79, 80)
    penalised = SamplingParams(max_tokens=32, temperature=0.0, allowed_token_ids=allowed, frequency_penalty=2.0)
    tokens = ids(llm.generate(PROMPTS[0], penalised))[0]
    counts = [tokens.count(token) for token in allowed]
    assert max(counts) - min(counts) <= 5  # the random logits differ by a few units, the penalty is 2 for each time
    rewarded = SamplingParams(max_tokens=32, temperature=0.0, allowed_token_ids=allowed, frequency_penalty=-2.0)
    tokens = ids(llm.generate(PROMPTS[0], rewarded))[0]
    assert max(tokens.count(token) for token in allowed) >= 24


def test_min_tokens_puts_the_end_off_and_ignore_eos_forbids_none(llm: LLM) -> None:
    ends = {EOS: 100.0}
    at_once = SamplingParams(max_tokens=6, temperature=0.0, logit_bias=ends)
    assert ids(llm.generate(PROMPTS[0], at_once)) == [(EOS,)]
    later = SamplingParams(max_tokens=6, min_tokens=3, temperature=0.0, logit_bias=ends)
    found = llm.generate(PROMPTS[0], later)[0]
    assert len(found.token_ids) == 4
    assert found.token_ids[-1] == EOS
    assert EOS not in found.token_ids[:3]
    ignored = SamplingParams(max_tokens=4, temperature=0.0, logit_bias=ends, ignore_eos=True)
    assert ids(llm.generate(PROMPTS[0], ignored)) == [(EOS,) * 4]


def test_allowed_token_ids_bound_what_is_said(llm: LLM) -> None:
    params = SamplingParams(max_tokens=8, temperature=2.0, allowed_token_ids=(100, 200, 300), seed=4)
    assert set(ids(llm.generate(PROMPTS[0], params))[0]) <= {100, 200, 300}


def test_cancelled_requests_leave_the_others_as_they_are(config: EngineConfig, llm: LLM) -> None:
    params = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
    alone = ids(llm.generate(PROMPTS, params))

    async def work() -> list[tuple[int, ...]]:
        async with AsyncEngine.running(config) as engine:
            streams = [await engine.open(prompt, params) for prompt in PROMPTS]
            leaving = [await engine.open("leave " * 30, SamplingParams(max_tokens=90)) for _ in range(4)]
            leaving[0].leave()  # most likely still waiting or prefilling
            await leaving[1].take()
            for stream in leaving:
                stream.leave()
            found = [tuple(token for delta in await whole(stream) for token in delta.token_ids) for stream in streams]
            for stream in leaving:
                with pytest.raises(RequestFailed):
                    await whole(stream)
            await assert_all_blocks_free(engine)
            return found

    assert asyncio.run(work()) == alone


def test_nan_weights_end_requests_and_not_the_engine(config: EngineConfig) -> None:
    with LLM(config=config) as llm:
        runner: Any = llm._front.driver._the_flights._runner
        runner._network.embedding[1234] = float("nan")
        good = llm.generate([3, 4, 5], SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True))[0]
        with pytest.raises(RequestFailed) as end:
            llm.generate([1234, 4, 5], SamplingParams(max_tokens=3))
        assert end.value.code == "numerical_error"
        again = llm.generate([3, 4, 5], SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True))[0]
        assert again.token_ids == good.token_ids
        llm.audit()
        assert_free(llm.stats())


def test_float32_runs_and_is_reported(config: EngineConfig) -> None:
    import dataclasses

    exact = dataclasses.replace(config, dtype="float32", kv_cache_dtype="float32", indexer_dtype="float32")
    with LLM(config=exact) as llm:
        report = dict(llm.info.report)
        assert report["dtype"].startswith("float32, KV rows float32, index rows float32 (given")
        assert len(llm.generate(PROMPTS[1], SamplingParams(max_tokens=3, ignore_eos=True))[0].token_ids) == 3


def test_another_tokenizers_end_of_sequence_is_refused(config: EngineConfig, tmp_path: Any) -> None:
    import dataclasses

    other = tiny_model(tmp_path, eos_token_id=7)
    with pytest.raises(ConfigError, match="do not belong together"):
        LLM(config=dataclasses.replace(config, model=str(other)))
