"""One tool call's arguments, from DSML parameters to the JSON text that the API streams.

    {  "key": "escaped as it arrives"  , "other": 1  }

Text parameters stream while they are written. The others are shown when they close, because only then it is known
whether they are JSON. A parameter that comes twice is written twice, and a JSON reader takes the last.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from dsv4.types import ToolCallDelta

WRAPPERS = ("arguments", "input")
"""Names under which a model sometimes puts all arguments as one object."""


class CallWriter:
    """Writes one call. `schema` is the JSON schema of the tool's parameters, None for a tool that was not declared."""

    def __init__(self, index: int, call_id: str, name: str, schema: dict[str, Any] | None) -> None:
        self._head: ToolCallDelta | None = ToolCallDelta(index, "", call_id, name)
        self._index = index
        self._out: list[str] = []
        self._num_written = 0
        properties = schema.get("properties") if schema is not None else None
        self._declared: dict[str, Any] = properties if isinstance(properties, dict) else {}
        self._is_known = schema is not None
        self._deferred: tuple[str, str | None, str] | None = None  # a wrapper, until it is known to be the only one
        self._key = ""
        self._flag: str | None = None
        self._value: list[str] | None = None  # None while the value streams
        self._newline = ""  # held: it belongs to the value only if the value is closed by its own tag

    @property
    def is_empty(self) -> bool:
        """Whether no argument has come yet."""
        return self._num_written == 0 and self._deferred is None

    def begin(self, key: str, flag: str | None) -> None:
        """A parameter opens; `flag` is its string attribute, None where it has none."""
        wraps = self._wraps(key)
        self._settle()
        self._key, self._flag = key, flag.lower() if flag is not None else None
        if self._flag == "true" and not wraps:
            self._value = None
            self._write_key(key)
            self._out.append('"')
        else:
            self._value = []

    def value(self, text: str) -> None:
        """More of the open parameter's value."""
        text = self._newline + text
        self._newline = "\n" if text.endswith("\n") else ""
        self._add(text.removesuffix("\n"))

    def end(self, *, by_own_tag: bool) -> None:
        """The open parameter closes. Before another tag than its own, one newline is layout."""
        if by_own_tag:
            self._add(self._newline)
        self._newline = ""
        if self._value is None:
            self._out.append('"')
            return
        text, self._value = "".join(self._value), None
        if self._wraps(self._key):
            self._deferred = (self._key, self._flag, text)
        else:
            self._write_value(self._key, self._flag, text)

    def body(self, text: str) -> None:
        """The text between the tags of a call without parameters: the arguments as one JSON object."""
        found = _object(text)
        if found is None:
            self._write_value("arguments", "true", text)
            return
        if len(found) == 1:
            key, inner = next(iter(found.items()))
            if self._wraps(key) and isinstance(inner, dict) and inner.keys() <= self._declared.keys():
                found = inner
        for key, value in found.items():
            self._write_key(key)
            self._out.append(_dump(value))

    def close(self) -> None:
        """The call is complete."""
        if self._deferred is not None:
            inner = _object(self._deferred[2])
            if inner is not None and inner.keys() <= self._declared.keys():
                self._deferred = None
                for key, value in inner.items():
                    self._write_key(key)
                    self._out.append(_dump(value))
        self._settle()
        self._out.append("}" if self._num_written else "{}")

    def take(self) -> list[ToolCallDelta]:
        """What was written since the last time; the first piece ever is the call's head."""
        if not self._out:
            return []
        piece = ToolCallDelta(self._index, "".join(self._out))
        self._out.clear()
        head, self._head = self._head, None
        return [piece] if head is None else [head, piece]

    def _wraps(self, key: str) -> bool:
        """Whether this first argument may hold all others."""
        return self._is_known and self.is_empty and key in WRAPPERS and key not in self._declared

    def _settle(self) -> None:
        """A wrapper that turned out to be an argument like others."""
        if self._deferred is not None:
            deferred, self._deferred = self._deferred, None
            self._write_value(*deferred)

    def _add(self, text: str) -> None:
        if not text:
            return
        if self._value is None:
            self._out.append(json.dumps(text, ensure_ascii=False)[1:-1])
        else:
            self._value.append(text)

    def _write_key(self, key: str) -> None:
        self._out.append(f"{', ' if self._num_written else '{'}{json.dumps(key, ensure_ascii=False)}: ")
        self._num_written += 1

    def _write_value(self, key: str, flag: str | None, text: str) -> None:
        self._write_key(key)
        self._out.append(json_value(text, flag, self._declared.get(key)))


def json_value(text: str, flag: str | None, schema: object) -> str:
    """The JSON of a parameter: `flag` is its string attribute in lower case, `schema` that of the property or None.

    Text that is JSON is passed on as it is. Other text takes the type that the schema names, or stays text.
    """
    types = _types(schema)
    if flag == "true" or (flag is None and types == {"string"}):
        return json.dumps(text, ensure_ascii=False)
    stripped = text.strip()
    if _is_json(stripped):
        return stripped
    if len(types) == 1 and (typed := _typed(stripped, next(iter(types)))) is not None:
        return typed
    return json.dumps(text, ensure_ascii=False)


def _types(schema: object) -> set[str]:
    """The type names that a property's schema allows; empty where it does not say."""
    declared = schema.get("type") if isinstance(schema, dict) else None
    return {name for name in (declared if isinstance(declared, list) else [declared]) if isinstance(name, str)}


def _typed(text: str, kind: str) -> str | None:
    """Python's and YAML's spellings of what JSON spells otherwise."""
    word = text.lower()
    if kind == "boolean" and word in ("true", "false"):
        return word
    if kind == "null" and word in ("null", "none"):
        return "null"
    try:
        if kind == "integer":
            return str(int(text))
        if kind == "number" and math.isfinite(number := float(text)):
            return repr(number)
    except ValueError:
        pass
    return None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text} is too large")
    return number


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _dump(value: object) -> str:
    """JSON as the encoder prints it; escaped to ASCII where it holds a lone surrogate, which UTF-8 cannot carry."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text
