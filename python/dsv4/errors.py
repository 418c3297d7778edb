"""What dsv4 raises. Every message says what was wrong, with the numbers, and what to do."""


class Dsv4Error(Exception):
    """The base of every error that dsv4 raises on purpose."""


class InvalidRequest(Dsv4Error):
    """A request that cannot be served as written; the client's mistake, nothing was changed.

    param  the field at fault, in the request's own words, or None
    code   a stable machine-readable word: "invalid_value", "context_length_exceeded", "unsupported_parameter"
    """

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class QueueFull(Dsv4Error):
    """The bounded queue has no room now; the same request may be sent again later."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RequestFailed(Dsv4Error):
    """A request that was accepted and could not be finished.

    code  "aborted", "numerical_error", "slow_consumer", "engine_closed", "internal_error"
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class ConfigError(Dsv4Error):
    """A setting, or a combination of settings, that cannot work."""


class CheckpointError(Dsv4Error):
    """A model directory that is missing, truncated, or not what its config says."""


class UnsupportedModel(CheckpointError):
    """A checkpoint of another architecture; the message names the offending key."""


class EngineClosed(Dsv4Error):
    """The engine was used after it was closed, or after a fork."""


class Violation(Dsv4Error):
    """A broken invariant of the core: a bug in dsv4. The blocks concerned are quarantined."""


class Misuse(Dsv4Error):
    """A call or an event that does not fit the core's state, such as the answer to a step that is not in flight.

    A bug in the caller. Nothing was changed.
    """


class TraceError(Dsv4Error):
    """Bytes that are no trace of a core, or one that is damaged, cut, or of another version."""
