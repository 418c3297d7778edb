"""The values that cross a door: frozen, tagged where they may be one of several, cheap to encode."""

from __future__ import annotations

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "tool_calls", "abort", "error"]
Effort = Literal["none", "low", "high", "max"]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to continue one prompt. Ranges are checked by the one validator, in the Rust core.

    max_tokens          most tokens to generate, or None for what fits the context
    min_tokens          end of sequence and stops are masked before this many tokens
    temperature         0 is greedy (ties go to the lowest id), at most 2
    top_k               0 or -1 is off
    seed                int64; equal seeds give equal tokens whatever else is in the batch; None draws one
    n                   choices from the same prompt
    logprobs            None is off; k >= 0 reports the chosen token and the k most likely ones, of the unmodified logits
    stop                strings that end the content; cut from it unless include_stop_str_in_output
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: tuple[int, ...] | None = None
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None


class TokenLogprob(msgspec.Struct, frozen=True):
    """Log-probability of one generated token (float32 log-softmax of the unmodified logits) and its top alternatives."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A piece of one tool call; `id` and `name` come once, on the first piece, whose arguments are empty."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


class Delta(msgspec.Struct, frozen=True):
    """What one choice gained since the last delta. Text never splits a code point; joined deltas are the whole text.

    token_ids          every token sampled, hidden ones (end of sequence, markup) included
    finish_reason      set on the last delta of a choice, exactly once
    stop_reason        the stop string or stop token id that ended it, None for end of sequence
    num_prompt_tokens, num_cached_tokens, num_generated_tokens, num_reasoning_tokens   running totals of the choice
    """

    index: int
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0
    num_reasoning_tokens: int = 0
