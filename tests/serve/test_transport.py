"""Sizes, framing, slowness, readers that stop: each connection is dealt with alone, its neighbour notices nothing."""

from __future__ import annotations

import asyncio
import json
import socket

import httpx
import pytest
from tests.serve.harness import CHAT, WAIT_S, Served, aborted, serving, undisturbed
from tests.serve.stand_in import StandIn

from dsv4.serve.settings import ServeSettings

pytestmark = pytest.mark.anyio

PATH = b"/v1/chat/completions"
BODY = json.dumps({**CHAT, "max_tokens": 1}).encode()
HOST = b"host: x\r\ncontent-type: application/json\r\n"


def post(*headers: bytes, body: bytes = BODY, path: bytes = PATH, version: bytes = b"1.1") -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"POST %s HTTP/%s\r\n%s%s\r\n%s" % (path, version, HOST, lines, body)


def sized(body: bytes = BODY) -> bytes:
    return b"content-length: %d" % len(body)


def parsed(raw: bytes) -> tuple[int, dict[str, str], dict[str, str]]:
    """Status, headers and error object of one raw answer that closes its connection."""
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert int(headers["content-length"]) == len(body), "one answer, whole, and nothing after it"
    return int(first.split()[1]), headers, json.loads(body)["error"]


FRAMING: dict[str, tuple[bytes, int, str]] = {
    "two content-lengths": (post(sized(), sized()), 400, "invalid_http"),
    "two different content-lengths": (post(sized(), b"content-length: 5"), 400, "invalid_http"),
    "content-length and chunked": (post(sized(), b"transfer-encoding: chunked"), 400, "invalid_http"),
    "chunked and content-length": (post(b"transfer-encoding: chunked", sized()), 400, "invalid_http"),
    "a content-length that is no number": (post(b"content-length: many"), 400, "invalid_http"),
    "a negative content-length": (post(b"content-length: -1"), 400, "invalid_http"),
    "compressed": (post(sized(), b"content-encoding: gzip"), 415, "unsupported_encoding"),
    "too many headers": (post(sized(), *[b"x-%d: y" % i for i in range(100)]), 431, "too_many_headers"),
    "a header of 70 KB": (post(sized(), b"x: " + b"y" * 70_000), 431, "headers_too_large"),
    "a header of 8 MiB": (post(sized(), b"x: " + b"y" * (8 << 20)), 431, "headers_too_large"),
    "20,000 headers": (post(sized(), *[b"x-%d: y" % i for i in range(20_000)]), 431, "too_many_headers"),
    "a path of 9 KB": (post(sized(), path=b"/" + b"x" * 9_000), 431, "request_line_too_long"),
    "HTTP/1.0": (post(sized(), version=b"1.0"), 505, "invalid_http"),
    "HTTP/2 by prior knowledge": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "invalid_http"),
    "an upgrade": (post(sized(), b"connection: upgrade", b"upgrade: websocket"), 400, "invalid_http"),
    "no HTTP at all": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "invalid_http"),
    "a body of 64 MiB, announced": (post(b"content-length: %d" % (64 << 20), body=b"x"), 413, "body_too_large"),
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMING)
async def test_bad_framing_is_refused_and_the_connection_closes(served: Served, name: str) -> None:
    data, status, code = FRAMING[name]
    async with undisturbed(served):
        found, headers, error = parsed(await served.raw(data))
    assert (found, error["code"], headers["connection"]) == (status, code, "close")
    assert error["type"] == "invalid_request_error"
    assert served.engine.rendered[1:] == [], "nothing but the neighbour reached the engine"


@pytest.mark.parametrize("size", [32 << 20, (32 << 20) + 1])
async def test_a_body_is_taken_up_to_the_limit_and_not_a_byte_beyond(served: Served, size: int) -> None:
    padding = b" " * (size - len(BODY))
    async with undisturbed(served):
        response = await served.client.post(PATH.decode(), content=BODY + padding)
    if size == 32 << 20:
        assert response.status_code == 200
    else:
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
        assert "33554432" in response.json()["error"]["message"]


async def test_64_mib_in_chunks_are_cut_off_at_the_limit(served: Served) -> None:
    async with undisturbed(served):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(post(b"transfer-encoding: chunked", body=b""))
        chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        try:
            for _ in range(64):
                writer.write(chunk)
                await writer.drain()
        except ConnectionError:
            pass  # the server has hung up on us after its answer
        raw = await asyncio.wait_for(reader.read(), WAIT_S)
        writer.close()
    status, _, error = parsed(raw)
    assert (status, error["code"]) == (413, "body_too_large")


async def test_a_head_that_never_ends_is_given_up() -> None:
    async with serving(settings=ServeSettings(head_timeout_s=0.2)) as served, undisturbed(served):
        status, _, error = parsed(await served.raw(b"POST /v1/chat/completions HTTP/1.1\r\nx: "))
    assert (status, error["code"]) == (408, "head_timeout")


