"""Log-probabilities in the two forms of the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from msgspec import UNSET

from dsv4.serve.bodies import ChatLogprobs, CompletionLogprobs, ContentLogprob, TopLogprob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dsv4.types import Delta, TokenLogprob

LOWEST = -9999.0


class TokenBytes(Protocol):
    """The part of a tokenizer that this needs."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for."""


class LogprobForm:
    """Renders the log-probabilities of one request.

    as_ids   tokens are written "token_id:7" instead of as text
    """

    def __init__(self, tokenizer: TokenBytes, *, as_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids
        self._offsets: dict[int, int] = {}

    def chat(self, delta: Delta) -> ChatLogprobs:
        """The chat form; tokens of the thinking text are listed apart."""
        tokens = [self._content(token) for token in delta.logprobs]
        first = delta.num_generated_tokens - len(tokens)
        num_reasoning = min(max(delta.num_reasoning_tokens - first, 0), len(tokens))
        return ChatLogprobs(tokens[num_reasoning:], tokens[:num_reasoning] or UNSET)

    def completion(self, delta: Delta, choice: int) -> CompletionLogprobs:
        """The completions form; offsets count characters of the generated text."""
        return self.completion_of(delta.logprobs, choice)

    def completion_of(self, logprobs: Sequence[TokenLogprob], choice: int) -> CompletionLogprobs:
        """The same from the tokens of one choice, in order."""
        tokens = [self._text(token.token_id) for token in logprobs]
        offsets = []
        offset = self._offsets.get(choice, 0)
        for text in tokens:
            offsets.append(offset)
            offset += len(text)
        self._offsets[choice] = offset
        top = [{self._text(token): _finite(value) for token, value in entry.top} for entry in logprobs]
        return CompletionLogprobs(tokens, [_finite(token.logprob) for token in logprobs], top, offsets)

    def _content(self, token: TokenLogprob) -> ContentLogprob:
        top = [
            TopLogprob(self._text(token_id), _finite(value), list(self._tokenizer.token_bytes(token_id)))
            for token_id, value in token.top
        ]
        raw = list(self._tokenizer.token_bytes(token.token_id))
        return ContentLogprob(self._text(token.token_id), _finite(token.logprob), raw, top)

    def _text(self, token_id: int) -> str:
        if self._as_ids:
            return f"token_id:{token_id}"
        return self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")


def _finite(value: float) -> float:
    """JSON has no infinities; OpenAI writes the lowest value like this."""
    return max(value, LOWEST)
