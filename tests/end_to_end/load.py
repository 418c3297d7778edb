"""What the clients of the end-to-end test ask, and what they keep of the answers."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI

CORPUS = Path(__file__).parents[1] / "data" / "corpus"

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "What the weather is like.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
]


@dataclass(frozen=True)
class Ask:
    """One request.

    prompt     token ids of a raw completion, or the text of a chat's user message
    fields     everything else of the body
    leave_at   tokens after which its client leaves, or None
    """

    name: str
    prompt: list[int] | str
    fields: dict[str, Any]
    leave_at: int | None = None


@dataclass
class Answer:
    """What came of it."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    num_prompt_tokens: int | None = None


def sampling(number: int) -> dict[str, Any]:
    """Greedy, and seeded draws of several kinds, in turn."""
    return (
        {"temperature": 0},
        {"temperature": 1.0, "seed": 1000 + number},
        {"temperature": 0.7, "top_p": 0.9, "seed": -number},
        {"temperature": 1.3, "seed": 7, "extra": {"top_k": 50, "min_p": 0.01, "repetition_penalty": 1.1}},
        {"temperature": 0, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    )[number % 5]


def prompt_lengths(count: int, shortest: int, longest: int) -> list[int]:
    """From one end to the other, most of them short: the logarithm grows with the square."""
    return [round(shortest * (longest / shortest) ** ((step / (count - 1)) ** 2)) for step in range(count)]


def asks(client: httpx.Client, rng: random.Random, *, count: int, longest: int, max_tokens: int) -> list[Ask]:
    """Prompts of 5 to `longest` tokens from the corpus: every other a chat, every fourth with tools; a third leaves."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(CORPUS.glob("*.txt"))]
    assert texts, f"{CORPUS} has no texts"
    lengths = prompt_lengths(count, 5, longest)
    found = []
    for number, num_tokens in enumerate(lengths):
        text = rng.choice(texts)
        start = rng.randrange(len(text) - 12 * longest)
        token_ids = _tokenize(client, {"prompt": text[start : start + 12 * num_tokens + 64]})[:num_tokens]
        assert len(token_ids) == num_tokens
        given = dict(sampling(number), max_tokens=max_tokens)
        prompt: list[int] | str = token_ids
        if number % 2:
            prompt = client.post("/detokenize", json={"tokens": token_ids}).json()["prompt"].replace("\ufffd", "")
            given["extra"] = {**given.get("extra", {}), "chat_template_kwargs": {"thinking": number % 3 == 0}}
            if number % 4 == 1:
                given["tools"] = TOOLS
        leave_at = max_tokens // 2 if number % 3 == 2 else None
        found.append(Ask(f"{number}: {num_tokens} tokens", prompt, given, leave_at))
    rng.shuffle(found)
    return found


def _tokenize(client: httpx.Client, body: dict[str, Any]) -> list[int]:
    token_ids: list[int] = client.post("/tokenize", json=body).json()["tokens"]
    return token_ids


async def answer(client: AsyncOpenAI, ask: Ask, *, leave: bool) -> Answer:
    """Streams one answer; with `leave`, the client of a request that is to be left does so in the middle."""
    fields = dict(ask.fields)
    extra = {"return_token_ids": True, **fields.pop("extra", {})}
    options = {"include_usage": True}
    found = Answer()
    stream: Any
    given: dict[str, Any] = {"model": "demo", "stream": True, "stream_options": options, "extra_body": extra, **fields}
    if isinstance(ask.prompt, str):
        stream = await client.chat.completions.create(messages=[{"role": "user", "content": ask.prompt}], **given)
    else:
        stream = await client.completions.create(prompt=ask.prompt, **given)
    async with stream:
        async for chunk in stream:
            if chunk.usage is not None:
                found.num_prompt_tokens = chunk.usage.prompt_tokens
            for choice in chunk.choices:
                _add(found, choice)
            if leave and ask.leave_at is not None and len(found.token_ids) >= ask.leave_at:
                break
    return found


def _add(found: Answer, choice: Any) -> None:
    found.token_ids += (choice.model_extra or {}).get("token_ids", ())
    found.finish_reason = choice.finish_reason or found.finish_reason
    if hasattr(choice, "text"):
        found.text += choice.text
        return
    found.text += (choice.delta.model_extra or {}).get("reasoning_content", "") + (choice.delta.content or "")
    for call in choice.delta.tool_calls or ():
        found.text += (call.function.name or "") + (call.function.arguments or "")
