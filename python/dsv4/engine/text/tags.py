"""Finds DSML tags in streaming text.

Control tokens travel through the text as marks: lone surrogates, which UTF-8 never decodes to, so ordinary tokens
cannot forge one. A tag is `<` or `</`, the DSML mark, a known name, attributes and `>`:

    <｜DSML｜tool_calls>   <｜DSML｜invoke name="f">   <｜DSML｜parameter name="k" string="true">   </｜DSML｜parameter>

Where the reader allows it (`spelled`), the same letters from ordinary tokens count as well. Whatever can still become a
tag is held; what the scanner says never depends on how the text was split.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

DSML_MARK: Final = "\ud800"
THINK_MARK: Final = "\ud801"
END_THINK_MARK: Final = "\ud802"
MISFIT: Final = ""
"""An event: what looked like a tag in letters was text, and was returned as such."""

MAX_TAG_CHARS = 1024

_NAMES = {
    "tool_calls": "tool_calls",
    "toolcalls": "tool_calls",
    "tool": "tool_calls",
    "invoke": "invoke",
    "parameter": "parameter",
}
_EVENT = {
    False: re.compile("</?\ud800|[\ud800-\ud802]"),
    True: re.compile("</?(?:\ud800|[|｜]DSML[|｜])|[\ud800-\ud802]"),
}
_BEGUN = {
    False: re.compile(r"</?\Z"),
    True: re.compile(r"</?(?:[|｜](?:D(?:S(?:ML?)?)?)?)?\Z"),
}
_LONGEST_BEGUN = len("</|DSML")
_NAME = re.compile(r"\s*([A-Za-z_]*)")
_HEAD = re.compile("(?:[^<>\"'\ud800-\ud802]|\"[^\"\n\ud800-\ud802]*\"|'[^'\n\ud800-\ud802]*')*")
_OPEN_QUOTE = re.compile("[\"'][^\n\ud800-\ud802]*\\Z")
_ATTRIBUTE = re.compile(r"""([A-Za-z_]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'/>]+))""")


class Tag(NamedTuple):
    """One tag.

    kind      "tool_calls", "invoke" or "parameter", whatever variant was written
    raw       its text as written
    spelled   made of ordinary tokens
    """

    kind: str
    closing: bool
    self_closing: bool
    attributes: dict[str, str]
    raw: str
    spelled: bool

    @property
    def name(self) -> str | None:
        """The name attribute, None where it is missing or empty."""
        return self.attributes.get("name") or None


class TagScanner:
    """Splits streaming text into text and events: a Tag, a mark, or MISFIT."""

    def __init__(self) -> None:
        self._buffer = ""

    @property
    def pending(self) -> bool:
        """Whether something is held that may become a tag."""
        return bool(self._buffer)

    def push(self, text: str) -> None:
        """Takes more text."""
        self._buffer += text

    def take(self, *, spelled: bool, final: bool = False) -> tuple[str, Tag | str | None]:
        """The text up to the next event, and that event; None when more text is needed (or, if `final`, at the end)."""
        buffer = self._buffer
        found = _EVENT[spelled].search(buffer)
        if found is None:
            begun = None if final else _BEGUN[spelled].search(buffer, max(0, len(buffer) - _LONGEST_BEGUN))
            return self._cut(len(buffer) if begun is None else begun.start()), None
        start, end = found.span()
        if buffer[start] != "<":
            return self._cut(start, end), buffer[start]
        by_mark = buffer[end - 1] == DSML_MARK
        tag = _tag(buffer, start, end, spelled=not by_mark)
        if isinstance(tag, Tag):
            return self._cut(start, start + len(tag.raw)), tag
        if tag is _INCOMPLETE and not final:
            return self._cut(start), None
        if tag is _INCOMPLETE and by_mark:
            return self._cut(start, len(buffer)), None
        if by_mark:
            return self._cut(start, end), DSML_MARK
        return self._cut(start + 1), MISFIT

    def _cut(self, text_end: int, resume: int | None = None) -> str:
        """Removes and returns the text before `text_end`; goes on at `resume`."""
        text = self._buffer[:text_end]
        self._buffer = self._buffer[text_end if resume is None else resume :]
        return text


_INCOMPLETE: Final = "incomplete"
_MALFORMED: Final = "malformed"


def _tag(buffer: str, start: int, at: int, *, spelled: bool) -> Tag | str:
    """The tag that opens at `start` and whose name begins at `at`, or why there is none."""
    named = _NAME.match(buffer, at)
    name = named[1].lower() if named else ""
    after_name = named.end() if named else at
    if after_name == len(buffer):
        known = any(candidate.startswith(name) for candidate in _NAMES)
        return _INCOMPLETE if known and len(buffer) - start <= MAX_TAG_CHARS else _MALFORMED
    if name not in _NAMES:
        return _MALFORMED
    head = _HEAD.match(buffer, after_name)
    end = head.end() if head else after_name
    if end == len(buffer) or _OPEN_QUOTE.match(buffer, end):
        return _INCOMPLETE if len(buffer) - start <= MAX_TAG_CHARS else _MALFORMED
    if buffer[end] != ">" or end - start >= MAX_TAG_CHARS:
        return _MALFORMED
    inside = buffer[after_name:end]
    return Tag(
        kind=_NAMES[name],
        closing=buffer[start + 1] == "/",
        self_closing=inside.rstrip().endswith("/"),
        attributes={m[1]: next((v for v in m.groups()[1:] if v is not None), "") for m in _ATTRIBUTE.finditer(inside)},
        raw=buffer[start : end + 1],
        spelled=spelled,
    )
