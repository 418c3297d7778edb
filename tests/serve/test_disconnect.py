"""A client that leaves takes its request with it: in every phase, streaming or not, within one step of the loop."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.serve.harness import CHAT, WAIT_S, Served, aborted, serving, undisturbed
from tests.serve.stand_in import StandIn

from dsv4.errors import RequestFailed

pytestmark = pytest.mark.anyio

CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"


async def leave_after(served: Served, path: str, body: dict[str, object]) -> asyncio.StreamWriter:
    """Sends a request over a connection of its own."""
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    return writer


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("path", "body"), [(CHAT_PATH, CHAT), (TEXT_PATH, {"prompt": "Hi"})])
async def test_a_running_request_is_aborted(path: str, body: dict[str, object], *, stream: bool) -> None:
    engine = StandIn()
    async with serving(engine) as served, undisturbed(served):
        writer = await leave_after(served, path, {**body, "stream": stream})
        request = await engine.opened()
        request.say("half")
        writer.close()
        await aborted(request)
        assert len(engine.running) == 1, "only the neighbour is left"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_queued_request_is_aborted(*, stream: bool) -> None:
    engine = StandIn(max_running=1)
    async with serving(engine) as served, undisturbed(served):
        writer = await leave_after(served, CHAT_PATH, {**CHAT, "stream": stream})
        request = await engine.opened()
        assert engine.waiting == [request]
        writer.close()
        await aborted(request)
        assert engine.waiting == []


async def test_a_request_that_is_being_rendered_never_starts() -> None:
    engine = StandIn()
    async with serving(engine) as served, undisturbed(served):
        engine.rendering = asyncio.Event()
        writer = await leave_after(served, CHAT_PATH, dict(CHAT))
        while len(engine.rendered) < 2:
            await served.get("/health")
        writer.close()
        while "499" not in (await served.get("/metrics")).text:
            pass
        engine.rendering.set()
        assert len(engine.running) == 1


async def test_every_prompt_of_a_request_is_aborted() -> None:
    engine = StandIn()
    async with serving(engine) as served:
        writer = await leave_after(served, TEXT_PATH, {"prompt": ["a", "b", "c"], "stream": True})
        requests = [await engine.opened() for _ in range(3)]
        requests[1].finish()
        writer.close()
        await aborted(requests[0])
        await aborted(requests[2])
        assert not requests[1].aborted.is_set()
        assert engine.running == []


async def test_one_prompt_that_fails_ends_the_others() -> None:
    engine = StandIn()
    async with serving(engine) as served:
        async with served.events(TEXT_PATH, {"prompt": ["a", "b"]}) as events:
            first, second = [await engine.opened() for _ in range(2)]
            first.fail(RequestFailed("logits were not finite", "numerical_error"))
            (frame,) = await events.rest()
        assert frame["error"]["code"] == "numerical_error"
        await aborted(second)


async def test_a_stream_that_was_left_is_counted_as_499() -> None:
    engine = StandIn()
    async with serving(engine) as served:
        writer = await leave_after(served, CHAT_PATH, dict(CHAT))
        request = await engine.opened()
        writer.close()
        await aborted(request)
        metrics = (await served.get("/metrics")).text
    name = 'dsv4:http_requests_total{engine="0",model_name="stand-in",route="/v1/chat/completions",status="499"}'
    assert f"{name} 1.0" in metrics


async def test_a_finished_request_is_not_aborted_by_closing(served: Served) -> None:
    served.engine.script = None
    writer = await leave_after(served, CHAT_PATH, dict(CHAT))
    request = await served.engine.opened()
    request.finish(text="all")
    await asyncio.wait_for(request.left.wait(), WAIT_S)
    writer.close()
    assert not request.aborted.is_set()


async def test_a_deadline_ends_the_request_with_504() -> None:
    engine = StandIn()
    async with serving(engine) as served, undisturbed(served):
        response = await served.chat(timeout=0.4)
        assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
        await aborted(await engine.opened())
        async with served.events(CHAT_PATH, {**CHAT, "timeout": 0.4}) as events:
            (frame,) = await events.rest()
        assert frame["error"]["code"] == "deadline_exceeded"


async def test_a_hundred_clients_that_leave_at_once_leave_nothing_behind() -> None:
    engine = StandIn(max_running=40, max_queued=100)
    async with serving(engine) as served, undisturbed(served):
        writers, requests = [], []
        for number in range(100):
            writers.append(await leave_after(served, CHAT_PATH, {**CHAT, "stream": number % 2 == 0}))
            requests.append(await engine.opened())
        for request in requests[::3]:
            request.say("some")
        for writer in writers:
            writer.close()
        for request in requests:
            await aborted(request)
        assert (len(engine.running), engine.waiting) == (1, [])
