"""From the bytes of a body to a checked structure; every way in which the bytes can be bad ends as a 400."""

from __future__ import annotations

import re
from typing import Generic, TypeVar

import msgspec

from dsv4.serve.replies import Refusal, invalid
from dsv4.serve.settings import MAX_JSON_CONTAINERS, MAX_JSON_DEPTH, MAX_JSON_STRINGS

Body = TypeVar("Body", bound=msgspec.Struct)

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)  # an open string reaches to the end
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_PATH = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`$")
_MISSING = re.compile(r"missing required field `([^`]*)`")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


class BodyDecoder(Generic[Body]):
    """Decodes bodies of one door.

    Unknown fields are reported by name, never stored. Duplicate keys: the last one wins, as in Python's own reader.
    """

    def __init__(self, body: type[Body]) -> None:
        self._decoder = msgspec.json.Decoder(body)
        self._known = frozenset(field.encode_name for field in msgspec.structs.fields(body))

    def decode(self, raw: bytes) -> tuple[Body, list[str]]:
        """The body and the names of the fields that it has and we do not know. Raises Refusal (400)."""
        if not raw:
            raise invalid("The body is empty; send a JSON object.", code="invalid_json")
        check_utf8(raw)
        check_depth(raw)
        try:
            body = self._decoder.decode(raw)
            unknown = [name for name in _fields.decode(raw) if name not in self._known]
        except msgspec.ValidationError as error:
            message, param = _locate(str(error))
            raise invalid(message, param, code="invalid_value" if param else "invalid_json") from None
        except RecursionError:
            raise _too_deep() from None
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            raise invalid(_explain(raw, error), code="invalid_json") from None
        return body, unknown


def check_utf8(raw: bytes) -> None:
    """Refuses bytes that are not UTF-8, also where a decoder would skip them."""
    if raw.isascii():
        return
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        message = f"The body is not UTF-8: byte {raw[error.start]:#04x} at offset {error.start}."
        raise invalid(message, code="invalid_json") from None


def check_depth(raw: bytes) -> None:
    """Refuses JSON nested deeper than the limit, in time linear in the bytes and before anything is built.

    Strings are cut out, then every round removes the innermost brackets; what is left after as many rounds as levels
    are allowed is too deep (or unbalanced, which the decoder reports). The rounds cost at most 64 copies of at most
    2 x MAX_JSON_CONTAINERS bytes.
    """
    if raw.count(b"[") + raw.count(b"{") <= MAX_JSON_DEPTH:
        return
    num_strings = (raw.count(b'"') - raw.count(b'\\"')) // 2
    if num_strings > MAX_JSON_STRINGS:
        raise invalid(
            f"The body has about {num_strings} strings; at most {MAX_JSON_STRINGS} are taken.", code="invalid_json"
        )
    brackets = _STRING.sub(b"", raw).translate(None, delete=_NOT_BRACKETS)
    num_containers = brackets.count(b"[") + brackets.count(b"{")
    if num_containers > MAX_JSON_CONTAINERS:
        if _opens_too_deep(brackets):
            raise _too_deep()
        message = f"The body has {num_containers} objects and arrays; at most {MAX_JSON_CONTAINERS} are taken."
        raise invalid(message, code="invalid_json")
    left = brackets.translate(bytes.maketrans(b"{}", b"[]"))
    for _ in range(MAX_JSON_DEPTH):
        if not left:
            return
        left = left.replace(b"[]", b"")
    if b"[" in left:
        raise _too_deep()


def _opens_too_deep(brackets: bytes) -> bool:
    head = brackets[: MAX_JSON_DEPTH + 1]
    return len(head) > MAX_JSON_DEPTH and head.count(b"]") + head.count(b"}") == 0


def _too_deep() -> Refusal:
    return invalid(f"The body is nested deeper than {MAX_JSON_DEPTH} levels.", code="invalid_json")


def _locate(message: str) -> tuple[str, str | None]:
    """The message of msgspec without its path, and the path in the words of the request."""
    found = _PATH.search(message)
    missing = _MISSING.search(message)
    if missing is not None:
        param = f"{found.group(1)}.{missing.group(1)}" if found is not None and found.group(1) else missing.group(1)
        return f"{param} is missing.", param
    if found is None:
        return message.removesuffix(".") + ".", None
    path = found.group(1)
    return f"{path or 'body'}: {message[: found.start()]}.", path or None


def _explain(raw: bytes, error: Exception) -> str:
    if _SURROGATE.search(raw):
        return f"The body is not valid JSON (an escape such as \\ud800 without its other half?): {error}."
    return f"The body is not valid JSON: {error}."
