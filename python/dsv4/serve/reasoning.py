"""Every published spelling of reasoning, read into two settings: whether to think, and how hard.

    chat_template_kwargs ▶ thinking, think ▶ effort fields ▶ (nothing said: the engine's default)

The first that says on or off decides; an effort of "none" says off, any other effort says on where nothing before it
said otherwise. Off beats every effort. The words of other generations and other APIs are mapped to the checkpoint's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsv4.serve.replies import invalid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dsv4.serve.bodies import ThinkingFields
    from dsv4.serve.exchange import Exchange
    from dsv4.types import Effort

NONE = "none"

EFFORTS: Mapping[str, Mapping[str, Effort]] = {
    "preview": {
        "minimal": "high",
        "low": "high",
        "medium": "high",
        "high": "high",
        "xhigh": "max",
        "max": "max",
        "ultra": "max",
    },
    "0731": {
        "minimal": "low",
        "low": "low",
        "medium": "high",
        "high": "high",
        "xhigh": "high",
        "max": "max",
        "ultra": "max",
    },
}
"""Word of a request to word of the checkpoint's encoder, per generation."""

_SwitchAt = tuple[str, bool]
_EffortAt = tuple[str, str]


def reasoning_of(body: ThinkingFields, exchange: Exchange) -> tuple[bool | None, Effort | None]:
    """Whether a request wants thinking, and its effort; None follows the engine's default.

    Raises Refusal for an effort that nobody knows, and under --strict-fields for a contradiction.
    """
    switches, efforts = _said(body)
    for name, word in efforts:
        if word != NONE and word not in EFFORTS["0731"]:
            known = ", ".join((NONE, *EFFORTS["0731"]))
            raise invalid(f"{name} is {word[:64]!r}; it is one of {known}.", name)
    if exchange.door.settings.strict_fields:
        _check_agreement(switches, efforts)
    if body.thinking is not None and body.thinking.budget_tokens is not None:
        exchange.warn("thinking.budget_tokens is not enforced")
    named = next((word for _, word in efforts if word != NONE), None)
    thinking = next((on for _, on in switches), None)
    if thinking is None and named is not None:
        thinking = True
    if thinking is False or named is None:
        return thinking, None
    return thinking, EFFORTS[exchange.door.engine.info.generation][named]


def _said(body: ThinkingFields) -> tuple[list[_SwitchAt], list[_EffortAt]]:
    """What says on or off, and what names an effort, each in order of precedence; "none" is in both."""
    switches: list[_SwitchAt] = []
    efforts: list[_EffortAt] = []

    def switch(name: str, on: bool | None) -> None:  # noqa: FBT001
        if on is not None:
            switches.append((name, on))

    def effort(name: str, word: str | None) -> None:
        if word is not None:
            efforts.append((name, word))
            if word == NONE:
                switches.append((name, False))

    if body.chat_template_kwargs is not None:
        template = body.chat_template_kwargs
        switch("chat_template_kwargs.thinking", template.thinking)
        switch("chat_template_kwargs.enable_thinking", template.enable_thinking)
        effort("chat_template_kwargs.reasoning_effort", template.reasoning_effort)
    if body.thinking is not None and body.thinking.type is not None:
        switch("thinking.type", body.thinking.type != "disabled")
    switch("think", body.think)
    effort("reasoning_effort", body.reasoning_effort)
    effort("reasoning.effort", body.reasoning.effort if body.reasoning is not None else None)
    effort("output_config.effort", body.output_config.effort if body.output_config is not None else None)
    return switches, efforts


def _check_agreement(switches: Sequence[_SwitchAt], efforts: Sequence[_EffortAt]) -> None:
    """Refuses fields that say different things."""
    says_on = [*(name for name, on in switches if on), *(name for name, word in efforts if word != NONE)]
    says_off = [name for name, on in switches if not on]
    if says_on and says_off:
        message = f"{says_on[0]} asks for thinking and {says_off[0]} for none (--strict-fields)."
        raise invalid(message, says_on[0], code="contradiction")
    if len({word for _, word in efforts}) > 1:
        (first, word), (second, other) = efforts[0], next(item for item in efforts if item[1] != efforts[0][1])
        raise invalid(f"{first} is {word!r} and {second} is {other!r} (--strict-fields).", first, code="contradiction")
