"""Sampling on the GPU: what every row asked for as tensors, one call of the kernel, one copy back.

State is the host's (`runtime.sample`), so that the same requests draw the same tokens on either device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dsv4.kernels.sample.philox import uniforms
from dsv4.kernels.sample.sample import Edits, Params, Sampled, Workspace, sample
from dsv4.runtime.sample import Row, Sampler, token_of
from dsv4.runtime.step import StepResult
from dsv4.types import TokenLogprob

REPEATED, MASKED, ALLOWED = 1, 2, 4
DRAWN, BROKEN, LEFT = 0, 1, 2

Edit = tuple[int, int, float, float]
"""Id, flags, how often it was generated, bias."""


class GpuSampler:
    """Samples the rows of a step with one call of the kernel; a row that it leaves is sampled on the host."""

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        self.requests = Sampler()
        self._workspace = Workspace(max_rows, vocab_size, device)
        self._device = device

    def sample(self, logits: Tensor, request_ids: Sequence[int], positions: Sequence[int]) -> StepResult:
        """One token per row of logits [B, V] float32 on the device; positions: tokens generated before."""
        rows = self.requests.rows(request_ids)
        if not rows:
            return StepResult([], [], [])
        wants = [-1 if row.params.logprobs is None else row.params.logprobs for row in rows]
        draws = any(row.params.temperature > 0.0 for row in rows)
        params, edits = self._params(rows, positions, wants), self._edits(rows, positions)
        found = sample(logits, params, edits, self._workspace, draws=draws, logprobs=max(wants) >= 0)
        return self._result(found, logits, rows, positions, wants)

    def _params(self, rows: Sequence[Row], positions: Sequence[int], wants: Sequence[int]) -> Params:
        asked = [row.params for row in rows]

        def tensor(values: Sequence[object], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(self._device, non_blocking=True)

        return Params(
            temperature=tensor([each.temperature for each in asked], torch.float64),
            top_k=tensor([each.top_k for each in asked], torch.int32),
            top_p=tensor([each.top_p for each in asked], torch.float64),
            min_p=tensor([each.min_p for each in asked], torch.float64),
            seed=tensor([row.draw.seed for row in rows], torch.int64),
            choice=tensor([row.draw.choice for row in rows], torch.int64),
            position=tensor(positions, torch.int64),
            penalties=tensor(
                [(each.repetition_penalty, each.presence_penalty, each.frequency_penalty) for each in asked],
                torch.float32,
            ),
            num_logprobs=tensor(wants, torch.int32),
        )

    def _edits(self, rows: Sequence[Row], positions: Sequence[int]) -> Edits:
        if all(row.is_plain(position) for row, position in zip(rows, positions, strict=True)):
            return Edits.none(len(rows), self._device)
        starts, found = [0], []
        for row, position in zip(rows, positions, strict=True):
            found += list(edits_of(row, position))
            starts.append(len(found))
        ids, flags, counts, bias = (np.array(column) for column in zip(*found, strict=True)) if found else ([0],) * 4
        restricted = [row.allowed is not None for row in rows]

        def tensor(values: object, dtype: torch.dtype) -> Tensor:
            return torch.as_tensor(values).to(dtype).to(self._device, non_blocking=True)

        return Edits(
            starts=tensor(starts, torch.int32),
            ids=tensor(ids, torch.int32),
            flags=tensor(flags, torch.uint8),
            counts=tensor(counts, torch.float32),
            bias=tensor(bias, torch.float32),
            restricted=tensor(restricted, torch.uint8),
        )

    def _result(
        self, found: Sampled, logits: Tensor, rows: Sequence[Row], positions: Sequence[int], wants: Sequence[int]
    ) -> StepResult:
        tokens, status = torch.stack((found.tokens, found.status)).cpu().tolist()
        for index in (index for index, kind in enumerate(status) if kind == LEFT):
            tokens[index] = self._on_host(logits[index], rows[index], positions[index])
        for row, token in zip(rows, tokens, strict=True):
            if row.said is not None:
                row.said.note(token)
        logprobs: list[TokenLogprob | None] = [None] * len(rows)
        if max(wants) >= 0:
            values, ranks = found.logprobs.tolist(), found.ranks.tolist()
            top_ids, top_values = found.top_ids.tolist(), found.top_logprobs.tolist()
            for index, top in enumerate(wants):
                if top >= 0 and status[index] != BROKEN:
                    alternatives = tuple(zip(top_ids[index][:top], top_values[index][:top], strict=True))
                    logprobs[index] = TokenLogprob(tokens[index], values[index], ranks[index], alternatives)
        return StepResult(tokens, logprobs, [index for index, kind in enumerate(status) if kind == BROKEN])

    @staticmethod
    def _on_host(logits: Tensor, row: Row, position: int) -> int:
        """A row of which more ids may survive top-k or top-p than the kernel keeps."""
        values = logits.cpu().numpy()
        masked = values if row.is_plain(position) else row.masked(values, position)
        one = [np.array([number], dtype=np.int64) for number in (row.draw.seed, row.draw.choice, position)]
        return token_of(masked, row.params, float(uniforms(*one)[0]))


def edits_of(row: Row, position: int) -> Iterator[Edit]:
    """The ids whose logits change at `position`, each once."""
    flags: dict[int, int] = {}
    counts: dict[int, float] = {}
    if row.said is not None:
        for token in row.said.seen if row.params.repetition_penalty != 1.0 else ():
            flags[token] = flags.get(token, 0) | REPEATED
        counts = dict(zip(row.said.generated, row.said.counts, strict=True))
    for token in () if row.allowed is None else row.allowed.tolist():
        flags[token] = flags.get(token, 0) | ALLOWED
    for token in row.hidden.tolist() if position < row.params.min_tokens else ():
        flags[token] = flags.get(token, 0) | MASKED
    bias = dict(zip(row.bias_ids.tolist(), row.bias.tolist(), strict=True))
    for token in sorted({*flags, *counts, *bias}):
        yield token, flags.get(token, 0), counts.get(token, 0.0), bias.get(token, 0.0)
