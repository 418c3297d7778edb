"""The strings of the prompt format. "｜" is U+FF5C and "▁" is U+2581; both are part of the names."""

from __future__ import annotations

from functools import cache
from importlib import resources

import msgspec

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
REMINDER = "<｜latest_reminder｜>"
THINK = "<think>"
END_THINK = "</think>"
DSML = "｜DSML｜"

REQUIRED = (BOS, EOS, USER, ASSISTANT, THINK, END_THINK, DSML)
"""Control tokens that every conversation needs; a checkpoint without them cannot chat."""


class PromptStrings(msgspec.Struct, frozen=True):
    """The longer constants, from strings.json beside this file, whose head tells their provenance and licence."""

    tools_template: str
    response_format_template: str
    effort_preview: dict[str, str]
    effort_0731: dict[str, str]
    task_tokens: dict[str, str]

    def efforts(self, generation: str) -> dict[str, str]:
        """Reasoning effort to the prefix of the prompt."""
        return self.effort_preview if generation == "preview" else self.effort_0731


@cache
def prompt_strings() -> PromptStrings:
    """The constants, read once."""
    data = resources.files("dsv4.engine.text").joinpath("strings.json").read_bytes()
    return msgspec.json.decode(data, type=PromptStrings)
