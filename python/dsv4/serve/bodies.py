"""The structures of requests and replies, in the words of the OpenAI API; decoded and encoded by msgspec.

Requests: every field is optional and may be null, since clients send both. Whole numbers are bounded to 64 bits here;
the ranges that mean something are checked by the one validator behind the engine. Fields that are read only to be
refused or to be ignored are `Raw`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

Int = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]

ABSENT = Raw(b"null")
"""A raw field that was not sent, or sent as null: msgspec decodes Raw alone, never Raw in a union."""


class StreamOptions(Struct, frozen=True):
    """`stream_options`."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Thinking(Struct, frozen=True):
    """`thinking`, as DeepSeek's API spells it."""

    type: Literal["enabled", "disabled", "adaptive"] | None = None
    budget_tokens: Int | None = None


class TemplateKwargs(Struct, frozen=True):
    """`chat_template_kwargs`, as vLLM and SGLang spell reasoning."""

    thinking: bool | None = None
    enable_thinking: bool | None = None
    reasoning_effort: str | None = None


class EffortField(Struct, frozen=True):
    """`reasoning` and `output_config`: an object with an effort."""

    effort: str | None = None


class Part(Struct, frozen=True):
    """One part of a message's content."""

    type: str
    text: str | None = None


class FunctionCall(Struct, frozen=True):
    """The function of one earlier tool call."""

    name: str
    arguments: Raw = ABSENT


class ToolCall(Struct, frozen=True):
    """One earlier tool call."""

    function: FunctionCall
    id: str | None = None
    type: str | None = None


class Message(Struct, frozen=True):
    """One message of a conversation."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    function_call: Raw = ABSENT
    task: str | None = None
    tools: list[dict[str, object]] | None = None


class ThinkingFields(Struct, frozen=True, kw_only=True):
    """Every published spelling of reasoning."""

    chat_template_kwargs: TemplateKwargs | None = None
    thinking: Thinking | None = None
    think: bool | None = None
    reasoning_effort: str | None = None
    reasoning: EffortField | None = None
    output_config: EffortField | None = None
    thinking_token_budget: Int | None = None


class SamplingFields(ThinkingFields, frozen=True, kw_only=True):
    """What chat and completions share; completions have no thinking, and say so when it is asked for."""

    model: str | None = None
    max_completion_tokens: Int | None = None
    max_tokens: Int | None = None
    min_tokens: Int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[TokenId, float] | None = None
    allowed_token_ids: list[TokenId] | None = None
    n: Int | None = None
    seed: Int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Int | None = None
    timeout: float | None = None
    user: str | None = None
    cache_salt: str | None = None
    session_id: str | None = None
    request_id: str | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    # served when asked for nothing, refused when asked for something
    use_beam_search: bool | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: Int | None = None
    truncate_prompt_tokens: Int | None = None
    response_format: Raw = ABSENT
    structured_outputs: Raw = ABSENT
    guided_json: Raw = ABSENT
    guided_regex: Raw = ABSENT
    guided_choice: Raw = ABSENT
    guided_grammar: Raw = ABSENT
    kv_transfer_params: Raw = ABSENT
    bootstrap_host: Raw = ABSENT
    bootstrap_port: Raw = ABSENT
    bootstrap_room: Raw = ABSENT

    # known, without effect here
    return_progress: bool | None = None
    store: Raw = ABSENT
    metadata: Raw = ABSENT
    service_tier: Raw = ABSENT
    safety_identifier: Raw = ABSENT
    prompt_cache_key: Raw = ABSENT
    verbosity: Raw = ABSENT


class ChatBody(SamplingFields, frozen=True, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: list[Message]
    tools: list[dict[str, object]] | None = None
    tool_choice: str | dict[str, object] | None = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    audio: Raw = ABSENT
    modalities: list[str] | None = None
    chat_template: Raw = ABSENT
    function_call: Raw = ABSENT
    functions: Raw = ABSENT
    prediction: Raw = ABSENT


class CompletionBody(SamplingFields, frozen=True, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str | list[str | TokenId | list[TokenId]]
    echo: bool | None = None
    logprobs: Int | None = None
    suffix: str | None = None
    best_of: Int | None = None
    add_special_tokens: bool | None = None


class TokenizeBody(ThinkingFields, frozen=True, kw_only=True):
    """`POST /tokenize`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[dict[str, object]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Struct, frozen=True, kw_only=True):
    """`POST /detokenize`."""

    tokens: list[TokenId]
    model: str | None = None


# Replies


class PromptDetails(Struct, frozen=True):
    """Part of `usage`."""

    cached_tokens: int


class CompletionDetails(Struct, frozen=True):
    """Part of `usage`."""

    reasoning_tokens: int


class Usage(Struct, frozen=True):
    """Tokens of one request; the prompt counts once for any number of choices. The last two are DeepSeek's names."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails
    prompt_cache_hit_tokens: int
    prompt_cache_miss_tokens: int


class TopLogprob(Struct, frozen=True):
    """One alternative of one token, in the chat form."""

    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(Struct, frozen=True):
    """One token, in the chat form."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    """`logprobs` of a chat choice; `reasoning` holds the tokens of the thinking text."""

    content: list[ContentLogprob]
    reasoning: list[ContentLogprob] | UnsetType = UNSET


class CompletionLogprobs(Struct, frozen=True):
    """`logprobs` of a completions choice."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CalledFunction(Struct, frozen=True):
    """The function of a tool call, or a piece of it."""

    name: str | UnsetType = UNSET
    arguments: str = ""


class CallPiece(Struct, frozen=True):
    """A piece of a tool call in a stream, or a whole one; `id`, `type` and the name come with the first piece."""

    function: CalledFunction
    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class ChatMessage(Struct, frozen=True):
    """The answer of one choice."""

    role: str
    content: str | None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CallPiece] | UnsetType = UNSET


class ChatDelta(Struct, frozen=True):
    """What one frame adds to the answer."""

    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CallPiece] | UnsetType = UNSET


class ChatChoice(Struct, frozen=True):
    """One choice of a whole reply."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None
    token_ids: list[int] | UnsetType = UNSET


class ChatReply(Struct, frozen=True):
    """`chat.completion`."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    prompt_token_ids: list[int] | UnsetType = UNSET


class ChatChunkChoice(Struct, frozen=True):
    """One choice of one frame."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class TextChoice(Struct, frozen=True):
    """One choice of completions, whole or one frame's part of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class TextReply(Struct, frozen=True):
    """`text_completion`."""

    id: str
    object: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    system_fingerprint: str


class ModelCard(Struct, frozen=True):
    """One entry of `/v1/models`."""

    id: str
    object: str
    created: int
    owned_by: str
    max_model_len: int
    root: str
    reasoning_efforts: list[str]
    default_reasoning_effort: str


class ModelList(Struct, frozen=True):
    """`/v1/models`."""

    object: str
    data: list[ModelCard]


class TokenizeReply(Struct, frozen=True):
    """`/tokenize`."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | UnsetType = UNSET


class DetokenizeReply(Struct, frozen=True):
    """`/detokenize`."""

    prompt: str


class Version(Struct, frozen=True):
    """`/version`."""

    version: str
    torch: str | None


class Status(Struct, frozen=True):
    """`/health` and `/ready`, for who may know."""

    status: str
    reason: str | None = None


def given(raw: Raw) -> bool:
    """Whether a field that is kept raw was sent with anything but null."""
    return bytes(raw) != b"null"


encode = msgspec.json.Encoder().encode