async def test_a_head_that_drips_is_given_up_all_the_same() -> None:
    async with serving(settings=ServeSettings(head_timeout_s=0.3)) as served, undisturbed(served):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        answer = asyncio.create_task(reader.read())
        writer.write(b"POST / HTTP/1.1\r\n")
        while not answer.done():
            writer.write(b"x: y\r\n")
            await asyncio.wait((answer,), timeout=0.05)
        status, _, error = parsed(answer.result())
        writer.close()
    assert (status, error["code"]) == (408, "head_timeout")


async def test_a_connection_that_says_nothing_is_closed_without_a_word() -> None:
    async with serving(settings=ServeSettings(head_timeout_s=0.1)) as served, undisturbed(served):
        assert await served.raw(b"") == b""


async def test_a_body_that_drips_is_given_up() -> None:
    settings = ServeSettings(body_grace_s=0.2, body_min_rate=1000.0)
    async with serving(settings=settings) as served, undisturbed(served):
        status, _, error = parsed(await served.raw(post(b"content-length: 1000", body=b"{")))
    assert (status, error["code"]) == (408, "body_timeout")


async def test_an_idle_connection_is_closed_after_a_while() -> None:
    async with serving(settings=ServeSettings(idle_timeout_s=1.0)) as served:
        raw = await served.raw(post(sized()))
    assert raw.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_connection_serves_many_requests_in_order(served: Served) -> None:
    requests = [post(sized(), b"x-request-id: r%d" % i) for i in range(5)]
    raw = await served.raw(b"".join(requests[:4]) + post(sized(), b"x-request-id: r4", b"connection: close"))
    ids = [part.split(b"\r\n")[0] for part in raw.split(b"x-request-id: ")[1:]]
    assert ids == [b"r%d" % i for i in range(5)]


async def test_more_pipelined_requests_than_allowed_are_refused_and_the_running_one_is_aborted(served: Served) -> None:
    served.engine.script = None
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(post(sized()))
    running = await served.engine.opened()
    writer.write(post(sized()) * 20)
    await aborted(running)
    status, _, error = parsed(await asyncio.wait_for(reader.read(), WAIT_S))
    writer.close()
    assert (status, error["code"]) == (400, "invalid_http")


async def test_a_client_that_pipelines_and_leaves_takes_its_running_request_with_it(served: Served) -> None:
    served.engine.script = None
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(post(sized()))
    running = await served.engine.opened()
    writer.write(post(sized()))
    await served.get("/health")
    writer.close()
    await aborted(running)
    assert served.engine.running == []


async def test_one_connection_too_many_is_told_so() -> None:
    async with serving(settings=ServeSettings(max_connections=2)) as served, undisturbed(served):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(post(sized()))
        assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
        status, headers, error = parsed(await served.raw(b""))
        writer.close()
    assert (status, error["code"], headers["retry-after"]) == (503, "too_many_connections", "1")


async def test_a_reader_who_stops_loses_the_connection_and_its_request_is_aborted() -> None:
    engine = StandIn()
    async with serving(engine, ServeSettings(write_timeout_s=0.3)) as served, undisturbed(served):
        stalled = socket.socket()
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(stalled, ("127.0.0.1", served.port))
        body = json.dumps({**CHAT, "stream": True}).encode()
        await loop.sock_sendall(stalled, post(sized(body), body=body))
        stream = await engine.opened()
        for _ in range(64):
            stream.say("x" * 262_144)
        await aborted(stream)
        stalled.close()
        metrics = (await served.get("/metrics")).text
    assert 'dsv4:slow_consumer_aborts_total{engine="0",model_name="stand-in"} 1.0' in metrics


async def test_expect_100_continue_is_answered(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(post(sized(), b"expect: 100-continue", body=b""))
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(BODY)
    assert await asyncio.wait_for(reader.readline(), WAIT_S) == b"HTTP/1.1 200 OK\r\n"
    writer.close()


async def test_a_refused_body_of_a_running_stream_aborts_it(served: Served) -> None:
    """A second, broken request on the connection of a stream ends that connection, as the client asked for it."""
    served.engine.script = None
    body = json.dumps({**CHAT, "stream": True}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(post(sized(body), body=body))
    stream = await served.engine.opened()
    writer.write(b"\x00nonsense\r\n\r\n")
    await aborted(stream)
    await asyncio.wait_for(reader.read(), WAIT_S)
    writer.close()


async def test_httpx_reuses_its_connection_after_an_error(served: Served) -> None:
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(base_url=served.client.base_url, limits=limits, trust_env=False) as client:
        for body in (b"{", BODY, b"", BODY):
            response = await client.post(PATH.decode(), content=body)
            assert response.status_code == (200 if body == BODY else 400)
