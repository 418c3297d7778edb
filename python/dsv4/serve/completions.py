"""`POST /v1/completions`: raw text or token ids, without any chat format."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from msgspec import UNSET

from dsv4.serve.bodies import CompletionBody, TextChoice, TextReply, encode
from dsv4.serve.decoding import BodyDecoder
from dsv4.serve.frames import Shape, Tally, TextFrames
from dsv4.serve.logprobs import LogprobForm
from dsv4.serve.replies import invalid, unsupported
from dsv4.serve.sampling import alternatives, check_fields, check_thinking_absent, check_unknown, sampling_params
from dsv4.serve.settings import MAX_PROMPTS
from dsv4.serve.work import gather, opened, pump, within

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dsv4.serve.exchange import Exchange
    from dsv4.types import Delta, SamplingParams

_decoder = BodyDecoder(CompletionBody)

TextPrompt = str | list[int]


async def answer(exchange: Exchange) -> None:
    """One completion per prompt and choice, streamed or whole."""
    exchange.door.take_work()
    body, unknown = _decoder.decode(await exchange.read_json())
    check_unknown(unknown, exchange)
    exchange.door.check_model(body.model)
    check_fields(body, exchange)
    check_thinking_absent(body, exchange)
    _check_completion(body)
    prompts = prompts_of(body)
    for prompt in prompts:
        if isinstance(prompt, str):
            exchange.door.check_length((prompt,), "prompt")
    limit = exchange.door.settings.max_logprobs
    params = sampling_params(body, alternatives(body.logprobs, limit, "logprobs"))
    await exchange.while_connected(within(body.timeout, _generate(exchange, body, prompts, params)))


def _check_completion(body: CompletionBody) -> None:
    if body.suffix:
        raise unsupported("suffix is not served.", "suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise unsupported("best_of other than n is not served.", "best_of")
    if body.echo and body.logprobs is not None:
        raise unsupported("echo with logprobs is not served: prompt log-probabilities do not exist yet.", "echo")


def prompts_of(body: CompletionBody) -> list[TextPrompt]:
    """The prompts of a body, one or many. Raises Refusal when forms are mixed, or when there is nothing."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [_not_empty(prompt, "prompt")]
    ids = [item for item in prompt if isinstance(item, int)]
    if ids and len(ids) == len(prompt):
        return [ids]
    texts = [item for item in prompt if isinstance(item, str)]
    lists = [item for item in prompt if isinstance(item, list)]
    if len(texts) != len(prompt) and len(lists) != len(prompt):
        raise invalid("prompt mixes texts, ids and lists of ids; use one form.", "prompt")
    if not 1 <= len(prompt) <= MAX_PROMPTS:
        raise invalid(f"prompt has {len(prompt)} entries; it must have 1 to {MAX_PROMPTS}.", "prompt")
    several: Sequence[TextPrompt] = texts or lists
    return [_not_empty(item, f"prompt[{number}]") for number, item in enumerate(several)]


def _not_empty(prompt: TextPrompt, name: str) -> TextPrompt:
    if not prompt:
        raise invalid(f"{name} is empty; it needs at least one token.", "prompt")
    return prompt


async def _generate(
    exchange: Exchange, body: CompletionBody, prompts: Sequence[TextPrompt], params: SamplingParams
) -> None:
    door = exchange.door
    tokenizer = door.engine.tokenizer
    if body.add_special_tokens:
        prompts = [await asyncio.to_thread(_with_bos, exchange, prompt) for prompt in prompts]
    echoes: list[str] | None = None
    if body.echo:
        echoes = [prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in prompts]
    tally = Tally()
    logprobs = None
    if params.logprobs is not None:
        logprobs = LogprobForm(tokenizer, as_ids=bool(body.return_tokens_as_token_ids))
    options = body.stream_options
    shape = Shape(
        reply_id=f"cmpl-{exchange.request_id}",
        object="text_completion",
        created=int(time.time()),
        model=door.engine.info.served_name,
        fingerprint=door.fingerprint,
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.continuous_usage_stats),
        show_token_ids=bool(body.return_token_ids),
    )
    async with opened(exchange, prompts, params, body) as streams:
        if body.stream:
            await pump(exchange, streams, TextFrames(shape, tally, logprobs, echoes, params.n), tally, params.n)
            return
        found = await gather(streams, tally, params.n)
    reply = TextReply(
        id=shape.reply_id,
        object=shape.object,
        created=shape.created,
        model=shape.model,
        choices=[
            _choice(delta, shape, logprobs, "" if echoes is None else echoes[delta.index // params.n])
            for delta in found
        ],
        usage=tally.usage(),
        system_fingerprint=shape.fingerprint,
    )
    await exchange.reply(200, encode(reply))


def _with_bos(exchange: Exchange, prompt: TextPrompt) -> TextPrompt:
    tokenizer = exchange.door.engine.tokenizer
    ids = tokenizer.encode(prompt, control=True) if isinstance(prompt, str) else prompt
    return [tokenizer.bos_id, *ids]


def _choice(delta: Delta, shape: Shape, logprobs: LogprobForm | None, echo: str) -> TextChoice:
    return TextChoice(
        index=delta.index,
        text=echo + delta.content,
        logprobs=logprobs.completion(delta, delta.index) if logprobs is not None else None,
        finish_reason=delta.finish_reason,
        stop_reason=delta.stop_reason,
        token_ids=list(delta.token_ids) if shape.show_token_ids else UNSET,
    )
