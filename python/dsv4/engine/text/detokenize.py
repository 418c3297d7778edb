"""From token ids to text, a few at a time, in constant time per token.

Bytes go through an incremental UTF-8 decoder, so the past is never decoded again and a code point never splits: bytes
that can still become one are held, and at the end they are U+FFFD, exactly as decoding all bytes at once would say.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsv4.engine.text.tokenizer import Tokenizer

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Turns one choice's tokens into text.

    hidden   ids that leave no text
    marks    ids that stand for a string of their own, which ends whatever bytes were held before it
    """

    def __init__(
        self, tokenizer: Tokenizer, *, hidden: frozenset[int] = frozenset(), marks: Mapping[int, str] | None = None
    ) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._hidden = hidden
        self._marks = marks or {}
        self._decoder = _Utf8Decoder("replace")

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens complete."""
        found: list[str] = []
        for token_id in token_ids:
            if token_id in self._hidden:
                continue
            if (mark := self._marks.get(token_id)) is not None:
                found += self._decoder.decode(b"", final=True), mark
            else:
                found.append(self._decoder.decode(self._token_bytes(token_id)))
        return "".join(found)

    def finish(self) -> str:
        """What was held: U+FFFD for bytes that never became a code point."""
        return self._decoder.decode(b"", final=True)
