"""`POST /v1/chat/completions`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgspec import UNSET, UnsetType

from dsv4.errors import Dsv4Error
from dsv4.serve.bodies import (
    CalledFunction,
    CallPiece,
    ChatBody,
    ChatChoice,
    ChatMessage,
    ChatReply,
    encode,
    given,
)
from dsv4.serve.conversation import chat_request
from dsv4.serve.decoding import BodyDecoder
from dsv4.serve.frames import ChatFrames, Shape, Tally
from dsv4.serve.logprobs import LogprobForm
from dsv4.serve.replies import Refusal, as_refusal, invalid, unsupported
from dsv4.serve.sampling import alternatives, check_fields, check_unknown, sampling_params
from dsv4.serve.work import gather, opened, pump, within

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dsv4.serve.exchange import Exchange
    from dsv4.types import Delta, SamplingParams, ToolCallDelta

_decoder = BodyDecoder(ChatBody)
_PARAMS = {"prompt": "messages", "logprobs": "top_logprobs"}


async def answer(exchange: Exchange) -> None:
    """One chat completion, streamed or whole."""
    exchange.door.take_work()
    body, unknown = _decoder.decode(await exchange.read_json())
    check_unknown(unknown, exchange)
    exchange.door.check_model(body.model)
    check_fields(body, exchange)
    _check_chat(body, exchange)
    try:
        await exchange.while_connected(within(body.timeout, _generate(exchange, body, _params(body, exchange))))
    except Dsv4Error as error:
        if exchange.started:
            raise
        raise _in_words_of_chat(as_refusal(error), body) from error


def _params(body: ChatBody, exchange: Exchange) -> SamplingParams:
    limit = exchange.door.settings.max_logprobs
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs needs logprobs: true.", "top_logprobs")
    logprobs = alternatives(body.top_logprobs or 0, limit, "top_logprobs") if body.logprobs else None
    return sampling_params(body, logprobs)


async def _generate(exchange: Exchange, body: ChatBody, params: SamplingParams) -> None:
    door = exchange.door
    prompt = await door.engine.render(chat_request(body, exchange))
    for oddity in prompt.warnings:
        exchange.warn(oddity)
    tally = Tally()
    logprobs = None
    if params.logprobs is not None:
        logprobs = LogprobForm(door.engine.tokenizer, as_ids=bool(body.return_tokens_as_token_ids))
    options = body.stream_options
    shape = Shape(
        reply_id=f"chatcmpl-{exchange.request_id}",
        object="chat.completion.chunk",
        created=int(time.time()),
        model=door.engine.info.served_name,
        fingerprint=door.fingerprint,
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.continuous_usage_stats),
        show_reasoning=body.include_reasoning is not False,
        show_token_ids=bool(body.return_token_ids),
    )
    async with opened(exchange, [prompt], params, body) as streams:
        if body.stream:
            await pump(exchange, streams, ChatFrames(shape, tally, logprobs), tally, params.n)
            return
        found = await gather(streams, tally, params.n)
    reply = ChatReply(
        id=shape.reply_id,
        object="chat.completion",
        created=shape.created,
        model=shape.model,
        choices=[_choice(delta, shape, logprobs) for delta in found],
        usage=tally.usage(),
        system_fingerprint=shape.fingerprint,
        prompt_token_ids=list(prompt.token_ids) if shape.show_token_ids else UNSET,
    )
    await exchange.reply(200, encode(reply))


def _choice(delta: Delta, shape: Shape, logprobs: LogprobForm | None) -> ChatChoice:
    calls = whole_calls(delta.tool_calls)
    reasoning: str | UnsetType = delta.reasoning if delta.reasoning and shape.show_reasoning else UNSET
    content = None if calls and not delta.content else delta.content
    return ChatChoice(
        index=delta.index,
        message=ChatMessage("assistant", content, reasoning, calls or UNSET),
        logprobs=logprobs.chat(delta) if logprobs is not None else None,
        finish_reason=delta.finish_reason,
        stop_reason=delta.stop_reason,
        token_ids=list(delta.token_ids) if shape.show_token_ids else UNSET,
    )


def whole_calls(pieces: Sequence[ToolCallDelta]) -> list[CallPiece]:
    """Tool calls put together from their pieces."""
    ids: dict[int, tuple[str, str]] = {}
    arguments: dict[int, list[str]] = {}
    for piece in pieces:
        if piece.id is not None:
            ids[piece.index] = (piece.id, piece.name or "")
        arguments.setdefault(piece.index, []).append(piece.arguments)
    return [
        CallPiece(CalledFunction(name, "".join(arguments[index])), UNSET, call_id, "function")
        for index, (call_id, name) in ids.items()
    ]


def _check_chat(body: ChatBody, exchange: Exchange) -> None:
    """Refuses what §3.1 of the interface refuses, and what waits for grammars."""
    for name in ("audio", "chat_template", "function_call", "functions"):
        if given(getattr(body, name)):
            raise unsupported(_REFUSED[name], name)
    if any(modality != "text" for modality in body.modalities or ()):
        raise unsupported("Only the text modality is served.", "modalities")
    if body.continue_final_message:
        raise unsupported("continue_final_message is not served.", "continue_final_message")
    if body.add_generation_prompt is False:
        raise unsupported(
            "add_generation_prompt: false is not served; it would leave nothing to generate.", "add_generation_prompt"
        )
    choice = body.tool_choice
    if choice is not None and choice not in ("none", "auto"):
        if isinstance(choice, str) and choice != "required":
            raise invalid("tool_choice is none, auto, required or a named function.", "tool_choice")
        message = "tool_choice required or named is not served: it needs grammars, which do not exist yet; use auto."
        raise unsupported(message, "tool_choice")
    if body.parallel_tool_calls is False and body.tools:
        exchange.warn("parallel_tool_calls: false is not enforced")
    if given(body.prediction):
        exchange.warn("prediction has no effect here")


_REFUSED = {
    "audio": "Audio is not served.",
    "chat_template": "Chat templates are not taken: the prompt format belongs to the checkpoint.",
    "function_call": "function_call is the old form; use tools and tool_choice.",
    "functions": "functions is the old form; use tools.",
}


def _in_words_of_chat(refusal: Refusal, body: ChatBody) -> Refusal:
    """The validator speaks of a prompt and of max_tokens; a chat has messages, and perhaps max_completion_tokens."""
    message, param = str(refusal), _PARAMS.get(refusal.param or "", refusal.param)
    if param == "max_tokens" and body.max_completion_tokens is not None:
        param = "max_completion_tokens"
        message = message.replace("max_tokens", param)
    return Refusal(refusal.status, refusal.code, message, param=param, headers=refusal.headers)
