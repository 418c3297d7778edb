"""The compressors of C4 and C128 layers over carried state.

    x ─▶ kv, score (+ ape)  ─▶  rows of this step ┐
                    state of earlier steps ───────┴▶ pool ─▶ norm ─▶ RoPE ─▶ entry of each group that closes
                    state for later steps  ◀───── the last rows (C4), the open group's running softmax (C128)

State is addressed by position, so absence follows from it: a C4 group at position 0 has no previous group, a C128 group
begins empty. `state_resets` says the same once more, for a slot whose former owner left rows behind.

Drafts may be wrong, and then nothing of them may count. A ring has room for them beside the rows that a group still
needs, and what a wrong draft left there is overwritten before it is read, as is a compressed entry that it closed. The
running softmax cannot go back: the state behind the first token that may be the last to count, and behind every draft,
goes to a bank of its own, and the next step says from which it goes on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dsv4.config.model import ModelConfig
from dsv4.kernels.compress.reference import Running, accumulate, pool
from dsv4.kernels.quant.reference import hadamard
from dsv4.model.caches import C4_ROWS
from dsv4.model.inputs import StepInputs
from dsv4.model.norm_rope import Angles, RMSNorm
from dsv4.model.numerics import Numerics
from dsv4.model.weights import Linear, TensorSource, take_vector


@dataclass(frozen=True, slots=True)
class C4Plan:
    """Where the 8 rows of each closing C4 group come from, and which rows of this step are kept. n groups, m rows.

    entry_slots  [n] of the compressed row
    tokens       [n, 8] index in 0..T where the row is of this step
    in_step      [n, 8]
    absent       [n, 8] before the request's first token
    state_slots  [n, 1], ring [n, 8]: where the other rows lie
    kept_tokens, kept_slots, kept_ring   [m]
    """

    entry_slots: Tensor
    angles: Angles
    tokens: Tensor
    in_step: Tensor
    absent: Tensor
    state_slots: Tensor
    ring: Tensor
    kept_tokens: Tensor
    kept_slots: Tensor
    kept_ring: Tensor

    @classmethod
    def of(cls, inputs: StepInputs, positions: Tensor, frequencies: Tensor, num_kept: int = C4_ROWS) -> C4Plan:
        """From the step's arrays; once for all layers. num_kept: rows of the ring."""
        closing = inputs.c4_tokens.long()
        request = inputs.token_rows[closing].long()
        back = torch.arange(C4_ROWS - 1, -1, -1, device=closing.device)
        at, token = positions[closing][:, None] - back, closing[:, None] - back
        in_step = token >= inputs.query_starts[request].long()[:, None]
        absent = (at < 0) | (~in_step & inputs.state_resets[request].bool()[:, None])
        rows = inputs.token_rows.long()
        left = inputs.query_starts[1:].long()[rows] - torch.arange(len(rows), device=rows.device)
        kept = (left <= num_kept).nonzero().squeeze(1)
        return cls(
            entry_slots=inputs.c4_slots.long(),
            angles=Angles.at(positions[closing] - 3, frequencies),
            tokens=token.clamp_min(0),
            in_step=in_step,
            absent=absent,
            state_slots=inputs.state_slots[request].long()[:, None],
            ring=at % num_kept,
            kept_tokens=kept,
            kept_slots=inputs.state_slots[rows[kept]].long(),
            kept_ring=positions[kept] % num_kept,
        )


