# ruff: noqa: D102 - the methods are callbacks of asyncio and httptools, which name and describe them
"""uvicorn's HTTP protocol with the gaps closed that it leaves open: every wait and every size has a bound.

    idle ──first byte──▶ head ──headers complete──▶ body ──message complete──▶ answering ──response──▶ idle
      │ idle / head deadline   │ 408 or silence        │ 408, 413                  │ pipelined messages wait, bounded
      ▼                        ▼ 408, 431, 400, 415    ▼                           ▼
    closed ◀── lingering: the refusal is written, what still arrives is thrown away, then the connection closes

Invariants: at most one timer of ours is armed per connection; after a refusal no byte reaches the parser; a request
whose connection is refused sees http.disconnect, so that its work is aborted like that of a client that left.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from dsv4.serve.replies import Refusal
from dsv4.serve.settings import ServeSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvicorn.config import Config
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
    from uvicorn.server import ServerState

LINGER_S = 3.0
BODY_CHECK_S = 1.0
MAX_PIPELINED = 8


@dataclass(slots=True)
class Connection:
    """What a request's application can know about its connection: `scope["extensions"]["dsv4.connection"]`.

    stalled   the reader left data unread for too long, and the connection was cut
    """

    stalled: bool = False


class GuardedHttp(HttpToolsProtocol):
    """One connection. Built by `guarded`, which binds the settings."""

    settings: ClassVar[ServeSettings] = ServeSettings()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._timer: asyncio.TimerHandle | None = None
        self._refused: Refusal | None = None
        self._lingering = False
        self._in_head = True
        self._received_any = False
        self._unframed_bytes = 0
        self._head_bytes = 0
        self._header_count = 0
        self._body_bytes = 0
        self._queued_bytes = 0
        self._body_since = 0.0
        self._unread_timer: asyncio.TimerHandle | None = None
        self._connection = Connection()
        self._running: RequestResponseCycle | None = None

    @property
    def _newest(self) -> RequestResponseCycle | None:
        """The request whose bytes arrived last; uvicorn's annotation leaves out that there may be none yet."""
        return self.cycle

    # Connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            message = f"The server has {self.settings.max_connections} open connections and takes no more now."
            self._refuse(Refusal(503, "too_many_connections", message, headers=((b"retry-after", b"1"),)))
            return
        self._arm(self.settings.head_timeout_s, self._head_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._watch_reader(on=False)
        self._abort_running()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        if self._lingering:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        self._unset_keepalive_if_required()
        if self._in_head and self._timer is None:
            self._arm(self.settings.head_timeout_s, self._head_late)
        self._received_any = True
        self._unframed_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refused = self._refused or Refusal(400, "invalid_http", "Protocol upgrades are not supported.")
        except httptools.HttpParserError as error:
            self._refused = self._refused or Refusal(400, "invalid_http", f"Not a valid HTTP/1.1 request: {error}.")
        if self._refused is None and self._unframed_bytes > self.settings.max_head_bytes:
            self._refused = self._head_too_large()
        if self._refused is not None:
            self._refuse(self._refused)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader(on=True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch_reader(on=False)

    def on_response_complete(self) -> None:
        if self.pipeline:
            self._running = self.pipeline[-1][0]
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._watch_reader(on=True)

    # Parser

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {"dsv4.connection": self._connection}  # type: ignore[dict-item]
        self._in_head = True
        self._head_bytes = 0
        self._header_count = 0
        self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        limit = self.settings.max_request_line_bytes
        if len(self.url) + len(b"OPTIONS  HTTP/1.1\r\n") > limit:
            self._stop(Refusal(431, "request_line_too_long", f"The request line is longer than {limit} bytes."))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_count += 1
        self._head_bytes += len(name) + len(value) + len(b": \r\n")
        limit = self.settings.max_header_count
        if self._header_count > limit:
            self._stop(Refusal(431, "too_many_headers", f"The request has more than {limit} headers."))
        if self._head_bytes + len(self.url) > self.settings.max_head_bytes:
            self._stop(self._head_too_large())
        if self._in_head:  # trailers come later and are nobody's business
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unframed_bytes = 0
        self._disarm()
        self._check_head()
        self._in_head = False
        self._body_since = self.loop.time()
        self._arm(self.settings.body_grace_s, self._check_body_rate)
        super().on_headers_complete()
        if self.pipeline:
            self.flow.resume_reading()  # bounded here; a socket that is not read would hide that its client left
        else:
            self._running = self.cycle

    def on_chunk_header(self) -> None:
        """A chunk's size line is complete: the framing moves on."""
        self._unframed_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._unframed_bytes = 0
        self._body_bytes += len(body)
        waiting = any(cycle is self.cycle for cycle, _ in self.pipeline)
        self._queued_bytes = self._queued_bytes + len(body) if waiting else 0
        if max(self._body_bytes, self._queued_bytes) > self.settings.max_body_bytes:
            self._stop(self._body_too_large())
        super().on_body(body)
        if waiting:
            self.flow.resume_reading()

    def on_message_complete(self) -> None:
        self._unframed_bytes = 0
        self._disarm()
        self._in_head = True
        super().on_message_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            self._stop(Refusal(400, "invalid_http", f"More than {MAX_PIPELINED} requests wait on this connection."))

    # Checks

    def _check_head(self) -> None:
        names = [name for name, _ in self.headers]
        if self.parser.get_http_version() != "1.1":
            self._stop(Refusal(505, "invalid_http", "Only HTTP/1.1 is spoken here."))
        if self.parser.should_upgrade():
            self._stop(Refusal(400, "invalid_http", "Protocol upgrades are not supported."))
        if names.count(b"content-length") + names.count(b"transfer-encoding") > 1:
            message = "Send Content-Length once, or Transfer-Encoding once, and not both."
            self._stop(Refusal(400, "invalid_http", message))
        headers = dict(self.headers)
        encoding = headers.get(b"content-encoding", b"identity")
        if encoding.strip().lower() != b"identity":
            self._stop(Refusal(415, "unsupported_encoding", "Compressed bodies are not taken; send the JSON as it is."))
        if int(headers.get(b"content-length", b"0")) > self.settings.max_body_bytes:
            self._stop(self._body_too_large())

    def _check_body_rate(self) -> None:
        self._timer = None
        if self._in_head or self._lingering:
            return
        late = self.loop.time() - self._body_since - self.settings.body_grace_s
        if self._body_bytes < late * self.settings.body_min_rate and not self.flow.read_paused:
            message = (
                f"The body came too slowly: {self._body_bytes} bytes, when {self.settings.body_min_rate:.0f} bytes/s "
                f"are asked for after {self.settings.body_grace_s:.0f} s."
            )
            self._refuse(Refusal(408, "body_timeout", message))
            return
        self._arm(BODY_CHECK_S, self._check_body_rate)

    def _head_late(self) -> None:
        self._timer = None
        if self._newest is not None and not self._newest.response_complete:
            return  # an answer is under way: the idle timer takes over after it
        if not self._received_any:
            self.transport.close()
            return
        message = f"The request's headers were not complete after {self.settings.head_timeout_s:.0f} s."
        self._refuse(Refusal(408, "head_timeout", message))

    def _head_too_large(self) -> Refusal:
        limit = self.settings.max_head_bytes
        return Refusal(431, "headers_too_large", f"The request's headers are larger than {limit} bytes.")

    def _body_too_large(self) -> Refusal:
        limit = self.settings.max_body_bytes
        return Refusal(413, "body_too_large", f"The request's body is larger than {limit} bytes (--max-body-bytes).")

    # Ending

    def _stop(self, refusal: Refusal) -> None:
        """Inside a parser callback: remembers why, and makes the parser stop."""
        self._refused = self._refused or refusal
        raise refusal

    def _refuse(self, refusal: Refusal) -> None:
        """Writes the refusal, unless an answer has already begun, and closes without losing it to a reset."""
        self._disarm()
        self._lingering = True
        self.pipeline.clear()
        running, newest = self._running, self._newest
        half_sent = running is not None and running.response_started and not running.response_complete
        already_answered = newest is not None and newest.response_complete and not self._in_head
        self._abort_running()
        if self.transport.is_closing():
            return
        if half_sent or already_answered:
            self.transport.close()
            return
        self.transport.write(raw_reply(refusal))
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._arm(LINGER_S, self.transport.close)

    def _abort_running(self) -> None:
        """Tells the request at work that its client is gone: uvicorn tells the newest, which may still wait in line."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def _watch_reader(self, *, on: bool) -> None:
        """While on, a reader that does not make room within the write deadline loses the connection."""
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
        if on:
            self._unread_timer = self.loop.call_later(self.settings.write_timeout_s, self._reader_stalled)

    def _reader_stalled(self) -> None:
        self._unread_timer = None
        if self.transport.get_write_buffer_size():
            self._connection.stalled = True
            self.transport.abort()

    def _arm(self, seconds: float, then: Callable[[], object]) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, then)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def raw_reply(refusal: Refusal) -> bytes:
    """A whole HTTP/1.1 response that ends its connection."""
    body = refusal.body()
    phrase = HTTPStatus(refusal.status).phrase
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *refusal.headers,
    ]
    head = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    return b"HTTP/1.1 %d %s\r\n%s\r\n%s" % (refusal.status, phrase.encode(), head, body)


def guarded(settings: ServeSettings) -> type[asyncio.Protocol]:
    """The protocol with its settings, in the form that uvicorn accepts as `http=`."""

    class Bound(GuardedHttp):
        pass

    Bound.settings = settings
    return Bound
