"""vLLM's Scheduler and KVCacheManager with DeepSeek-V4-Flash's cache groups, no model, no GPU.

Run by `python -m benches.peers` under an interpreter that has vLLM. Layer specs are the ones that vLLM's own
DeepSeek-V4 classes return for fp8_ds_mla; vLLM then groups them itself and counts its blocks.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter_ns as now
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import vllm
from benches.peers import load, wire
from benches.peers.load import Round
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core import kv_cache_planning
from vllm.v1.core.kv_cache_utils import (
    generate_scheduler_kv_cache_config,
    get_request_block_hasher,
    init_none_hash,
    resolve_kv_cache_block_sizes,
)
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import KVCacheSpec, MLAAttentionSpec, SlidingWindowMLASpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

STRIDE = 1_002_240  # bytes of a block of its pool
NUM_LAYERS = 44  # with the draft layer
NUMBERS = itertools.count()


def flash_specs() -> dict[str, KVCacheSpec]:
    """What the layers of V4-Flash say they keep."""
    shared: dict[str, Any] = {"num_kv_heads": 1, "max_tp_shards": 1, "alignment": 576}
    rows: dict[str, Any] = {
        **shared,
        "head_size": 512,
        "dtype": torch.uint8,
        "cache_dtype_str": "fp8_ds_mla",
        "model_version": "deepseek_v4",
        "state_content_bytes": 584,
    }

    def state(ratio: int, width: int) -> SlidingWindowMLASpec:
        block, window = (4, 8) if ratio == 4 else (8, 128)
        return SlidingWindowMLASpec(
            block_size=block, sliding_window=window, head_size=width, dtype=torch.float32, **shared
        )

    specs: dict[str, KVCacheSpec] = {}
    for layer in range(NUM_LAYERS):
        specs[f"{layer}.swa"] = SlidingWindowMLASpec(block_size=64, sliding_window=128, **rows)
        if layer < 2 or layer == NUM_LAYERS - 1:
            continue
        ratio = 4 if layer % 2 == 0 else 128
        specs[f"{layer}.main"] = MLAAttentionSpec(block_size=256, tokens_per_state=ratio, **rows)
        specs[f"{layer}.state"] = state(ratio, 2048 if ratio == 4 else 1024)
        if ratio == 4:
            specs[f"{layer}.index"] = MLAAttentionSpec(
                block_size=256, tokens_per_state=4, head_size=132, dtype=torch.uint8, **shared
            )
            specs[f"{layer}.index_state"] = state(4, 512)
    return specs


def config(num_requests: int) -> VllmConfig:
    """The scheduler's half of a configuration: the model is a name, the device is the CPU."""
    folder = Path(tempfile.mkdtemp(prefix="peers-"))
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1}
    about = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": load.VOCAB}
    limits = {"max_position_embeddings": load.MAX_MODEL_LEN, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps({**shape, **about, **limits}))
    made = VllmConfig(
        model_config=ModelConfig(
            model=str(folder), skip_tokenizer_init=True, dtype="bfloat16", max_model_len=load.MAX_MODEL_LEN, seed=0
        ),
        cache_config=CacheConfig(block_size=256, enable_prefix_caching=True, cache_dtype="fp8_ds_mla"),
        scheduler_config=SchedulerConfig(
            max_num_seqs=num_requests,
            max_num_batched_tokens=load.CHUNK,
            max_model_len=load.MAX_MODEL_LEN,
            is_encoder_decoder=False,
            async_scheduling=False,
        ),
        device_config=DeviceConfig(device="cpu"),
    )
    made.scheduler_config.disable_hybrid_kv_cache_manager = False  # the CPU platform turns it off, GPUs have it on
    made.cache_config.kv_cache_layout = "BLNHC"  # block-outermost, as its engine resolves for these specs
    return made


class Engine:
    """One scheduler on a pool of so many blocks, and what a request for it needs."""

    def __init__(self, num_requests: int, num_blocks: int) -> None:
        given = config(num_requests)
        groups = kv_cache_planning.get_kv_cache_groups(given, flash_specs())
        pool = generate_scheduler_kv_cache_config(
            [kv_cache_planning.get_kv_cache_config_from_groups(given, groups, num_blocks * STRIDE)]
        )
        given.cache_config.num_gpu_blocks = pool.num_blocks
        block, hashed = resolve_kv_cache_block_sizes(pool, given)
        self.groups = [(len(group.layer_names), group.kv_cache_spec.block_size) for group in pool.kv_cache_groups]
        self.hash_name = given.cache_config.prefix_caching_hash_algo
        hash_of = get_hash_fn_by_name(self.hash_name)
        init_none_hash(hash_of)
        self.hasher = get_request_block_hasher(hashed, hash_of)
        self.scheduler = Scheduler(
            vllm_config=given,
            kv_cache_config=pool,
            structured_output_manager=StructuredOutputManager(given),
            block_size=block,
            hash_block_size=hashed,
            log_stats=False,
        )

    def request(self, tokens: list[int], max_tokens: int) -> Request:
        """A request; making it hashes its blocks."""
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        return Request(
            request_id=str(next(NUMBERS)),
            prompt_token_ids=tokens,
            sampling_params=sampling,
            pooling_params=None,
            block_hasher=self.hasher,
        )

    def advance(self, step: SchedulerOutput, answer: ModelRunnerOutput) -> None:
        """What its engine does with a step's tokens."""
        self.scheduler.update_from_output(step, answer)

    def step(self) -> SchedulerOutput:
        """One step that nobody times."""
        step = self.scheduler.schedule()
        self.advance(step, self.answer(step))
        return step

    def answer(self, step: SchedulerOutput) -> ModelRunnerOutput:
        """One token for each request whose prompt is done."""
        names = list(step.num_scheduled_tokens)
        sampled = []
        for name in names:
            request = self.scheduler.requests[name]
            sampled.append([7] if request.num_computed_tokens >= request.num_tokens else [])
        return ModelRunnerOutput(
            req_ids=names, req_id_to_index={name: at for at, name in enumerate(names)}, sampled_token_ids=sampled
        )

    def end(self, request: Request) -> None:
        """As if its client had gone."""
        self.scheduler.finish_requests(request.request_id, RequestStatus.FINISHED_ABORTED)


