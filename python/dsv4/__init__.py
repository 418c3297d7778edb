"""The serving engine for DeepSeek-V4, and for nothing else.

`LLM` is the synchronous door and `AsyncEngine` the asyncio one; both run in this process. Importing this package
imports neither torch nor the engine: that happens when one of the two is first named.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from dsv4.config.engine import EngineConfig
from dsv4.errors import (
    CheckpointError,
    ConfigError,
    Dsv4Error,
    EngineClosed,
    InvalidRequest,
    QueueFull,
    RequestFailed,
    UnsupportedModel,
    Violation,
)
from dsv4.types import (
    ChatRequest,
    ChatResult,
    Completion,
    Delta,
    FinishReason,
    RenderedChat,
    SamplingParams,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)

if TYPE_CHECKING:
    from dsv4.engine.engine import AsyncEngine
    from dsv4.engine.llm import LLM

    __version__: str

__all__ = [
    "LLM",
    "AsyncEngine",
    "ChatRequest",
    "ChatResult",
    "CheckpointError",
    "Completion",
    "ConfigError",
    "Delta",
    "Dsv4Error",
    "EngineClosed",
    "EngineConfig",
    "FinishReason",
    "InvalidRequest",
    "QueueFull",
    "RenderedChat",
    "RequestFailed",
    "SamplingParams",
    "TokenLogprob",
    "ToolCall",
    "ToolCallDelta",
    "UnsupportedModel",
    "Violation",
    "__version__",
]

_LAZY = {"LLM": "dsv4.engine.llm", "AsyncEngine": "dsv4.engine.engine"}


def __getattr__(name: str) -> object:
    """Imports what is expensive when it is first used (PEP 562)."""
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
    elif name == "__version__":
        value = version("dsv4")
    else:
        msg = f"module 'dsv4' has no attribute {name!r}"
        raise AttributeError(msg)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
