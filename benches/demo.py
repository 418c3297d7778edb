"""Tokens per second of the embedded demo checkpoint: one stream, and sixteen at once."""

from __future__ import annotations

import statistics
import time

from dsv4 import LLM, SamplingParams

PROMPT = "It is a truth universally acknowledged, that a single man in possession of a good fortune "
CONCURRENCY = 16
NUM_TOKENS = 64
PREFILL_TOKENS = 1024
REPEATS = 3


def measure() -> list[tuple[str, str]]:
    """Rows of (name, value)."""
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
    with LLM("demo") as llm:
        llm.generate([PROMPT], params)  # the first call pays for what torch sets up once
        single = _median_rate(llm, 1, params)
        several = _median_rate(llm, CONCURRENCY, params)
        prefill = _prefill_rate(llm)
    return [
        ("decode, 1 stream, tok/s", f"{single:.1f}"),
        (f"decode, {CONCURRENCY} streams together, tok/s", f"{several:.1f}"),
        (f"{CONCURRENCY} streams against 1", f"{several / single:.2f}x"),
        (f"prefill of {PREFILL_TOKENS} tokens, tok/s", f"{prefill:.0f}"),
    ]


def _median_rate(llm: LLM, concurrency: int, params: SamplingParams) -> float:
    rates = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        done = llm.generate([PROMPT] * concurrency, params)
        seconds = time.perf_counter() - started
        rates.append(sum(len(completion.token_ids) for completion in done) / seconds)
    return statistics.median(rates)


def _prefill_rate(llm: LLM) -> float:
    prompt = [3 + number % 1000 for number in range(PREFILL_TOKENS)]
    started = time.perf_counter()
    llm.generate([prompt], SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True))
    return PREFILL_TOKENS / (time.perf_counter() - started)


if __name__ == "__main__":
    for name, value in measure():
        print(f"{name:40} {value}")
