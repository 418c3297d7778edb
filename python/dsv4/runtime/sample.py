"""The sampler: what every running request asked for, what it has said so far, and one token per sampled row.

    begin(request) ─▶ [ sample(rows) ─▶ token, token, ... ] ─▶ end(request)

State is kept only for requests with penalties: the distinct ids seen and how often each was generated, updated by one
entry per token. The draw itself has no state (see philox), so a preempted request goes on as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dsv4.errors import Violation
from dsv4.kernels.sample import reference
from dsv4.kernels.sample.philox import uniforms
from dsv4.runtime.guard import non_finite_rows
from dsv4.runtime.step import Draw, StepResult
from dsv4.types import SamplingParams, TokenLogprob

Floats = NDArray[np.float32]


@dataclass(slots=True)
class Said:
    """Ids of the prompt and of the output, each once, in growing arrays; how often each id was generated."""

    seen: list[int]
    known: set[int]
    generated: list[int] = field(default_factory=list)
    counts: list[float] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)
    total: int = 0

    def note(self, token: int) -> None:
        """One more token was generated."""
        self.total += 1
        place = self.places.get(token)
        if place is None:
            self.places[token] = len(self.generated)
            self.generated.append(token)
            self.counts.append(1.0)
            if token not in self.known:
                self.known.add(token)
                self.seen.append(token)
        else:
            self.counts[place] += 1.0


class Row:
    """One request, ready to be sampled: its parameters as arrays."""

    def __init__(self, draw: Draw) -> None:
        params = draw.params
        self.draw = draw
        self.params = params
        self.penalised = (
            params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        )
        self.bias_ids = np.fromiter(params.logit_bias, dtype=np.int64)
        self.bias = np.fromiter(params.logit_bias.values(), dtype=np.float32)
        self.allowed = None if params.allowed_token_ids is None else np.unique(params.allowed_token_ids)
        self.hidden = np.array(sorted(set(draw.hidden)), dtype=np.int64)
        self.said: Said | None = None
        if self.penalised:
            known = set(draw.prompt) if params.repetition_penalty != 1.0 else set()
            self.said = Said(sorted(known), known)

    def is_plain(self, position: int) -> bool:
        """Whether the logits are sampled from as they are."""
        hides = position < self.params.min_tokens and len(self.hidden) > 0
        return not (self.penalised or hides or len(self.bias_ids) or self.allowed is not None)

    def masked(self, logits: Floats, position: int) -> Floats:
        """A copy of the row after penalties, bias and masks."""
        row = logits.copy()
        if self.said is not None:
            if self.said.total != position:
                raise Violation(f"a request at position {position} has noted {self.said.total} tokens")
            reference.penalise(
                row,
                seen=np.array(self.said.seen, dtype=np.int64),
                generated=np.array(self.said.generated, dtype=np.int64),
                counts=np.array(self.said.counts, dtype=np.float32),
                repetition=self.params.repetition_penalty,
                presence=self.params.presence_penalty,
                frequency=self.params.frequency_penalty,
            )
        if len(self.bias_ids):
            row[self.bias_ids] += self.bias
        if self.allowed is not None:
            reference.allow_only(row, self.allowed)
        if position < self.params.min_tokens:
            row[self.hidden] = -np.inf
        return row


class Sampler:
    """Samples for any number of requests; every row is treated as if it were alone."""

    def __init__(self) -> None:
        self._rows: dict[int, Row] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def begin(self, request_id: int, draw: Draw) -> None:
        """A request that will be sampled."""
        self._rows[request_id] = Row(draw)

    def end(self, request_id: int) -> None:
        """A request that will not be sampled any more; unknown ids are let through."""
        self._rows.pop(request_id, None)

    def rows(self, request_ids: Sequence[int]) -> list[Row]:
        """What each of these requests asked for and has said."""
        return [self._rows[request_id] for request_id in request_ids]

    def sample(self, logits: Floats, request_ids: Sequence[int], positions: Sequence[int]) -> StepResult:
        """One token per row.

        logits       [B, V] float32, contiguous; left as they are
        request_ids  [B] whose row it is
        positions    [B] tokens that each had generated before
        """
        non_finite = non_finite_rows(logits)
        rows = self.rows(request_ids)
        tokens = self._greedy(logits, rows, positions, set(non_finite))
        drawn = self._uniforms(rows, positions)
        logprobs: list[TokenLogprob | None] = [None] * len(rows)
        for index, row in enumerate(rows):
            if index in non_finite:
                tokens[index] = 0
                if row.said is not None:
                    row.said.note(0)  # it ends with this row, but the next step may have been planned with it
                continue
            position = positions[index]
            if tokens[index] < 0:
                masked = logits[index] if row.is_plain(position) else row.masked(logits[index], position)
                tokens[index] = token_of(masked, row.params, drawn.get(index))
            if row.said is not None:
                row.said.note(tokens[index])
            if row.params.logprobs is not None:
                logprobs[index] = _logprob(logits[index], tokens[index], row.params.logprobs)
        return StepResult(tokens, logprobs, non_finite)

    @staticmethod
    def _greedy(logits: Floats, rows: list[Row], positions: Sequence[int], bad: set[int]) -> list[int]:
        """Tokens of the greedy rows without masks, all at once; -1 elsewhere."""
        tokens = [-1] * len(rows)
        plain = [
            index
            for index, row in enumerate(rows)
            if row.params.temperature == 0.0 and index not in bad and row.is_plain(positions[index])
        ]
        if plain:
            found = reference.greedy(logits if len(plain) == len(rows) else logits[plain])
            for index, token in zip(plain, found.tolist(), strict=True):
                tokens[index] = token
        return tokens

    @staticmethod
    def _uniforms(rows: list[Row], positions: Sequence[int]) -> dict[int, float]:
        """The random number of every row that draws, made together; each depends on its own row alone."""
        drawing = [index for index, row in enumerate(rows) if row.params.temperature > 0.0]
        if not drawing:
            return {}
        numbers = uniforms(
            np.array([rows[index].draw.seed for index in drawing], dtype=np.int64),
            np.array([rows[index].draw.choice for index in drawing], dtype=np.int64),
            np.array([positions[index] for index in drawing], dtype=np.int64),
        )
        return dict(zip(drawing, numbers.tolist(), strict=True))


def token_of(row: Floats, params: SamplingParams, uniform: float | None) -> int:
    """The token of a masked row [V]; `uniform` is its random number, None for a greedy one."""
    if uniform is None:
        return int(reference.greedy(row[None])[0])
    return reference.draw(
        row,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        uniform=uniform,
    )


def _logprob(row: Floats, token: int, top: int) -> TokenLogprob:
    value, rank, alternatives = reference.logprob(row, token, top)
    return TokenLogprob(token, value, rank, alternatives)
