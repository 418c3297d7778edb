"""What the door asks of an engine: the methods of `AsyncEngine`, so that a stand-in can take its place in tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from dsv4.types import ChatRequest, Delta, DrainReport, EngineInfo, Health, Prompt, RenderedChat, SamplingParams


class Tokenizer(Protocol):
    """From text to ids and back."""

    @property
    def bos_id(self) -> int:
        """Beginning of sequence."""

    @property
    def eos_id(self) -> int:
        """End of sequence."""

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Text to ids; strings of control tokens in it become those tokens only with `control`."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Ids to text; bytes that are not UTF-8 become U+FFFD. Raises InvalidRequest for an unknown id."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; of a control token, its name."""


class RequestStream(Protocol):
    """One accepted request; leaving its block aborts it unless it has ended."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def take(self) -> list[Delta]:
        """Everything that has arrived; waits for something; empty once every choice has ended. Raises RequestFailed."""


class Engine(Protocol):
    """A running engine."""

    @property
    def info(self) -> EngineInfo:
        """What is known once it runs."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""

    async def render(self, request: ChatRequest) -> RenderedChat:
        """Encodes a conversation, off the loop. Raises InvalidRequest."""

    async def open(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> RequestStream:
        """Validates and submits. Raises InvalidRequest, QueueFull or EngineClosed; nothing runs then."""

    def health(self) -> Health:
        """Cheap, from any thread."""

    def metrics_text(self) -> bytes:
        """The engine's metrics in Prometheus' text exposition."""

    async def drain(self, timeout: float) -> DrainReport:  # noqa: ASYNC109
        """Takes no new requests, waits for the running ones, aborts what is left after `timeout` seconds."""