def prompt(length: int) -> list[int]:
    """Tokens that nobody had before."""
    return load.tokens(next(NUMBERS), length)


def steps(num_requests: int) -> Round:
    """schedule and update_from_output with so many requests decoding."""
    engine = Engine(num_requests, 120 * num_requests + 8000)
    for _ in range(num_requests):
        engine.scheduler.add_request(engine.request(prompt(load.CONTEXT), 100_000))
    while len(engine.scheduler.running) < num_requests or any(
        request.num_computed_tokens < request.num_prompt_tokens for request in engine.scheduler.running
    ):
        engine.step()

    def round_of() -> list[int]:
        times = []
        for _ in range(load.STEPS_A_ROUND[num_requests]):
            start = now()
            step = engine.scheduler.schedule()
            planned = now()
            answer = engine.answer(step)
            assert len(answer.req_ids) == num_requests
            resumed = now()
            engine.advance(step, answer)
            times.append(planned - start + now() - resumed)
        return times

    return round_of


def request() -> Round:
    """Request(...): block hashes of 8K."""
    engine = Engine(64, 8000)

    def round_of() -> list[int]:
        times = []
        for _ in range(load.OPERATIONS_A_ROUND):
            tokens = prompt(load.LONG)
            start = now()
            engine.request(tokens, 64)
            times.append(now() - start)
        return times

    return round_of


def admit() -> Round:
    """Request, add_request and the schedule that gives its 8K their blocks."""
    engine = Engine(64, 20_000)

    def round_of() -> list[int]:
        times = []
        for _ in range(load.OPERATIONS_A_ROUND):
            tokens = prompt(load.LONG)
            start = now()
            one = engine.request(tokens, 64)
            engine.scheduler.add_request(one)
            step = engine.scheduler.schedule()
            times.append(now() - start)
            assert step.total_num_scheduled_tokens >= load.FIRST_CHUNK
            engine.advance(step, engine.answer(step))
            engine.end(one)
            engine.step()
        return times

    return round_of


def lookup() -> Round:
    """get_computed_blocks of 8K that are found; the hashes are made."""
    engine = Engine(64, 20_000)
    tokens = prompt(load.LONG + 40)
    engine.scheduler.add_request(engine.request(tokens, 1))
    while engine.scheduler.requests:
        engine.step()
    engine.step()

    def round_of() -> list[int]:
        times = []
        for _ in range(load.OPERATIONS_A_ROUND):
            one = engine.request(tokens, 1)
            start = now()
            found = engine.scheduler.kv_cache_manager.get_computed_blocks(one)
            times.append(now() - start)
            assert found[1] == load.LONG, found[1:]
        return times

    return round_of


def match() -> Round:
    """The same with the making of the request, which hashes."""
    engine = Engine(64, 20_000)
    tokens = prompt(load.LONG + 40)
    engine.scheduler.add_request(engine.request(tokens, 1))
    while engine.scheduler.requests:
        engine.step()
    engine.step()

    def round_of() -> list[int]:
        times = []
        for _ in range(load.OPERATIONS_A_ROUND):
            start = now()
            found = engine.scheduler.kv_cache_manager.get_computed_blocks(engine.request(tokens, 1))
            times.append(now() - start)
            assert found[1] == load.LONG
        return times

    return round_of


def turnover() -> Round:
    """Request to the last output of 8K and one token, in a pool that is full of others' blocks."""
    engine = Engine(1, 7000)

    def serve_one() -> int:
        tokens = prompt(load.LONG)
        start = now()
        engine.scheduler.add_request(engine.request(tokens, 1))
        while engine.scheduler.requests:
            engine.step()
        return now() - start

    for _ in range(4):
        serve_one()
    return lambda: [serve_one() for _ in range(load.OPERATIONS_A_ROUND)]


MEASUREMENTS: dict[str, Callable[[], Round]] = {
    **{load.step(size): partial(steps, size) for size in load.STEP_SIZES},
    load.REQUEST: request,
    load.ADMIT: admit,
    load.MATCH: match,
    load.LOOKUP: lookup,
    load.TURNOVER: turnover,
}

if __name__ == "__main__":
    tried = Engine(1, 8000)
    wire.serve(
        {
            "engine": "vLLM",
            "version": vllm.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "groups": ", ".join(f"{layers} layers of {block} tokens" for layers, block in tried.groups),
            "hash": tried.hash_name,
        },
        MEASUREMENTS,
    )
