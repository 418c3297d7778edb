"""Every limit of the door has a number: what is just within it passes, one more does not."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec
import pytest
from tests.serve.harness import CHAT, Served, serving

from dsv4.serve.bodies import TokenizeBody
from dsv4.serve.decoding import BodyDecoder
from dsv4.serve.replies import Refusal
from dsv4.serve.settings import (
    MAX_DETOKENIZED,
    MAX_JSON_CONTAINERS,
    MAX_JSON_DEPTH,
    MAX_JSON_STRINGS,
    MAX_LABEL_CHARS,
    MAX_PROMPTS,
    MAX_TOOL_BYTES,
    ServeSettings,
)

pytestmark = pytest.mark.anyio

decoder = BodyDecoder(TokenizeBody)


def with_field(raw: bytes) -> bytes:
    return b'{"prompt":"x","other":' + raw + b"}"


def accepted(body: bytes) -> bool:
    """Whether bytes are decoded; what is refused is refused as a 400."""
    status = 200
    try:
        decoder.decode(body)
    except Refusal as refusal:
        status = refusal.status
    assert status in {200, 400}
    return status == 200


@pytest.mark.parametrize("brackets", [(b"[", b"]"), (b'{"a":', b"}")], ids=["arrays", "objects"])
@pytest.mark.parametrize("padding", [0, 100], ids=["few brackets", "many brackets"])
def test_depth(brackets: tuple[bytes, bytes], padding: int) -> None:
    def nested(depth: int) -> bytes:
        value = brackets[0] * depth + b"1" + brackets[1] * depth
        return with_field(b"[" + b"[]," * padding + value + b"]")

    beyond = 2  # the body itself and the list around the value
    assert accepted(nested(MAX_JSON_DEPTH - beyond))
    assert not accepted(nested(MAX_JSON_DEPTH - beyond + 1))


def test_containers() -> None:
    """The body and the list around them count as well."""
    assert accepted(with_field(b"[" + b"[]," * (MAX_JSON_CONTAINERS - 3) + b"[]]"))
    assert not accepted(with_field(b"[" + b"[]," * (MAX_JSON_CONTAINERS - 2) + b"[]]"))


def test_strings() -> None:
    """Names count as well; nothing is counted where the brackets are too few to be nested too deep."""
    brackets = b"[" * 30 + b"]" * 30 + b"," + b"[" * 40 + b"]" * 40
    own = len(('"prompt"', '"x"', '"other"'))

    def body(num_strings: int) -> bytes:
        return with_field(b"[" + b'"",' * (num_strings - own) + brackets + b"]")

    assert accepted(body(MAX_JSON_STRINGS))
    assert not accepted(body(MAX_JSON_STRINGS + 1))


@pytest.mark.parametrize("name", ["user", "cache_salt", "session_id", "request_id"])
async def test_labels(served: Served, name: str) -> None:
    for length, status in ((0, 400), (1, 200), (MAX_LABEL_CHARS, 200), (MAX_LABEL_CHARS + 1, 400)):
        response = await served.chat(max_tokens=1, **{name: "~" * length})
        assert response.status_code == status, length


async def test_labels_are_printable_ascii(served: Served) -> None:
    for code in (*range(256), 0x1F600):
        response = await served.chat(max_tokens=1, user=chr(code))
        assert response.status_code == (200 if 0x20 <= code < 0x7F else 400), hex(code)


async def test_prompts(served: Served) -> None:
    served.engine.max_running = MAX_PROMPTS
    for count, status in ((MAX_PROMPTS, 200), (MAX_PROMPTS + 1, 400)):
        response = await served.post("/v1/completions", {"prompt": ["a"] * count, "max_tokens": 1})
        assert response.status_code == status, count


async def test_text_that_cannot_fit_is_refused_before_it_is_tokenised(served: Served) -> None:
    """The longest token of the stand-in has 8 bytes, and one token is left for the answer."""
    most = 8 * (served.engine.info.max_model_len - 1)
    bodies: tuple[tuple[str, Callable[[str], dict[str, object]]], ...] = (
        ("/v1/completions", lambda text: {"prompt": text}),
        ("/tokenize", lambda text: {"prompt": text}),
        ("/v1/chat/completions", lambda text: {"messages": [{"role": "user", "content": text}]}),
        (
            "/tokenize",
            lambda text: {"messages": [{"role": "tool", "content": text[:-1]}, {"role": "user", "content": "x"}]},
        ),
    )
    tokenised: list[int] = []
    encode = served.engine.tokenizer.encode

    def note(text: str, *, control: bool = False) -> list[int]:
        tokenised.append(len(text))
        return encode(text, control=control)

    served.engine.tokenizer.encode = note  # type: ignore[method-assign]
    for path, body in bodies:
        for text in ("x" * (most + 1), "\u00e9" * (most // 2) + "x"):
            response = await served.post(path, body(text))
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (400, "context_length_exceeded"), path
            assert str(most + 1) in error["message"]
            assert "4096" in error["message"]
        assert (tokenised, served.engine.rendered) == ([], [])
    assert (await served.post("/tokenize", {"prompt": "x" * most})).json()["count"] == most


async def test_ids_to_detokenise(served: Served) -> None:
    for count, status in ((MAX_DETOKENIZED, 200), (MAX_DETOKENIZED + 1, 400)):
        body = b'{"tokens":[' + b",".join([b"65"] * count) + b"]}"
        response = await served.client.post("/detokenize", content=body)
        assert response.status_code == status, count


async def test_tool_bytes(served: Served) -> None:
    def tools(num_bytes: int) -> list[dict[str, object]]:
        empty = len(msgspec.json.encode([{"function": {"name": "f", "description": ""}}]))
        return [{"function": {"name": "f", "description": "x" * (num_bytes - empty)}}]

    for num_bytes, status in ((MAX_TOOL_BYTES, 200), (MAX_TOOL_BYTES + 1, 400)):
        response = await served.chat(max_tokens=1, tools=tools(num_bytes))
        assert response.status_code == status, num_bytes


async def test_alternatives_are_bounded_by_a_setting() -> None:
    async with serving(settings=ServeSettings(max_logprobs=3)) as served:
        for count, status in ((0, 200), (3, 200), (4, 400)):
            assert (await served.chat(max_tokens=1, logprobs=True, top_logprobs=count)).status_code == status
            body = {"prompt": "x", "max_tokens": 1, "logprobs": count}
            assert (await served.post("/v1/completions", body)).status_code == status


async def raw_status(served: Served, *, path: bytes = b"/health", headers: bytes = b"") -> int:
    raw = await served.raw(b"GET %s HTTP/1.1\r\nconnection: close\r\n%s\r\n" % (path, headers))
    return int(raw.split(b" ")[1])


async def test_header_count(served: Served) -> None:
    assert await raw_status(served, headers=b"x: y\r\n" * 99) == 200
    assert await raw_status(served, headers=b"x: y\r\n" * 100) == 431


async def test_request_line(served: Served) -> None:
    room = 8192 - len(b"OPTIONS  HTTP/1.1\r\n")
    assert await raw_status(served, path=b"/" + b"x" * (room - 1)) == 404
    assert await raw_status(served, path=b"/" + b"x" * room) == 431


async def test_head_bytes(served: Served) -> None:
    """The request line without its method and version, and every header with its colon and its line end."""
    counted = len(b"/health") + len(b"connection: close\r\n") + len(b"x: \r\n")
    room = 65536 - counted - len(b"GET  HTTP/1.1\r\n") - len(b"\r\n")  # the parser gives whole lines only
    assert await raw_status(served, headers=b"x: " + b"y" * room + b"\r\n") == 200
    assert await raw_status(served, headers=b"x: " + b"y" * (65536 - counted + 1) + b"\r\n") == 431


async def test_what_is_tolerated_is_named(served: Served) -> None:
    tool = {"function": {"name": "f"}}
    for fields, words in (
        ({"parallel_tool_calls": False, "tools": [tool]}, "parallel_tool_calls"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"return_progress": True}, "return_progress"),
        ({"temprature": 0}, "temprature"),
    ):
        response = await served.post("/v1/chat/completions", {**CHAT, "max_tokens": 1, **fields})
        assert response.status_code == 200, response.text
        assert words in response.headers["x-dsv4-warning"]


async def test_duplicate_keys_are_read_as_python_reads_them(served: Served) -> None:
    body = json.dumps({**CHAT, "max_tokens": 1})[:-1] + ', "max_tokens": 3}'
    response = await served.client.post("/v1/chat/completions", content=body)
    assert response.json()["usage"]["completion_tokens"] == 3
