"""Preempted requests go on as if nothing had happened: the same draws, the same penalties."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from tests.engine.gates import TOKENIZER, assert_free, parts

from dsv4.engine.engine import LLM
from dsv4.runtime.null import NullRunner
from dsv4.runtime.sample import Sampler
from dsv4.runtime.step import Draw, StepResult
from dsv4.types import SamplingParams

NUM_TOKENS = 1100
"""More than the core reserves, so that requests outgrow what they were admitted with."""


class SamplingRunner(NullRunner):
    """Real sampling from logits that depend on the request and the position alone."""

    def __init__(self, layout: Any) -> None:
        super().__init__(layout, lambda draw, position: 0)
        self.sampler = Sampler()

    def begin(self, request_id: int, draw: Draw) -> None:
        super().begin(request_id, draw)
        self.sampler.begin(request_id, draw)

    def end(self, request_id: int) -> None:
        super().end(request_id)
        self.sampler.end(request_id)

    def run(self, plan: Any) -> StepResult:
        ids, positions = plan.sample_request_ids, plan.sample_positions
        rows = [self.logits(self.draws[row].prompt[0], at) for row, at in zip(ids, positions, strict=True)]
        logits = np.stack(rows) if rows else np.zeros((0, TOKENIZER.vocab_size), dtype=np.float32)
        return self.sampler.sample(logits, ids, positions)

    @staticmethod
    def logits(first: int, position: int) -> Any:
        noise = np.random.Generator(np.random.PCG64([first, position]))
        return noise.standard_normal(TOKENIZER.vocab_size, dtype=np.float32) * 3


def answers(full_blocks: int) -> tuple[list[tuple[int, ...]], int]:
    given = parts(max_running=2, full_blocks=full_blocks, max_step_tokens=512)
    with LLM.over(dataclasses.replace(given, runner=SamplingRunner(given.core))) as llm:
        params = [
            SamplingParams(
                max_tokens=NUM_TOKENS, seed=seed, repetition_penalty=1.2, presence_penalty=0.1, ignore_eos=True
            )
            for seed in range(3)
        ]
        found = llm.generate([[40 + number] * 10 for number in range(3)], params)
        assert_free(llm.stats())
        llm.audit()
        return [each.token_ids for each in found], llm.stats()["num_preemptions"]


def test_preemption_changes_no_token() -> None:
    roomy, none = answers(full_blocks=64)
    tight, several = answers(full_blocks=6)  # each comes to need 5 blocks
    assert none == 0
    assert several > 0
    assert [len(tokens) for tokens in tight] == [NUM_TOKENS] * 3
    assert tight == roomy
