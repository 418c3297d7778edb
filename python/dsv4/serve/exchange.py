"""One HTTP request and the means to answer it; the race between its work and its client."""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import TYPE_CHECKING, Any, TypeVar

from dsv4.serve.protocol import Connection
from dsv4.serve.replies import JSON_TYPE, Refusal, invalid
from dsv4.serve.settings import MAX_LABEL_CHARS, MAX_WARNING_BYTES

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from starlette.types import Message, Receive, Scope, Send

    from dsv4.serve.door import Door

Result = TypeVar("Result")

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
KEEP_ALIVE = b": keep-alive\n\n"
CLIENT_GONE_STATUS = 499

_LABEL = re.compile(rf"[\x20-\x7e]{{1,{MAX_LABEL_CHARS}}}")
_JSON_TYPES = re.compile(rb"application/(?:[\w.+-]+\+)?json", re.IGNORECASE)
_CHARSET = re.compile(rb"charset\s*=\s*\"?([\w-]+)", re.IGNORECASE)


class ClientGone(Exception):
    """The client closed its connection, or was cut off because it did not read."""


def check_label(value: str, param: str) -> str:
    """A name that a client gives to something: 1 to 128 printable ASCII characters."""
    if _LABEL.fullmatch(value) is None:
        raise invalid(f"{param} must be 1 to {MAX_LABEL_CHARS} printable ASCII characters; it has {len(value)}.", param)
    return value


class Exchange:
    """One request on its way through the door.

    request_id   from X-Request-Id or drawn; echoed, and the engine's id for this request
    route        the path of the route that matched, for metrics
    tenant       who holds the request's key, as `Door.admit` found; None: nobody that is known
    started      the response's headers are sent: an error can only be a frame from now on
    """

    def __init__(self, door: Door, scope: Scope, receive: Receive, send: Send) -> None:
        self.door = door
        self.scope = scope
        self.request_id = uuid.uuid4().hex
        self.route = "other"
        self.started = False
        self.tenant: str | None = None
        self._receive = receive
        self._send = send
        self._warnings: list[str] = []
        self._last_sent = 0.0

    @property
    def method(self) -> str:
        """The HTTP method."""
        return str(self.scope["method"])

    @property
    def path(self) -> str:
        """The decoded path."""
        return str(self.scope["path"])

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, given in lower case."""
        for key, value in self.scope["headers"]:
            if key == name:
                return bytes(value)
        return None

    def take_request_id(self) -> None:
        """Adopts the client's X-Request-Id. Raises Refusal when it is not a label."""
        given = self.header(b"x-request-id")
        if given is not None:
            self.request_id = check_label(given.decode("latin-1"), "X-Request-Id")

    def warn(self, text: str) -> None:
        """Notes a tolerated oddity for the x-dsv4-warning header."""
        self._warnings.append(text)

    # Reading

    async def read_json(self) -> bytes:
        """The whole body. Raises Refusal for a content type that is not JSON or a body that is too large."""
        self._check_content_type()
        limit = self.door.settings.max_body_bytes
        parts: list[bytes] = []
        num_bytes = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            num_bytes += len(part)
            if num_bytes > limit:
                text = f"The request's body is larger than {limit} bytes (--max-body-bytes)."
                raise Refusal(413, "body_too_large", text, headers=((b"connection", b"close"),))
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    def _check_content_type(self) -> None:
        content_type = self.header(b"content-type")
        if content_type is None:
            return
        charset = _CHARSET.search(content_type)
        plain = _JSON_TYPES.fullmatch(content_type.split(b";")[0].strip()) is not None
        if not plain or (charset is not None and charset.group(1).lower() not in (b"utf-8", b"utf8", b"us-ascii")):
            shown = content_type[:80].decode("latin-1")
            raise Refusal(415, "unsupported_media_type", f"Send application/json in UTF-8, not {shown!r}.")

    # Answering

    async def reply(
        self,
        status: int,
        body: bytes,
        *,
        headers: Sequence[tuple[bytes, bytes]] = (),
        content_type: tuple[bytes, bytes] = JSON_TYPE,
    ) -> None:
        """Answers with a whole body."""
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, [content_type, length, *headers])
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def refuse(self, refusal: Refusal) -> None:
        """Answers with an error object."""
        await self.reply(refusal.status, refusal.body(), headers=refusal.headers)

    async def start_stream(self) -> None:
        """Sends the headers of a stream of server-sent events."""
        await self._start(200, STREAM_HEADERS)

    async def write(self, frames: bytes) -> None:
        """Sends frames of a stream in one piece."""
        await self._send({"type": "http.response.body", "body": frames, "more_body": True})
        self._last_sent = self.door.clock()

    async def end_stream(self, frames: bytes) -> None:
        """Sends the last frames of a stream."""
        await self._send({"type": "http.response.body", "body": frames, "more_body": False})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        self.door.metrics.count_request(self.route, status)
        headers = [*headers, (b"x-request-id", self.request_id.encode())]
        if self._warnings:
            text = "; ".join(self._warnings).encode("ascii", "replace")[:MAX_WARNING_BYTES]
            headers.append((b"x-dsv4-warning", text))
        message: Message = {"type": "http.response.start", "status": status, "headers": headers}
        await self._send(message)
        self._last_sent = self.door.clock()

    # Racing

    async def while_connected(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs work, and cancels it as soon as the client goes away. Raises ClientGone then.

        The body must have been read. While a stream is silent, keep-alive comments are sent on a wall clock.
        """
        working = asyncio.ensure_future(work)
        watching = asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                watching.result()
                raise ClientGone
            return working.result()
        finally:
            working.cancel()
            watching.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def _watch(self) -> None:
        """Returns when the client has gone."""
        interval = self.door.settings.keep_alive_interval_s
        while True:
            silence = self.door.clock() - self._last_sent if self.started else 0.0
            try:
                async with asyncio.timeout(max(interval - silence, 0.0) if interval else None):
                    if (await self._receive())["type"] == "http.disconnect":
                        return
            except TimeoutError:
                if self.started and self.door.clock() - self._last_sent >= interval:
                    await self.write(KEEP_ALIVE)

    def stalled(self) -> bool:
        """Whether the connection was cut because its reader stopped reading."""
        connection = self.scope.get("extensions", {}).get("dsv4.connection")
        return isinstance(connection, Connection) and connection.stalled
