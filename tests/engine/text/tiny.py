"""A small tokenizer with the checkpoint's pre-tokeniser and control tokens, and readers over it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from dsv4.engine.text import AnswerReader, Piece, Tokenizer
from dsv4.engine.text.markup import Markup
from dsv4.engine.text.prompt import BOS, DSML, END_THINK, EOS, REMINDER, REQUIRED, THINK, prompt_strings
from dsv4.engine.text.tags import DSML_MARK, END_THINK_MARK, THINK_MARK
from dsv4.types import FinishReason, RenderedChat, SamplingParams

PAD = "<｜▁pad▁｜>"
WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
CORPUS = (
    'Hello, world! The weather in Beijing is sunny.\n\n<tool_calls>\n<invoke name="get_weather">\n',
    'parameter name="location" string="true" string="false" </parameter> </invoke> </tool_calls>\n',
    "世界著名温泉有哪些 热海大滚锅 é ü 12 123 {} [] ",
)
TOOLS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "location": {"type": "string"},
            "days": {"type": "integer"},
            "exact": {"type": "boolean"},
            "scale": {"type": "number"},
            "nothing": {"type": "null"},
            "places": {"type": "array"},
            "any": {"type": ["string", "integer"]},
        },
    },
    "now": {"type": "object", "properties": {}},
}


@cache
def description() -> str:
    """tokenizer.json of the tiny tokenizer."""
    tiny = tokenizers.Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", WORDS)]
    tiny.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tiny.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tiny.train_from_iterator(CORPUS * 20, trainer)
    names = [name for name in (*REQUIRED, REMINDER, *prompt_strings().task_tokens.values()) if name not in (BOS, EOS)]
    tiny.add_tokens([AddedToken(name, special=False, normalized=False) for name in names])
    return tiny.to_str()


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer(json.loads(description()), {"bos_token": {"content": BOS}, "eos_token": EOS})


def official() -> tokenizers.Tokenizer:
    """The library's own reading of the same file: control tokens are matched on raw text first."""
    return tokenizers.Tokenizer.from_str(description())


def ids(text: str) -> list[int]:
    """What a model would emit: DSML and the thinking tags as control tokens."""
    return tokenizer().encode(text, control=True)


def dsml(text: str) -> str:
    """Short for markup: @ is the DSML token."""
    return text.replace("@", DSML)


def byte_ids(text: str) -> list[int]:
    """One token per byte, except for control tokens."""
    tok = tokenizer()
    of_byte = {tok.token_bytes(i): i for i in range(tok.vocab_size) if len(tok.token_bytes(i)) == 1}
    found: list[int] = []
    for token_id in ids(text):
        found += [token_id] if token_id in tok.control_ids else [of_byte[bytes([b])] for b in tok.token_bytes(token_id)]
    return found


def reader(
    *,
    thinking: bool = False,
    tools: dict[str, dict[str, Any]] | None = None,
    is_chat: bool = True,
    **params: Any,
) -> AnswerReader:
    numbers = itertools.count()
    chat = RenderedChat(token_ids=(), thinking=thinking, tools=TOOLS if tools is None else tools)
    return AnswerReader(
        tokenizer(),
        SamplingParams(**params),
        chat=chat if is_chat else None,
        new_call_id=lambda: f"call_{next(numbers)}",
    )


class Read:
    """An answer put together from its pieces."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.content = "".join(piece.content for piece in pieces)
        self.reasoning = "".join(piece.reasoning for piece in pieces)
        self.deltas = [delta for piece in pieces for delta in piece.tool_calls]
        self.finish_reason = pieces[-1].finish_reason
        self.stopped = next((piece.stopped for piece in pieces if piece.stopped is not None), None)

    @property
    def calls(self) -> list[tuple[str, str]]:
        """(name, joined arguments), in order; every call's first delta is its head."""
        found: list[tuple[str, str]] = []
        for delta in self.deltas:
            if delta.id is not None:
                assert delta.index == len(found), "heads come in order, once"
                assert delta.name, "a head has a name"
                assert not delta.arguments, "a head has no arguments"
                found.append((delta.name, ""))
            else:
                assert delta.index == len(found) - 1, "pieces belong to the latest call"
                found[-1] = (found[-1][0], found[-1][1] + delta.arguments)
        return found

    def summary(self) -> tuple[str, str, list[tuple[str, str]], FinishReason | None, str | None]:
        return self.reasoning, self.content, self.calls, self.finish_reason, self.stopped


def read(
    token_ids: Sequence[int],
    *,
    cuts: Iterable[int] | None = None,
    finish: FinishReason = "stop",
    answer: AnswerReader | None = None,
    **setup: Any,
) -> Read:
    """Reads an answer, one token at a time or cut into pushes at `cuts`."""
    answer = answer or reader(**setup)
    edges = [*range(len(token_ids))] if cuts is None else [0, *cuts]
    pieces = [answer.push(token_ids[a:b]) for a, b in itertools.pairwise([*edges, len(token_ids)])]
    return Read([*pieces, answer.finish(finish)])


def every_way(text: str, **setup: Any) -> Read:
    """Reads an answer by token, by byte and at once, and its markup cut in two at every character; all must agree."""
    whole = read(ids(text), **setup)
    found = whole.summary()
    assert read(byte_ids(text), **setup).summary() == found
    assert read(byte_ids(text), cuts=[], **setup).summary() == found
    assert read(ids(text), cuts=[], **setup).summary() == found
    if setup.get("is_chat", True):
        cut_everywhere(marked(text), thinking=setup.get("thinking", False), tools=setup.get("tools"))
    return whole


def marked(text: str) -> str:
    """Text as the markup's reader sees it: control tokens are marks, turn markers are gone."""
    return text.replace(DSML, DSML_MARK).replace(THINK, THINK_MARK).replace(END_THINK, END_THINK_MARK).replace(EOS, "")


def cut_everywhere(text: str, *, thinking: bool, tools: dict[str, dict[str, Any]] | None = None) -> None:
    """One push, or two whatever the border between them, find the same."""
    want = parsed([text], thinking=thinking, tools=tools)
    for cut in range(1, len(text)):
        assert parsed([text[:cut], text[cut:]], thinking=thinking, tools=tools) == want, f"cut at {cut} of {text!r}"


def parsed(
    parts: Iterable[str], *, thinking: bool, tools: dict[str, dict[str, Any]] | None = None
) -> tuple[str, str, list[tuple[int, str | None]], str]:
    """Reasoning, content, heads and joined arguments of text in parts."""
    markup = Markup(TOOLS if tools is None else tools, thinking=thinking, new_call_id=lambda: "call")
    for part in parts:
        markup.push(part)
    markup.finish(complete=True)
    heads = [(delta.index, delta.name) for delta in markup.calls if delta.id is not None]
    arguments = "".join(delta.arguments for delta in markup.calls)
    return "".join(markup.reasoning), "".join(markup.content), heads, arguments
