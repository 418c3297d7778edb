"""The core itself under the replay: the prefix cache of `dsv4._core`, fed real tokens through its binding.

Pools are V4-Flash's in the core's own geometry (FP8 index rows, pages padded, draft layer left out, since nothing
drafts). A checkpoint costs two SWA blocks and a whole state slot; `share` of what one running request leaves goes to
checkpoints, the rest to full blocks. No kernel runs: a sample is the token that the request's blocks spell there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from benches.replay.geometry import NUM_C4, NUM_C128, NUM_SWA_ONLY, SWA_TOKENS, W
from benches.replay.rule import PoolTooSmall, Rule
from benches.replay.trace import WORD, P, Request
from numpy.typing import NDArray

from dsv4._core import Core, Geometry, Limits, PoolSizes, StepDone, plan_memory
from dsv4.errors import ConfigError, InvalidRequest

CHUNK = 2048
MAX_MODEL_LEN = 131_072
CHECKPOINT_TOKENS = 8192  # the default of EngineConfig.prefix_cache_retention_interval
ALIGN_BYTES = 64


def flash() -> Geometry:
    """V4-Flash with FP8 index rows."""
    ratios = [0] * NUM_SWA_ONLY + [4, 128] * NUM_C128 + [4] * (NUM_C4 - NUM_C128)
    return Geometry(
        ratios=ratios,
        window=W,
        kv_data_bytes=576,
        kv_scale_bytes=8,
        kv_page_multiple=576,
        index_data_bytes=128,
        index_scale_bytes=4,
        c4_state_bytes=8 * 2 * 2 * 512 * 4,
        index_state_bytes=8 * 2 * 2 * 128 * 4,
        c128_state_bytes=3 * 512 * 4,
    )


def limits(num_requests: int) -> Limits:
    """So many requests at a time; one in the replay of a trace, as every rule serves it."""
    return Limits(
        max_model_len=MAX_MODEL_LEN,
        max_num_requests=num_requests,
        max_num_tokens=CHUNK,
        max_queued_requests=num_requests,
        max_queued_tokens=num_requests * MAX_MODEL_LEN,
        vocab_size=WORD,
        prefix_cache=True,
        checkpoint_tokens=CHECKPOINT_TOKENS,
    )


@dataclass(eq=False)
class CoreRule(Rule):
    """One core with its step memory."""

    core: Core

    def __post_init__(self) -> None:
        raw = np.zeros(self.core.step_bytes + ALIGN_BYTES, dtype=np.uint8)
        start = -raw.ctypes.data % ALIGN_BYTES
        self._memory = raw[start : start + self.core.step_bytes].view(np.int32)

    @classmethod
    def planned(cls, pool_bytes: int, num_requests: int) -> CoreRule:
        """A core whose pools `plan_memory` makes of so many bytes, as an engine's are: nobody sets a share."""
        try:
            bounds = limits(num_requests)
            return cls(Core(flash(), plan_memory(flash(), bounds, pool_bytes).sizes, bounds))
        except ConfigError as error:
            raise PoolTooSmall(str(error)) from error

    @classmethod
    def of_bytes(cls, pool_bytes: int, share: float) -> CoreRule:
        """A core for one request on a pool of so many bytes, poison blocks included."""
        geometry = flash()
        window_blocks = W // SWA_TOKENS
        running_swa = CHUNK // SWA_TOKENS + window_blocks + 2  # a chunk, the window before it, and where both are cut
        fixed = geometry.full_block_bytes + (running_swa + 1) * geometry.swa_block_bytes + 2 * geometry.state_slot_bytes
        left = pool_bytes - fixed
        checkpoint = window_blocks * geometry.swa_block_bytes + geometry.state_slot_bytes
        num_checkpoints = int(left * share) // checkpoint
        full_blocks = (left - num_checkpoints * checkpoint) // geometry.full_block_bytes
        sizes = PoolSizes(
            full_blocks=full_blocks,
            swa_blocks=running_swa + window_blocks * num_checkpoints,
            state_slots=1 + num_checkpoints,
        )
        try:
            return cls(Core(geometry, sizes, limits(1)))
        except ConfigError as error:
            raise PoolTooSmall(str(error)) from error

    def request(self, request: Request) -> int:
        return self.together([request])[0]

    def together(self, wave: Sequence[Request]) -> list[int]:
        generated: dict[int, list[int]] = {}
        for request in wave:
            tokens, length = spell(request), request.num_prompt_tokens
            try:
                number = self.core.submit(tokens[:length], max_tokens=max(1, request.num_output_tokens))
            except InvalidRequest as error:
                raise PoolTooSmall(str(error)) from error
            generated[number] = tokens[length:].tolist() or [1]  # every request generates something
        found: dict[int, int] = {}
        while (plan := self.core.plan(self._memory)) is not None:
            # A request that was preempted starts again behind what it computed itself: that is no hit.
            for number, cached in zip(plan.started_request_ids, plan.started_cached_tokens, strict=True):
                found.setdefault(number, cached)
            samples = zip(plan.sample_request_ids, plan.sample_positions, strict=True)
            self.core.advance([StepDone(plan.step_id, [generated[number][at] for number, at in samples])])
        return [found[number] for number in generated]


def prompt(request: Request) -> NDArray[np.int32]:
    """The tokens of the prompt, as `trace.prompt_tokens` spells them."""
    return spell(request)[: request.num_prompt_tokens]


def spell(request: Request) -> NDArray[np.int32]:
    """The tokens of prompt and output, as its blocks spell them."""
    num_tokens = request.num_prompt_tokens + request.num_output_tokens
    num_blocks = -(-num_tokens // P)
    private = np.arange(max(0, num_blocks - len(request.blocks)), dtype=np.int64) + request.first_private
    numbers = np.concatenate((np.array(request.blocks, dtype=np.int64), private))[:num_blocks]
    tokens = np.ones((num_blocks, P), dtype=np.int32)
    for digit in range(4):
        tokens[:, digit] = (numbers >> (16 * digit)) % WORD
    return tokens.reshape(-1)[:num_tokens]
