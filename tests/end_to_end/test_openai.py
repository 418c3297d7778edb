"""The `openai` package and 32 users against the whole engine: nothing is lost, mixed up or left behind."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterator

import httpx
import pytest
from openai import AsyncOpenAI
from tests.end_to_end.load import Answer, Ask, answer, asks
from tests.serve.process import ServerProcess

pytestmark = pytest.mark.anyio

NUM_STREAMS = 32
LONGEST_PROMPT = 3_000
MAX_TOKENS = 16

POOL_BLOCKS = re.compile(r'dsv4:pool_blocks\{[^}]*group="(\w+)"[^}]*state="(\w+)"[^}]*\} (\S+)')


def pools(http: httpx.Client) -> dict[str, dict[str, int]]:
    """Blocks by group and state."""
    found: dict[str, dict[str, int]] = {}
    for group, state, value in POOL_BLOCKS.findall(http.get("/metrics").text):
        found.setdefault(group, {})[state] = int(float(value))
    return found


def check_all_blocks_are_free(http: httpx.Client, before: dict[str, dict[str, int]]) -> None:
    """None is held by anybody; those that only the prefix cache keeps can be taken like free ones."""
    now = pools(http)
    assert set(now) == {"full", "swa", "state"}
    for group, states in now.items():
        num_blocks = sum(states.values())
        assert states["free"] + states["cached"] == num_blocks > 0, (group, states)
        assert num_blocks == sum(before[group].values()), (group, states, before)


async def until_idle(http: httpx.Client) -> None:
    """Until the engine has nothing to do; the aborts of clients that left may still be on their way."""
    async with asyncio.timeout(30):
        while not _is_idle(await asyncio.to_thread(lambda: http.get("/metrics").text)):
            pass


def num_aborted(http: httpx.Client) -> int:
    """Requests that ended because their client left."""
    found = re.findall(r'dsv4:aborts_total\{[^}]*reason="client"[^}]*\} (\S+)', http.get("/metrics").text)
    return sum(int(float(value)) for value in found)


def _is_idle(metrics: str) -> bool:
    counts = re.findall(r"dsv4:num_requests_(?:running|waiting)\{[^}]*\} (\S+)", metrics)
    assert len(counts) == 2
    return set(counts) == {"0.0"}


@pytest.mark.timeout(300)
async def test_streams_side_by_side_equal_streams_alone_and_leave_no_block_behind(
    server: ServerProcess, http: httpx.Client, rng: random.Random
) -> None:
    todo = asks(http, rng, count=NUM_STREAMS, longest=LONGEST_PROMPT, max_tokens=MAX_TOKENS)
    before = pools(http)
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=240) as client:
        together = await asyncio.gather(*(answer(client, ask, leave=True) for ask in todo))
        await until_idle(http)
        check_all_blocks_are_free(http, before)
        assert 0 < num_aborted(http) <= sum(ask.leave_at is not None for ask in todo)
        alone = [await answer(client, ask, leave=False) for ask in todo]
    await until_idle(http)
    check_all_blocks_are_free(http, before)
    num_left = sum(ask.leave_at is not None for ask in todo)
    assert num_left >= NUM_STREAMS // 3
    assert {bool(ask.fields.get("tools")) for ask in todo} == {True, False}
    wrong = [
        line for ask, one, other in zip(todo, together, alone, strict=True) for line in differences(ask, one, other)
    ]
    assert not wrong, "\n".join(wrong)


def differences(ask: Ask, together: Answer, alone: Answer) -> Iterator[str]:
    """What of one request's answer depended on its neighbours."""
    if len(alone.token_ids) != MAX_TOKENS and alone.finish_reason == "length":
        yield f"{ask.name}: {len(alone.token_ids)} tokens at finish length"
    if alone.num_prompt_tokens is None or alone.finish_reason is None:
        yield f"{ask.name}: no usage or no finish"
    if ask.leave_at is None:
        if together != alone:
            yield f"{ask.name}: {together} is not {alone}"
    elif together.finish_reason is None and len(together.token_ids) < ask.leave_at:
        yield f"{ask.name}: left after {len(together.token_ids)} tokens"
    elif together.token_ids != alone.token_ids[: len(together.token_ids)] or not alone.text.startswith(together.text):
        yield f"{ask.name}: {together} does not begin {alone}"
