"""Random bodies, mostly wrong, against the door over the real engine and text: never a 5xx, and the engine lives on."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest
from tests.serve.harness import listening

from dsv4.engine.engine import AsyncEngine
from dsv4.engine.null import null_parts
from dsv4.serve.bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from dsv4.serve.settings import ServeSettings

pytestmark = pytest.mark.anyio

NUM_BODIES = 400
BODIES: dict[str, type[msgspec.Struct]] = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
}
TEXTS = (
    "",
    "Hi",
    "none",
    "max",
    "auto",
    "text",
    "function",
    "user",
    "\x00",
    "\uff5cDSML\uff5c",
    "</think>",
    "\U0001f600" * 50,
)
NUMBERS = (0, 1, 2, -1, 16, 17, 300, 4096, 2**31, 2**53, 2**63, -(2**63), 10**25, 0.5, -0.5, 1e-300, 1e300, 2.0)


def value(rng: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can say."""
    kind = rng.randrange(7 if depth < 4 else 4)
    match kind:
        case 0:
            return rng.choice((None, True, False))
        case 1:
            return rng.choice(NUMBERS)
        case 2 | 3:
            return rng.choice(TEXTS)
        case 4:
            return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
        case 5:
            return message(rng, depth)
        case _:
            return {rng.choice((*TEXTS, "type", "effort", "function", "name")): value(rng, depth + 1) for _ in range(3)}


def message(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A message, with something wrong about it every other time."""
    found: dict[str, Any] = {
        "role": rng.choice(("system", "developer", "user", "assistant", "tool", "latest_reminder")),
        "content": rng.choice(TEXTS),
    }
    extras = ("role", "content", "tool_calls", "tool_call_id", "reasoning_content", "name", "task", "tools", "odd")
    if rng.random() < 0.5:
        found[rng.choice(extras)] = value(rng, depth + 1)
    if rng.random() < 0.2:
        arguments = rng.choice(('{"a": 1}', "{", "[]", "null", '{"a": NaN}', '{"a": 1e999}', '{"\\ud800": 1}'))
        found["tool_calls"] = [{"id": "x", "function": {"name": rng.choice(TEXTS), "arguments": arguments}}]
    return found


def body(rng: random.Random, path: str) -> dict[str, Any]:
    """A body that would do, with up to three fields that may not."""
    fields = [item.encode_name for item in msgspec.structs.fields(BODIES[path])]
    found: dict[str, Any]
    match path:
        case "/v1/chat/completions":
            found = {"messages": [message(rng) for _ in range(rng.randrange(1, 4))], "max_tokens": 2}
        case "/v1/completions":
            found = {"prompt": rng.choice(("Hi", [5, 6], ["a", "b"], [[1], [2, 3]])), "max_tokens": 2}
        case "/tokenize":
            found = {"messages": [message(rng)]} if rng.random() < 0.5 else {"prompt": rng.choice(TEXTS)}
        case _:
            found = {"tokens": [rng.choice(NUMBERS) for _ in range(3)]}
    for name in rng.sample(fields, rng.randrange(min(4, len(fields)))):
        found[name] = value(rng)
    return found


async def test_no_body_is_answered_with_a_5xx(rng: random.Random) -> None:
    statuses: dict[int, int] = {}
    async with (
        AsyncEngine.over(null_parts(lambda _, position: 1000 + position % 1000, max_output_items=1 << 16)) as engine,
        listening(engine, ServeSettings()) as (_, _, client),
    ):
        for _ in range(NUM_BODIES):
            path = rng.choice(list(BODIES))
            sent = json.dumps(body(rng, path))
            response = await client.post(path, content=sent, headers={"content-type": "application/json"})
            statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
            assert response.status_code in {200, 400, 404, 504}, (path, sent, response.text)
            if response.status_code != 200:
                assert response.json()["error"]["message"], sent
        stats = await engine.stats()
        assert stats["num_running"] + stats["num_waiting"] == 0
        await engine.audit()
    assert statuses[200] > NUM_BODIES // 20, statuses
    assert statuses[400] > NUM_BODIES // 20, statuses
