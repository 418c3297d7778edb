"""The checkpoint's tokenizer: byte-level BPE, and control tokens that text cannot forge.

Two encoders are built from one tokenizer.json: one matches the added (control) tokens on raw text first, as the
official one does; the other does not know them, so that their names in a user's text stay ordinary text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import tokenizers

from dsv4.config.directory import read_json
from dsv4.engine.text.prompt import BOS, DSML, END_THINK, EOS, REQUIRED, THINK
from dsv4.errors import CheckpointError, InvalidRequest

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"


class Tokenizer:
    """From text to ids and back. Immutable and safe to use from many threads; encoding releases the interpreter.

    control_ids   every added token: turn markers, thinking tags, ｜DSML｜, placeholders
    special_ids   those of them that `skip_special_tokens` hides in raw text, as their file flags them
    """

    def __init__(self, description: dict[str, Any], config: dict[str, Any], *, vocab_size: int | None = None) -> None:
        """From the objects in tokenizer.json and tokenizer_config.json. Raises CheckpointError."""
        added = _added_tokens(description)
        # Truncation and padding would change prompts behind our back.
        description = {**description, "truncation": None, "padding": None}
        self._matching = _encoder(description)
        self._plain = _encoder({**description, "added_tokens": []})
        self._control = {content: token_id for token_id, content, _ in added}
        vocab = self._matching.get_vocab(with_added_tokens=True)
        self._vocab_size = _checked_size(vocab, vocab_size)
        self._bytes = _bytes_by_id(vocab, self._control, self._vocab_size)
        self._longest_bytes = max(1, *map(len, self._bytes))
        self.control_ids = frozenset(self._control.values())
        self.special_ids = frozenset(token_id for token_id, _, special in added if special)
        if missing := [name for name in REQUIRED if name not in self._control]:
            raise CheckpointError(f"{FILE} has no control token {', '.join(missing)}: it is not DeepSeek-V4's")
        self._bos_id = self._named(config, "bos_token", BOS)
        self._eos_id = self._named(config, "eos_token", EOS)
        self.think_id = self._control[THINK]
        self.end_think_id = self._control[END_THINK]
        self.dsml_id = self._control[DSML]
        self._check_forgery()

    @classmethod
    def load(cls, directory: Path, *, vocab_size: int | None = None) -> Self:
        """The tokenizer of a model directory whose embedding has `vocab_size` rows.

        Raises CheckpointError when a file is missing or damaged, or when it has ids that the model has no row for.
        """
        description = read_json(directory, FILE)
        config = read_json(directory, CONFIG) if (directory / CONFIG).exists() else {}
        return cls(description, config, vocab_size=vocab_size)

    @property
    def bos_id(self) -> int:
        """Beginning of sequence."""
        return self._bos_id

    @property
    def eos_id(self) -> int:
        """End of sequence."""
        return self._eos_id

    @property
    def vocab_size(self) -> int:
        """Ids are below this: the model's rows where they were given, else one more than the largest id."""
        return self._vocab_size

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Text to ids; names of control tokens in it become those tokens only with `control`.

        Raises InvalidRequest for text that is not Unicode (a lone surrogate).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            surrogate = ord(text[error.start])
            message = (
                f"the text holds a lone surrogate U+{surrogate:04X} at character {error.start}; send valid Unicode"
            )
            raise InvalidRequest(message) from None
        encoder = self._matching if control else self._plain
        try:
            # The batch form, because the single one keeps the interpreter (tokenizers 0.23).
            ids: list[int] = encoder.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # the library's, which is no Exception
                raise
            message = f"the tokenizer gave up on a text of {len(text)} characters ({error}); shorten its runs of blanks"
            raise InvalidRequest(message) from None
        return ids

    def check_length(self, num_bytes: int, max_model_len: int) -> None:
        """Refuses text that cannot fit, before time and memory are spent on encoding it.

        No token stands for more bytes than the longest one, so `num_bytes` of UTF-8 are at least that many tokens.
        Raises InvalidRequest with the numbers; what passes is counted exactly later.
        """
        least = -(-num_bytes // self._longest_bytes)
        if least >= max_model_len:
            raise InvalidRequest(
                f"the prompt has {num_bytes} bytes, which are at least {least} tokens, and at least 1 is generated, "
                f"but the context (max_model_len) is {max_model_len} tokens; shorten the prompt",
                "prompt",
                "context_length_exceeded",
            )

    def control_id(self, name: str) -> int:
        """The id of a control token. Raises InvalidRequest where this checkpoint has none of that name."""
        token_id = self._control.get(name)
        if token_id is None:
            raise InvalidRequest(
                f"this checkpoint's tokenizer has no control token {name}", code="unsupported_parameter"
            )
        return token_id

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Ids to text; bytes that are not UTF-8 become U+FFFD. Raises InvalidRequest for an id that does not exist."""
        hidden: frozenset[int] = self.special_ids if skip_special_tokens else frozenset()
        pieces = [self.token_bytes(token_id) for token_id in token_ids if token_id not in hidden]
        return b"".join(pieces).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; of a control token, its name; of a row without a token, nothing.

        Raises InvalidRequest for an id that the model has no row for.
        """
        if not 0 <= token_id < self._vocab_size:
            raise InvalidRequest(f"token id {token_id} does not exist; ids are 0 to {self._vocab_size - 1}", "tokens")
        return self._bytes[token_id]

    def _named(self, config: dict[str, Any], key: str, default: str) -> int:
        """The id of bos_token or eos_token, which is a string or the description of an added token."""
        value = config.get(key)
        name = value.get("content") if isinstance(value, dict) else value
        name = default if name is None else name
        if not isinstance(name, str) or name not in self._control:
            raise CheckpointError(f"{CONFIG} names {key} {name!r}, which {FILE} has no added token for")
        return self._control[name]

    def _check_forgery(self) -> None:
        """No name of a control token, written in plain text, may become one."""
        for name, encoding in zip(
            self._control, self._plain.encode_batch_fast(list(self._control), add_special_tokens=False), strict=True
        ):
            if not self.control_ids.isdisjoint(encoding.ids):
                raise CheckpointError(f"{FILE} turns the plain text {name!r} into a control token")


def _encoder(description: dict[str, Any]) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(description))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{FILE} is not a tokenizer: {error}") from error


def _added_tokens(description: dict[str, Any]) -> list[tuple[int, str, bool]]:
    """(id, content, special) of every added token."""
    try:
        return [(int(t["id"]), str(t["content"]), bool(t.get("special"))) for t in description["added_tokens"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{FILE} has no readable list added_tokens: {error!r}") from error


def _checked_size(vocab: dict[str, int], vocab_size: int | None) -> int:
    largest = max(vocab.values(), default=-1)
    if vocab_size is not None and largest >= vocab_size:
        raise CheckpointError(
            f"{FILE} has token id {largest}, but the model has {vocab_size} rows (vocab_size in config.json)"
        )
    return largest + 1 if vocab_size is None else vocab_size


def _byte_alphabet() -> dict[str, int]:
    """Character to byte of byte-level BPE: printable Latin-1 stands for itself, the rest for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _bytes_by_id(vocab: dict[str, int], control: dict[str, int], size: int) -> list[bytes]:
    """The bytes of every id below `size`, b"" where there is no token."""
    alphabet = _byte_alphabet()
    found = [b""] * size
    for token, token_id in vocab.items():
        try:
            found[token_id] = token.encode() if token in control else bytes(map(alphabet.__getitem__, token))
        except KeyError:  # outside the alphabet: such a token stands for its own characters
            found[token_id] = token.encode()
    return found
