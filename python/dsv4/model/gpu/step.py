"""What all layers share of one step on the device, computed once, without a look at what is on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4.config.model import ModelConfig
from dsv4.kernels.attention.plan import window_slots
from dsv4.kernels.compress.plan import C4Plan, C128Plan, Requests, plan_c4, plan_c128
from dsv4.model.caches import Layouts
from dsv4.model.inputs import StepInputs
from dsv4.model.norm_rope import Angles
from dsv4.model.step import Frequencies

Turn = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the host knows of a step: how far its requests reach.

    max_seq_len     tokens of the longest request after the step
    max_new_tokens  the most tokens that one request brings
    """

    max_seq_len: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Step:
    """One step's arrays, the angles of its tokens and its plans.

    window_slots   int32 [T, 128], see `sparse_decode`
    c4, c128       None in a model without such layers
    """

    inputs: StepInputs
    bounds: Bounds
    window_angles: Turn
    compressed_angles: Turn
    window_slots: Tensor
    c4: C4Plan | None
    c128: C128Plan | None

    @classmethod
    def of(
        cls, inputs: StepInputs, bounds: Bounds, config: ModelConfig, frequencies: Frequencies, layouts: Layouts
    ) -> Step:
        """The step of these inputs, on their device, for a model of this shape over states of these layouts."""
        ratios = set(config.compress_ratios[: config.num_hidden_layers])
        at = Requests(
            positions=inputs.positions,
            token_rows=inputs.token_rows,
            query_starts=inputs.query_starts,
            state_slots=inputs.state_slots,
            state_resets=inputs.state_resets,
            state_banks=inputs.state_banks if len(inputs.state_banks) else None,
            bank_writes=inputs.bank_writes if len(inputs.bank_writes) else None,
            ring=layouts.c4_ring,
            banks=layouts.c128_banks,
        )
        compressed = frequencies.compressed
        return cls(
            inputs=inputs,
            bounds=bounds,
            window_angles=_turn(inputs.positions, frequencies.window),
            compressed_angles=_turn(inputs.positions, compressed),
            window_slots=window_slots(
                inputs.positions, inputs.token_rows, inputs.block_table_swa, inputs.swa_first_block
            ),
            c4=plan_c4(at, inputs.c4_tokens, inputs.c4_slots, compressed) if 4 in ratios else None,
            c128=plan_c128(at, inputs.c128_tokens, inputs.c128_slots, compressed) if 128 in ratios else None,
        )

    def angles(self, ratio: int) -> Turn:
        """Everything in a layer of this ratio turns by these."""
        return self.compressed_angles if ratio else self.window_angles


def _turn(positions: Tensor, frequencies: Tensor) -> Turn:
    angles = Angles.at(positions, frequencies)
    return angles.cos.contiguous(), angles.sin.contiguous()


def on_device(frequencies: Frequencies, device: torch.device) -> Frequencies:
    """Both tables there."""
    return Frequencies(frequencies.window.to(device), frequencies.compressed.to(device))
