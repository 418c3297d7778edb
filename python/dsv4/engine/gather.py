"""Whole answers from deltas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dsv4.types import Completion, Delta, Prompt, RenderedChat, ToolCall


def prompts_of(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several as a list; a sequence of numbers is one prompt."""
    if isinstance(prompts, str | RenderedChat):
        return [prompts]
    if prompts and all(isinstance(item, int) for item in prompts):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def completions(deltas: Iterable[Delta], prompt_index: int = 0) -> list[Completion]:
    """One completion per choice, in their order; every choice has its last delta."""
    by_choice: dict[int, list[Delta]] = {}
    for delta in deltas:
        by_choice.setdefault(delta.index, []).append(delta)
    return [_completion(parts, prompt_index) for _, parts in sorted(by_choice.items())]


def _completion(parts: Sequence[Delta], prompt_index: int) -> Completion:
    last = parts[-1]
    return Completion(
        prompt_index=prompt_index,
        index=last.index,
        text="".join(part.content for part in parts),
        token_ids=tuple(token for part in parts for token in part.token_ids),
        finish_reason=last.finish_reason or "error",
        stop_reason=last.stop_reason,
        reasoning="".join(part.reasoning for part in parts),
        tool_calls=_calls(parts),
        logprobs=tuple(entry for part in parts for entry in part.logprobs),
        num_prompt_tokens=last.num_prompt_tokens,
        num_cached_tokens=last.num_cached_tokens,
        num_reasoning_tokens=last.num_reasoning_tokens,
    )


def _calls(parts: Sequence[Delta]) -> tuple[ToolCall, ...]:
    heads: dict[int, tuple[str, str]] = {}
    arguments: dict[int, list[str]] = {}
    for piece in (piece for part in parts for piece in part.tool_calls):
        if piece.id is not None:
            heads[piece.index] = (piece.id, piece.name or "")
        arguments.setdefault(piece.index, []).append(piece.arguments)
    return tuple(ToolCall(call_id, name, "".join(arguments[index])) for index, (call_id, name) in heads.items())
