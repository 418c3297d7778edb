"""`POST /tokenize` and `/detokenize`: what a prompt becomes, without generating anything."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgspec import UNSET

from dsv4.serve.bodies import DetokenizeBody, DetokenizeReply, TokenizeBody, TokenizeReply, encode
from dsv4.serve.conversation import chat_request
from dsv4.serve.decoding import BodyDecoder
from dsv4.serve.replies import invalid, unsupported
from dsv4.serve.sampling import check_unknown
from dsv4.serve.settings import MAX_DETOKENIZED

if TYPE_CHECKING:
    from dsv4.serve.exchange import Exchange

_tokenize = BodyDecoder(TokenizeBody)
_detokenize = BodyDecoder(DetokenizeBody)


async def tokenize(exchange: Exchange) -> None:
    """The ids of a raw prompt, as completions would take it, or of a conversation, as chat would."""
    body, unknown = _tokenize.decode(await exchange.read_json())
    check_unknown(unknown, exchange)
    exchange.door.check_model(body.model)
    token_ids = await exchange.while_connected(_ids_of(body, exchange))
    tokenizer = exchange.door.engine.tokenizer
    texts = [tokenizer.token_bytes(token).decode("utf-8", "replace") for token in token_ids]
    reply = TokenizeReply(
        tokens=token_ids,
        count=len(token_ids),
        max_model_len=exchange.door.engine.info.max_model_len,
        token_strs=texts if body.return_token_strs else UNSET,
    )
    await exchange.reply(200, encode(reply))


async def _ids_of(body: TokenizeBody, exchange: Exchange) -> list[int]:
    engine = exchange.door.engine
    if (body.prompt is None) == (body.messages is None):
        raise invalid("Send prompt or messages, and not both.", "prompt")
    if body.prompt is not None:
        exchange.door.check_length((body.prompt,), "prompt")
        tokenizer = engine.tokenizer
        token_ids = await asyncio.to_thread(tokenizer.encode, body.prompt, control=True)
        return [tokenizer.bos_id, *token_ids] if body.add_special_tokens else token_ids
    if body.add_generation_prompt is False:
        message = "add_generation_prompt: false is not served; the encoder always opens the answer."
        raise unsupported(message, "add_generation_prompt")
    rendered = await engine.render(chat_request(body, exchange))
    for oddity in rendered.warnings:
        exchange.warn(oddity)
    return list(rendered.token_ids)


async def detokenize(exchange: Exchange) -> None:
    """The text of ids, control tokens included."""
    body, unknown = _detokenize.decode(await exchange.read_json())
    check_unknown(unknown, exchange)
    exchange.door.check_model(body.model)
    if len(body.tokens) > MAX_DETOKENIZED:
        raise invalid(f"tokens has {len(body.tokens)} entries; at most {MAX_DETOKENIZED} are taken.", "tokens")
    decode = exchange.door.engine.tokenizer.decode
    text = await exchange.while_connected(asyncio.to_thread(decode, body.tokens))
    await exchange.reply(200, encode(DetokenizeReply(text)))
