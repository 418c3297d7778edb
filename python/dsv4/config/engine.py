"""Every setting of the engine, in one place, with its default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["auto", "bfloat16", "float32"]
KvCacheDtype = Literal["auto", "fp8_ds_mla", "bf16", "float32"]
IndexerDtype = Literal["auto", "fp8", "fp4", "float32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of one engine; None and "auto" are resolved once, at start, and reported with the reason.

    model                   a directory in the official format, or "demo"
    dtype                   activations; "float32" on all three dtypes means that nothing is quantised or simulated
    max_model_len           tokens, prompt and output together; None: config, capped by what the pools hold
    kv_cache_memory_bytes   bytes for all pools together; None: 1 GiB on the CPU
    max_num_seqs            most requests running at once
    max_num_batched_tokens  token budget of one step
    cuda_graphs             decode steps are captured at start and replayed; False: one kernel at a time; None: on a GPU
    max_steps_in_flight     2: the next step is planned while one runs, and takes its tokens from there; 1: not
    max_num_queued_reqs, max_num_queued_tokens   bounds of the queue; None: 4 x max_num_seqs, 16 x max_model_len
    recipe                  limits by device and load: a name in config/recipes, or the path of a .toml file
    enable_prefix_caching   requests reuse the KV blocks of others that began with the same tokens
    prefix_cache_retention_interval   tokens between places inside a prompt where others can start; 0: end, forks
    seed                    seeds the draws of requests that bring none, and dummy weights
    record_trace            a file for everything that goes into the core, prompts included, to be replayed later
    """

    model: str = "demo"
    tokenizer: str | None = None
    served_model_name: str | None = None
    load_format: Literal["auto", "safetensors", "dummy"] = "auto"
    device: str = "auto"
    dtype: Dtype = "auto"
    kv_cache_dtype: KvCacheDtype = "auto"
    indexer_dtype: IndexerDtype = "auto"
    max_model_len: int | None = None
    kv_cache_memory_bytes: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    cuda_graphs: bool | None = None
    max_steps_in_flight: int | None = None
    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None
    recipe: str = "auto"
    enable_prefix_caching: bool = True
    prefix_cache_retention_interval: int = 8192
    default_thinking: bool = True
    default_reasoning_effort: Literal["auto", "low", "high", "max"] = "auto"
    allow_special_in_content: bool = False
    max_output_queue_items: int = 256
    seed: int | None = None
    record_trace: str | None = None
    progress: bool = False
