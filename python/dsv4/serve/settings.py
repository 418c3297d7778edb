"""Every setting of the HTTP door, in one place, with its default. Each limit has a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LogLevel = Literal["debug", "info", "warning", "error"]

MAX_MESSAGES = 16_384
MAX_TOOLS = 1_024
MAX_TOOL_BYTES = 1 << 20
MAX_CHOICES = 16
MAX_PROMPTS = 1_024
MAX_DETOKENIZED = 1 << 20
MAX_LABEL_CHARS = 128
MAX_JSON_DEPTH = 64
MAX_JSON_CONTAINERS = 262_144
MAX_JSON_STRINGS = 1_048_576
MAX_WARNING_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Settings of one server; times in seconds, sizes in bytes.

    api_keys                 accepted keys; empty means that every request is let in
    share_prefix_cache       requests of different keys may reuse each other's prefixes, which timing then tells
    shutdown_timeout_s       how long SIGTERM waits for running requests before it aborts them
    keep_alive_interval_s    silence after which a stream gets a comment line; 0 is off
    stream_interval          tokens per frame after the first; a finish is always sent at once
    strict_fields            unknown request fields are refused instead of ignored with a warning
    max_logprobs             most alternatives per token that a request may ask for
    write_timeout_s          how long a reader may leave a frame unread before its request is aborted
    head_timeout_s           time from the first byte of a request (or the connection) to the end of its headers
    body_grace_s, body_min_rate   after the grace a body must have arrived at this many bytes per second on average
    idle_timeout_s           how long a connection may stay open between two requests
    max_connections          open connections; one more is answered 503 and closed
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    insecure: bool = False
    share_prefix_cache: bool = False
    shutdown_timeout_s: float = 60.0
    keep_alive_interval_s: float = 10.0
    stream_interval: int = 1
    strict_fields: bool = False
    max_logprobs: int = 20
    default_thinking: bool = True
    default_reasoning_effort: str = "auto"
    log_level: LogLevel = "info"
    max_body_bytes: int = 32 << 20
    max_request_line_bytes: int = 8 << 10
    max_head_bytes: int = 64 << 10
    max_header_count: int = 100
    head_timeout_s: float = 10.0
    body_grace_s: float = 10.0
    body_min_rate: float = 1024.0
    write_timeout_s: float = 30.0
    idle_timeout_s: float = 75.0
    max_connections: int = 10_000
