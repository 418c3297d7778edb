"""The parts of an engine without a model: the real core, driver, text and streams over a runner that makes tokens up.

parts = null_parts(lambda draw, position: 97 + position % 26)
async with AsyncEngine.over(parts) as engine: ...          or          with LLM.over(parts) as llm: ...
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from dsv4._core import Core, Geometry, Limits, Plan, PoolSizes
from dsv4.config.directory import DEMO
from dsv4.engine.metrics import Facts
from dsv4.engine.parts import Bounds, Parts
from dsv4.engine.text import Tokenizer, render
from dsv4.engine.text.render import EFFORTS
from dsv4.runtime.null import NextToken, NullRunner
from dsv4.types import EngineInfo


def null_parts(
    next_token: NextToken,
    *,
    tokenizer: Tokenizer | None = None,
    before_step: Callable[[Plan], None] | None = None,
    max_model_len: int = 4096,
    max_running: int = 64,
    max_step_tokens: int = 2048,
    max_queued: int = 256,
    full_blocks: int | None = None,
    max_output_items: int = 256,
    max_steps_in_flight: int = 1,
    seed: int | None = 0,
) -> Parts:
    """Parts whose tokens are `next_token(draw, position)`.

    tokenizer     the demo's by default; ids must stay below its vocabulary
    before_step   called with every plan, on the thread that runs it: a gate, a count, or a fault
    full_blocks   None: enough for every running request to be as long as may be
    """
    tokenizer = tokenizer or Tokenizer.load(DEMO)
    geometry = Geometry(
        ratios=[0, 4, 128],
        window=128,
        kv_data_bytes=576,
        kv_scale_bytes=8,
        kv_page_multiple=576,
        index_data_bytes=64,
        index_scale_bytes=4,
        c4_state_bytes=8 * 2 * 2 * 512 * 4,
        index_state_bytes=8 * 2 * 2 * 128 * 4,
        c128_state_bytes=3 * 512 * 4,
    )
    sizes = PoolSizes(
        full_blocks=full_blocks or max_running * -(-max_model_len // 256),
        swa_blocks=4 * max_running + max_steps_in_flight * (-(-max_step_tokens // 64) + 4),
        state_slots=max_running,
    )
    limits = Limits(
        max_model_len=max_model_len,
        max_num_requests=max_running,
        max_num_tokens=max_step_tokens,
        max_queued_requests=max_queued,
        max_queued_tokens=max(max_model_len, max_queued * max_model_len),
        vocab_size=tokenizer.vocab_size,
        max_steps_in_flight=max_steps_in_flight,
    )
    core = Core(geometry, sizes, limits)
    generation = "preview"
    return Parts(
        core=core,
        runner=NullRunner(core, next_token, before_step=before_step, num_steps=max_steps_in_flight),
        tokenizer=tokenizer,
        render=functools.partial(
            render,
            tokenizer=tokenizer,
            generation=generation,
            default_thinking=True,
            default_effort="auto",
            max_model_len=max_model_len,
        ),
        info=EngineInfo(
            served_name="null",
            max_model_len=max_model_len,
            vocab_size=tokenizer.vocab_size,
            generation=generation,
            efforts=EFFORTS[generation],
            default_effort="high",
            fingerprint="fp_null",
            report=(("model", "null: tokens are made up"), ("device", "none")),
        ),
        bounds=Bounds(
            max_model_len=max_model_len,
            max_request_tokens=min(max_model_len, sizes.full_blocks * 256),
            vocab_size=tokenizer.vocab_size,
            max_running=max_running,
            max_queued=max_queued,
            max_output_items=max_output_items,
        ),
        seed=seed,
        facts=Facts(
            served_name="null",
            pool_blocks={"full": sizes.full_blocks, "swa": sizes.swa_blocks, "state": sizes.state_slots},
        ),
    )
