"""The values that cross a door: frozen, tagged where they may be one of several, cheap to encode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

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
    logprobs            None is off; k >= 0 reports the chosen token and the k most likely ones, of the plain logits
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
    """Log-probability of one generated token (float32 log-softmax of the plain logits), and the likeliest others."""

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


class ToolCall(msgspec.Struct, frozen=True):
    """One whole tool call; `arguments` is the JSON that the model wrote."""

    id: str
    name: str
    arguments: str


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of one prompt, whole.

    prompt_index  which of the prompts
    index         which of its n choices
    text          the content; reasoning and tool calls are found only in answers to a chat
    """

    prompt_index: int
    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_reasoning_tokens: int = 0


class ChatResult(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a chat: its choices (one unless n says otherwise), and the first one's parts by name.

    warnings  oddities of the conversation that were tolerated
    """

    choices: tuple[Completion, ...]
    warnings: tuple[str, ...] = ()

    @property
    def content(self) -> str:
        """What was said."""
        return self.choices[0].text

    @property
    def reasoning(self) -> str:
        """What was thought before."""
        return self.choices[0].reasoning

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Which tools are called."""
        return self.choices[0].tool_calls

    @property
    def finish_reason(self) -> FinishReason:
        """Why it ended."""
        return self.choices[0].finish_reason


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation before it is encoded.

    messages   in the official encoder's words: role, content, tool_calls, tool_call_id, reasoning_content, task, tools
    tools      function tools of the whole request, as the API writes them; () also when tool_choice is "none"
    thinking   None follows the engine's default
    effort     None follows the engine's default; "none" switches thinking off
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    thinking: bool | None = None
    effort: Effort | None = None


class RenderedChat(msgspec.Struct, frozen=True, kw_only=True):
    """An encoded conversation: what `open` takes for a chat, and what it must know to read the answer.

    token_ids   the prompt
    thinking    the answer begins inside the thinking text
    tools       the declared functions, name -> JSON schema of its parameters
    warnings    oddities that were tolerated, for people
    """

    token_ids: tuple[int, ...]
    thinking: bool = False
    tools: dict[str, dict[str, Any]] = {}
    warnings: tuple[str, ...] = ()


Prompt = str | Sequence[int] | RenderedChat
"""What can be continued: raw text, token ids, or an encoded conversation (whose answer is parsed)."""


class Health(msgspec.Struct, frozen=True):
    """Whether an engine makes progress (alive), takes requests (ready), and if not, why."""

    alive: bool
    ready: bool
    reason: str | None = None


class DrainReport(msgspec.Struct, frozen=True):
    """How a drain ended."""

    num_finished: int
    num_aborted: int
    seconds: float


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is known once an engine runs.

    generation       "preview" or "0731": which reasoning efforts the checkpoint's encoder knows
    efforts          the efforts that a request may name
    default_effort   what a request that names none gets
    fingerprint      hash of model, version, kernels and numerics: `system_fingerprint` of the API
    report           the startup report: ten (name, value) lines for people
    """

    served_name: str
    max_model_len: int
    vocab_size: int
    generation: str
    efforts: tuple[str, ...]
    default_effort: str
    fingerprint: str
    report: tuple[tuple[str, str], ...]
