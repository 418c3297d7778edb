"""The production trace as chains of named blocks, and the tokens that stand for them.

    one line of the trace            {"timestamp", "input_length", "output_length", "hash_ids"}   512 tokens an id
    one Request                      blocks: 256 tokens a block, two blocks an id; then a private tail nobody can share

The trace names only what two requests can share: whole ids. The rest of a prompt and all of the output are private.
Published with Mooncake (github.com/kvcache-ai/Mooncake, FAST'25 release, conversation_trace.jsonl, Apache-2.0); not
copied here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

P = 256  # tokens per block
ID_TOKENS = 512  # tokens per id of the trace
WORD = 1 << 16  # of the digits that spell a block's number; all digits are ids of the vocabulary
PRIVATE = 1 << 62  # private blocks are numbered from here

End = Literal["named", "raw"]


@dataclass(frozen=True, slots=True)
class Request:
    """What arrives: a prompt as a chain of blocks, and how much is generated.

    blocks              the leading full blocks that another request may share; equal numbers, equal prefixes
    num_prompt_tokens   of which the last one is always computed
    num_output_tokens   generated and written to the cache after the prompt; blocks may reach into them
    num_input_tokens    what hit rates are divided by
    first_private       number of the first block that is not named; the next ones follow
    """

    blocks: tuple[int, ...]
    num_prompt_tokens: int
    num_output_tokens: int
    num_input_tokens: int
    first_private: int

    @property
    def num_hit_blocks(self) -> int:
        """The most blocks a hit can have: the last token of a prompt is always computed."""
        return min(len(self.blocks), (self.num_prompt_tokens - 1) // P)

    @property
    def chain(self) -> tuple[int, ...]:
        """Every full block that exists when the request ends, the private ones last."""
        total = (self.num_prompt_tokens + self.num_output_tokens) // P
        return self.blocks + tuple(range(self.first_private, self.first_private + total - len(self.blocks)))


def request(blocks: Iterable[int], number: int, *, prompt: int | None = None, output: int = 0) -> Request:
    """A request made by hand: number keeps its private blocks apart; prompt defaults to one token past the blocks."""
    named = tuple(blocks)
    tokens = P * len(named) + 1 if prompt is None else prompt
    return Request(named, tokens, output, tokens, PRIVATE + number * WORD)


def parse(line: str, number: int, end: End = "named") -> Request:
    """One line of the trace.

    end  "named": the request is its prompt up to one token after the last whole id; the rest of the input is asked for
         but never found, and the output is left out. The next turn of a conversation repeats both, but under ids of its
         own: kept here they would be held twice, and a rule that keeps the last boundary of a request would keep one
         that this trace cannot name.
         "raw": all tokens of the line; a half id becomes a named block, what follows it is private.
    """
    entry = json.loads(line)
    tokens, ids = int(entry["input_length"]), entry["hash_ids"]
    if len(ids) != -(-tokens // ID_TOKENS):
        raise ValueError(f"line {number + 1}: {len(ids)} hash ids for {tokens} tokens")
    whole = tokens // ID_TOKENS
    blocks = [block for name in ids[:whole] for block in (2 * name, 2 * name + 1)]
    if end == "raw" and tokens % ID_TOKENS >= P:
        blocks.append(2 * ids[-1])
    prompt = tokens if end == "raw" else min(tokens, ID_TOKENS * whole + 1)
    output = int(entry["output_length"]) if end == "raw" else 0
    return Request(tuple(blocks), prompt, output, tokens, PRIVATE + number * WORD)


def read(path: Path, end: End = "named") -> list[Request]:
    """Every request of the trace in order of arrival."""
    with path.open() as lines:
        return [parse(line, number, end) for number, line in enumerate(lines)]


def digest(path: Path) -> str:
    """SHA-256 of the trace's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def block_tokens(block: int) -> list[int]:
    """256 token ids that spell the block's number; for a cache that is fed tokens, as the core is."""
    digits = [(block >> shift) % WORD for shift in (0, 16, 32, 48)]
    return digits + [1] * (P - len(digits))


def prompt_tokens(request: Request) -> list[int]:
    """The token ids of the prompt; what lies behind the named blocks is private."""
    tokens = [token for block in request.blocks for token in block_tokens(block)]
    block = request.first_private
    while len(tokens) < request.num_prompt_tokens:
        tokens += block_tokens(block)
        block += 1
    return tokens[: request.num_prompt_tokens]
