"""From the fields of a body to sampling parameters; and the fields that are understood but not served.

Ranges are not checked here: the one validator behind the engine does that. What is checked here is what the engine
never sees: labels, deadlines, stream options, fields of features that do not exist.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

import msgspec

from dsv4.serve.bodies import CompletionBody, SamplingFields, given
from dsv4.serve.exchange import check_label
from dsv4.serve.replies import invalid, unsupported
from dsv4.serve.settings import MAX_CHOICES
from dsv4.types import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dsv4.serve.exchange import Exchange

Value = TypeVar("Value")


class _Format(msgspec.Struct):
    type: str


_DEFAULTS = SamplingParams()
_MAX_NAMED = 8


def sampling_params(body: SamplingFields, logprobs: int | None) -> SamplingParams:
    """The parameters of a body; whatever is absent or null takes its default."""
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    allowed = body.allowed_token_ids
    return SamplingParams(
        max_tokens=most,
        min_tokens=_or(body.min_tokens, _DEFAULTS.min_tokens),
        temperature=_or(body.temperature, _DEFAULTS.temperature),
        top_p=_or(body.top_p, _DEFAULTS.top_p),
        top_k=_or(body.top_k, _DEFAULTS.top_k),
        min_p=_or(body.min_p, _DEFAULTS.min_p),
        presence_penalty=_or(body.presence_penalty, _DEFAULTS.presence_penalty),
        frequency_penalty=_or(body.frequency_penalty, _DEFAULTS.frequency_penalty),
        repetition_penalty=_or(body.repetition_penalty, _DEFAULTS.repetition_penalty),
        logit_bias=_or(body.logit_bias, {}),
        allowed_token_ids=None if allowed is None else tuple(allowed),
        seed=body.seed,
        n=_or(body.n, _DEFAULTS.n),
        stop=tuple(stop),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        include_stop_str_in_output=_or(body.include_stop_str_in_output, _DEFAULTS.include_stop_str_in_output),
        ignore_eos=_or(body.ignore_eos, _DEFAULTS.ignore_eos),
        skip_special_tokens=_or(body.skip_special_tokens, _DEFAULTS.skip_special_tokens),
        logprobs=logprobs,
    )


def _or(value: Value | None, default: Value) -> Value:
    return default if value is None else value


def check_fields(body: SamplingFields, exchange: Exchange) -> None:
    """Refuses what cannot be served and what makes no sense; adopts the request id of the body."""
    _refuse_unserved(body)
    for name in ("user", "cache_salt", "session_id"):
        label = getattr(body, name)
        if label is not None:
            check_label(label, name)
    if body.request_id is not None:
        exchange.request_id = check_label(body.request_id, "request_id")
    if body.timeout is not None and not (math.isfinite(body.timeout) and body.timeout > 0):
        raise invalid(f"timeout is {body.timeout}; it is a number of seconds above 0.", "timeout")
    if body.n is not None and not 1 <= body.n <= MAX_CHOICES:
        raise invalid(f"n is {body.n}; it must be from 1 to {MAX_CHOICES}; send several requests instead.", "n")
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options is only for streams; set stream to true or leave it out.", "stream_options")
    if body.return_progress:
        exchange.warn("return_progress has no effect here")


def _refuse_unserved(body: SamplingFields) -> None:
    if body.use_beam_search:
        raise unsupported("Beam search is not served; use sampling with n.", "use_beam_search")
    if body.bad_words:
        raise unsupported("bad_words is not served; use logit_bias with token ids.", "bad_words")
    if body.prompt_logprobs is not None:
        raise unsupported("prompt_logprobs is not served.", "prompt_logprobs")
    if body.truncate_prompt_tokens is not None:
        raise unsupported("truncate_prompt_tokens is not served; shorten the prompt.", "truncate_prompt_tokens")
    if body.thinking_token_budget is not None and body.thinking_token_budget != -1:
        raise unsupported("thinking_token_budget is not served; use max_tokens.", "thinking_token_budget")
    if given(body.response_format) and not _is_text(body.response_format):
        message = (
            "Only response_format {type: text} is served: structured output needs grammars, which do not exist yet."
        )
        raise unsupported(message, "response_format")
    for name in ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"):
        if given(getattr(body, name)):
            raise unsupported(f"{name} is not served: structured output needs grammars, which do not exist yet.", name)
    for name in ("kv_transfer_params", "bootstrap_host", "bootstrap_port", "bootstrap_room"):
        if given(getattr(body, name)):
            raise unsupported(f"{name} is not served: this server does prefill and decode itself.", name)


def _is_text(raw: msgspec.Raw) -> bool:
    try:
        return msgspec.json.decode(raw, type=_Format).type == "text"
    except msgspec.ValidationError:
        raise invalid("response_format is an object with a type.", "response_format") from None


def alternatives(asked: int | None, limit: int, param: str) -> int | None:
    """How many alternatives per token, checked against --max-logprobs."""
    if asked is not None and not 0 <= asked <= limit:
        raise invalid(f"{param} is {asked}; it must be from 0 to {limit} (--max-logprobs).", param)
    return asked


def check_unknown(unknown: Sequence[str], exchange: Exchange) -> None:
    """Warns about fields that nobody knows, or refuses them under --strict-fields."""
    if not unknown:
        return
    shown = [name.encode("ascii", "replace").decode()[:64] for name in unknown[:_MAX_NAMED]]
    if exchange.door.settings.strict_fields:
        raise invalid(f"Unknown field {shown[0]!r} (--strict-fields).", shown[0], code="unknown_parameter")
    names = ", ".join(repr(name) for name in shown)
    more = f" and {len(unknown) - len(shown)} more" if len(unknown) > len(shown) else ""
    exchange.warn(f"ignored unknown fields: {names}{more}")


def check_thinking_absent(body: CompletionBody, exchange: Exchange) -> None:
    """Says that raw completions do not think, when the body asks for it."""
    asked = (
        body.chat_template_kwargs,
        body.thinking,
        body.think,
        body.reasoning_effort,
        body.reasoning,
        body.output_config,
    )
    if any(field is not None for field in asked):
        exchange.warn("reasoning fields have no effect on raw completions")
