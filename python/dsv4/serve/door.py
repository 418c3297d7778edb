"""What every route needs: the engine, the settings, who may enter, and whether the server still takes work."""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import TYPE_CHECKING

from dsv4.serve.metrics import DoorMetrics
from dsv4.serve.replies import Refusal, draining, invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dsv4.serve.engine import Engine
    from dsv4.serve.exchange import Exchange
    from dsv4.serve.settings import ServeSettings

OPEN_PATHS = frozenset({"/health", "/ping", "/ready"})
TENANT_DIGITS = 32
"""Hex digits of a key's digest that name its tenant: 128 bits."""


class Door:
    """State of one server.

    draining   set by the first signal: new requests are refused, running ones finish
    clock      seconds on a monotonic clock
    """

    def __init__(self, engine: Engine, settings: ServeSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.engine = engine
        self.settings = settings
        self.clock = clock
        self.started_at = int(time.time())
        self.draining = False
        self.metrics = DoorMetrics(engine.info.served_name)
        self._digests = [_digest(key.encode()) for key in settings.api_keys]
        tokenizer = engine.tokenizer
        self._most_bytes = max(len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size))

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint` of every reply."""
        return self.engine.info.fingerprint

    def admit(self, exchange: Exchange) -> None:
        """Lets a request in, or raises Refusal (401). Runs before the router looks at the path, for every path.

        The probes are let in without a key, and learn no details then.
        """
        exchange.tenant = self._tenant(exchange)
        if exchange.tenant is not None or exchange.path in OPEN_PATHS:
            return
        message = "A valid API key is needed: send 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
        raise Refusal(401, "invalid_api_key", message, headers=((b"www-authenticate", b"Bearer"),))

    def salt(self, exchange: Exchange, cache_salt: str | None) -> str | None:
        """Whose prefixes a request shares: those of its own key, narrowed by `cache_salt`.

        A hit is faster than a miss, so across keys it would tell one tenant what another has asked.
        """
        if self.settings.share_prefix_cache or not exchange.tenant:
            return cache_salt
        return f"{exchange.tenant}/{cache_salt or ''}"

    def _tenant(self, exchange: Exchange) -> str | None:
        """A name for the holder of the key; "" where no key is needed, None for a key that is not known."""
        if not self._digests:
            return ""
        key = exchange.header(b"x-api-key")
        authorization = exchange.header(b"authorization")
        if authorization is not None:
            scheme, _, token = authorization.partition(b" ")
            key = token.strip() if scheme.lower() == b"bearer" else None
        digest = _digest(key if key is not None else b"")
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return digest.hex()[:TENANT_DIGITS] if key is not None and any(matches) else None

    def take_work(self) -> None:
        """Raises Refusal (503) when no new work may begin."""
        if self.draining:
            raise draining()

    def check_length(self, texts: Iterable[str], param: str) -> None:
        """Refuses texts whose bytes prove that the context cannot hold them, before they are tokenised.

        Tokenising costs a second per megabyte of text, and 200 bytes of memory per byte. No token stands for more bytes
        than the longest of the vocabulary. Raises Refusal (400); what passes is counted exactly by the validator.
        """
        num_bytes = sum(len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for text in texts)
        least, limit = -(-num_bytes // self._most_bytes), self.engine.info.max_model_len
        if least >= limit:
            message = (
                f"The prompt has {num_bytes} bytes, which are at least {least} tokens, and at least 1 is generated, "
                f"but the context (max_model_len) is {limit} tokens; shorten the prompt."
            )
            raise invalid(message, param, code="context_length_exceeded")

    def check_model(self, name: str | None) -> None:
        """Raises Refusal (404) for a model that is not served here."""
        served = self.engine.info.served_name
        if name is not None and name != served:
            message = f"The model {name[:128]!r} is not served here; the model of this server is {served!r}."
            raise Refusal(404, "model_not_found", message, param="model")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