@dataclass(frozen=True, slots=True)
class C128Plan:
    """The runs of tokens of this step that lie in one C128 group, longest first.

    entry_slots  [n] of the compressed row, and `closed` [n]: the run that completes it
    first        [r] first token of each run
    state_slots  [r], banks [r]: where the state before it lies
    continues    [r] its group was begun in an earlier step
    active       for each place in a run: how many runs are that long
    kept         for each place in a run: the runs [k] whose state behind it is kept, their slots [k] and banks [k]
    """

    entry_slots: Tensor
    angles: Angles
    closed: Tensor
    first: Tensor
    state_slots: Tensor
    banks: Tensor
    continues: Tensor
    active: tuple[int, ...]
    kept: tuple[tuple[Tensor, Tensor, Tensor], ...]

    @classmethod
    def of(cls, inputs: StepInputs, positions: Tensor, frequencies: Tensor) -> C128Plan:
        """From the step's arrays; once for all layers."""
        starts, at, resets = inputs.query_starts.tolist(), positions.tolist(), inputs.state_resets.tolist()
        writes = inputs.bank_writes.tolist()
        if not writes:  # nothing is drafted
            ends = set(starts[1:])
            writes = [0 if token + 1 in ends else -1 for token in range(len(at))]
        runs = []
        for b, (token, end) in enumerate(pairwise(starts)):
            fresh = bool(resets[b])
            while token < end:
                length = min(end - token, 128 - at[token] % 128)
                runs.append((length, token, b, at[token] % 128 != 0 and not fresh))
                token, fresh = token + length, False  # noqa: PLW2901 - the loop walks the request's tokens
        runs.sort(key=lambda run: -run[0])
        run_of_last = {token + length - 1: i for i, (length, token, _, _) in enumerate(runs)}
        closing = inputs.c128_tokens.long()
        device = positions.device

        def tensor(values: list[int] | list[bool], dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        request_of = tensor([b for _, _, b, _ in runs])
        slots, banks = inputs.state_slots.long()[request_of], torch.zeros_like(request_of)
        if len(inputs.state_banks):
            banks = inputs.state_banks.long()[request_of]

        def kept(place: int) -> tuple[Tensor, Tensor, Tensor]:
            found = [
                (i, writes[token + place])
                for i, (length, token, _, _) in enumerate(runs)
                if length > place and writes[token + place] >= 0 and at[token + place] % 128 != 127
            ]
            which = tensor([i for i, _ in found])
            return which, slots[which], tensor([bank for _, bank in found])

        active = tuple(sum(run[0] > i for run in runs) for i in range(runs[0][0] if runs else 0))
        return cls(
            entry_slots=inputs.c128_slots.long(),
            angles=Angles.at(positions[closing] - 127, frequencies),
            closed=tensor([run_of_last[token] for token in closing.tolist()]),
            first=tensor([token for _, token, _, _ in runs]),
            state_slots=slots,
            banks=banks,
            continues=tensor([continues for *_, continues in runs], torch.bool),
            active=active,
            kept=tuple(kept(place) for place in range(len(active))),
        )


@dataclass(frozen=True, slots=True)
class Compressor:
    """The weights of one compressor and its two uses: `close_c4` and `close_c128`.

    wkv_gate  both projections, float32 in and out: [kv | score], each 2 D (C4: A half, B half) or D (C128) wide
    ape       [ratio, 2 D or D], added to the score by position in the group
    rotated   the indexer's: entries go through the Hadamard transform
    """

    wkv_gate: Linear
    ape: Tensor
    norm: RMSNorm
    rotated: bool
    numerics: Numerics

    @classmethod
    def take(
        cls, source: TensorSource, config: ModelConfig, numerics: Numerics, prefix: str, *, rotated: bool
    ) -> Compressor:
        """The compressor whose tensors are `prefix`.wkv.weight, ..."""
        wkv_gate = Linear.take(source, numerics, f"{prefix}.wkv", f"{prefix}.wgate")
        norm = RMSNorm.take(source, config, numerics, f"{prefix}.norm")
        return cls(wkv_gate, take_vector(source, f"{prefix}.ape"), norm, rotated, numerics)

    def rows(self, x: Tensor, positions: Tensor) -> Tensor:
        """The kv and score (ape added) of every token: [T, 2, width]."""
        projected = self.wkv_gate.exact(x).view(len(x), 2, -1)
        projected[:, 1] += self.ape[positions % len(self.ape)]
        return projected

    def entries(self, pooled: Tensor, angles: Angles) -> Tensor:
        """Pooled rows as they are stored, but for their quantisation."""
        rounded = self.numerics.rounded
        out = rounded(angles.rotate(self.norm(rounded(pooled))))
        return rounded(hadamard(out)) if self.rotated else out

    def close_c4(self, x: Tensor, positions: Tensor, plan: C4Plan, state: Tensor) -> Tensor:
        """Entries [n, D] of the groups that close; state [slots, ring, 2, 2 D] then holds each request's last rows."""
        new = self.rows(x, positions)
        found = torch.where(plan.in_step[..., None, None], new[plan.tokens], state[plan.state_slots, plan.ring])
        state[plan.kept_slots, plan.kept_ring] = new[plan.kept_tokens]
        dim = new.shape[-1] // 2
        halves = torch.cat((found[:, :4, :, :dim], found[:, 4:, :, dim:]), 1)  # A of the previous group, B of this one
        kv = halves[:, :, 0].masked_fill(plan.absent[..., None], 0)
        score = halves[:, :, 1].masked_fill(plan.absent[..., None], -math.inf)
        return self.entries(pool(kv, score), plan.angles)

    def close_c128(self, x: Tensor, positions: Tensor, plan: C128Plan, state: Tensor) -> Tensor:
        """Entries [n, D] of the groups that close; state [slots, banks, 3, D] then holds the running softmaxes."""
        new = self.rows(x, positions)
        running = Running.empty(len(plan.first), new.shape[-1], x.device)
        carried = state[plan.state_slots, plan.banks]
        for part, kept in zip(running, carried.unbind(1), strict=True):
            part.copy_(torch.where(plan.continues[:, None], kept, part))
        for i, n in enumerate(plan.active):
            rows = new[plan.first[:n] + i]
            grown = accumulate(Running(*(part[:n] for part in running)), rows[:, 0], rows[:, 1])
            for part, value in zip(running, grown, strict=True):
                part[:n] = value
            which, slots, banks = plan.kept[i]
            if len(which):
                state[slots, banks] = torch.stack([part[which] for part in running], 1)
        return self.entries(running.pooled[plan.closed], plan.angles)
