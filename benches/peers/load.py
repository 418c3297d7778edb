"""What every engine is given: sizes, tokens, and the names of the measurements.

Imported by our driver and, under interpreters of their own, by those of the peers: it needs nothing but Python.
"""

from __future__ import annotations

import random
from collections.abc import Callable

STEP_SIZES = (1, 8, 64, 512)  # requests decoding
CONTEXT = 1000  # prompt of a decoding request, tokens
LONG = 8192  # a long prompt: 32 blocks of 256
FIRST_CHUNK = LONG - 256  # dsv4 ends a chunk at the last boundary with a token behind it, for a checkpoint
BLOCK = 256  # tokens of a full block, of a page
VOCAB = 129_280
CHUNK = 16_384  # tokens a step: a long prompt is one chunk
MAX_MODEL_LEN = 131_072
STEPS_A_ROUND = {1: 400, 8: 400, 64: 200, 512: 200, 2048: 60, 8192: 30}
OPERATIONS_A_ROUND = 20
SEED = 20_251_125

REQUEST = "make the request object (vLLM hashes here)"
ADMIT = "admit 8K, cold"
FILLED = "admit 8K, cold, and fill its step of 7,936 tokens"
LISTED = "admit 8K, cold, from a Python list"
MATCH = "match 8K, found"
LOOKUP = "match 8K, found, hashes known"
STARTED = "start behind 8K found: match, lend, plan one block"
INSERT = "leave 8K in the cache"
TURNOVER = "serve 8K and one token, pool full of prefixes"

Round = Callable[[], list[int]]  # nanoseconds of each repetition


def step(num_requests: int) -> str:
    """Name of the measurement of one step."""
    return f"step, {num_requests:,} decoding"


def step_listed(num_requests: int) -> str:
    """The same with the lists that an engine reads of it."""
    return f"step, {num_requests:,} decoding, lists read"


def tokens(number: int, length: int) -> list[int]:
    """A prompt of its own for each number, the same in every process."""
    return random.Random(SEED + number).choices(range(VOCAB), k=length)
