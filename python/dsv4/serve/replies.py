"""Errors as values on their way to a client: OpenAI's shape, one place that knows which status belongs to what."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from dsv4.errors import Dsv4Error, EngineClosed, InvalidRequest, QueueFull, RequestFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

Headers = list[tuple[bytes, bytes]]

JSON_TYPE = (b"content-type", b"application/json")
CLOSE = (b"connection", b"close")

_TYPE_OF_STATUS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}
_STATUS_OF_FAILURE = {"engine_closed": 503, "aborted": 503, "deadline_exceeded": 504}


class ErrorDetail(msgspec.Struct, frozen=True):
    """The inside of OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(msgspec.Struct, frozen=True):
    """OpenAI's error object."""

    error: ErrorDetail


class Refusal(Dsv4Error):
    """A request that is answered with an error status.

    status     HTTP status
    code       stable machine-readable word
    headers    sent beside the error, such as Retry-After
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = tuple(headers)

    def body(self) -> bytes:
        """The error object as JSON."""
        kind = _TYPE_OF_STATUS.get(self.status, "invalid_request_error")
        return msgspec.json.encode(ErrorReply(ErrorDetail(str(self), kind, self.param, self.code)))


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> Refusal:
    """A client's mistake: status 400."""
    return Refusal(400, code, message, param=param)


def unsupported(message: str, param: str) -> Refusal:
    """A field that is understood and not served: status 400."""
    return Refusal(400, "unsupported_parameter", message, param=param)


def retry_after(seconds: float) -> tuple[bytes, bytes]:
    """The header that says when to come back, in whole seconds, at least one."""
    return (b"retry-after", str(max(1, math.ceil(seconds))).encode())


def draining() -> Refusal:
    """The server is about to stop: status 503, and the connection closes."""
    message = "The server is shutting down and takes no new requests; send this one to another server."
    return Refusal(503, "draining", message, headers=(retry_after(5), CLOSE))


def as_refusal(error: BaseException) -> Refusal:
    """Which answer an exception deserves; whatever is not ours is an internal error without details."""
    match error:
        case Refusal():
            return error
        case InvalidRequest():
            return Refusal(400, error.code, str(error), param=error.param)
        case QueueFull():
            return Refusal(429, "queue_full", str(error), headers=(retry_after(error.retry_after_s),))
        case RequestFailed():
            status = _STATUS_OF_FAILURE.get(error.code, 500)
            headers = (retry_after(5),) if status == 503 else ()
            return Refusal(status, error.code, str(error), headers=headers)
        case EngineClosed():
            return Refusal(503, "not_ready", str(error), headers=(retry_after(5), CLOSE))
        case _:
            return Refusal(500, "internal_error", "The server failed to answer this request; its log has the details.")
