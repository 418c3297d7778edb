"""From a configuration to the parts of an engine. torch is imported here, when an engine starts, and not before."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from dsv4.config.directory import resolve_model
from dsv4.config.engine import EngineConfig
from dsv4.config.model import ModelConfig
from dsv4.engine.parts import Bounds, Parts
from dsv4.engine.report import describe
from dsv4.engine.text import Tokenizer, render
from dsv4.engine.trace import Recording
from dsv4.errors import ConfigError


def configured(config: EngineConfig | None, model: str | None, overrides: Mapping[str, Any]) -> EngineConfig:
    """The settings that a call means. Raises ConfigError for a setting that does not exist, with the nearest name."""
    known = [item.name for item in fields(EngineConfig)]
    for name in overrides:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise ConfigError(f"there is no setting {name!r}{hint}")
    chosen = dict(overrides)
    if model is not None:
        chosen["model"] = model
    return replace(config or EngineConfig(), **chosen)


def start(config: EngineConfig) -> Parts:
    """Loads the tokenizer and the model. Raises ConfigError or CheckpointError; nothing is held then."""
    from dsv4.runtime.start import load  # noqa: PLC0415 - an embedding application pays for torch when it starts one

    directory = resolve_model(config.model)
    tokenizer = _tokenizer(config, directory)
    loaded = load(config)
    limits, plan, model = loaded.sizing.limits, loaded.sizing.plan, loaded.model
    info, facts = describe(config, loaded)
    return Parts(
        core=loaded.core,
        runner=loaded.runner,
        tokenizer=tokenizer,
        render=functools.partial(
            render,
            tokenizer=tokenizer,
            generation=model.generation,
            default_thinking=config.default_thinking,
            default_effort=config.default_reasoning_effort,
            max_model_len=limits.max_model_len,
            allow_special_in_content=config.allow_special_in_content,
        ),
        info=info,
        bounds=Bounds(
            max_model_len=limits.max_model_len,
            max_request_tokens=plan.max_request_tokens,
            vocab_size=model.vocab_size,
            max_running=min(plan.sizes.state_slots, limits.max_num_requests),
            max_queued=limits.max_queued_requests,
            max_output_items=config.max_output_queue_items,
        ),
        seed=config.seed,
        facts=facts,
        plan=loaded.plan(),
        recording=None if config.record_trace is None else Recording(loaded.core, config.record_trace),
    )


def _tokenizer(config: EngineConfig, directory: Path) -> Tokenizer:
    model = ModelConfig.load(directory)
    source = directory if config.tokenizer is None else Path(config.tokenizer).expanduser()
    tokenizer = Tokenizer.load(source, vocab_size=model.vocab_size)
    if tokenizer.eos_id != model.eos_token_id:
        raise ConfigError(
            f"the tokenizer in {source} ends sequences with token {tokenizer.eos_id}, and the model with "
            f"{model.eos_token_id} (eos_token_id): they do not belong together"
        )
    return tokenizer
