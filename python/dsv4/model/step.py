"""What all layers share of one step, computed once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dsv4.config.model import ModelConfig
from dsv4.model.caches import Layouts
from dsv4.model.compress import C4Plan, C128Plan
from dsv4.model.inputs import StepInputs
from dsv4.model.norm_rope import Angles, compressed_frequencies, window_frequencies
from dsv4.model.reads import Group, query_groups


@dataclass(frozen=True, slots=True)
class Frequencies:
    """The two rotary tables of a model."""

    window: Tensor
    compressed: Tensor

    @classmethod
    def of(cls, config: ModelConfig) -> Frequencies:
        """Both tables, float32."""
        return cls(window_frequencies(config), compressed_frequencies(config))


@dataclass(frozen=True, slots=True)
class Step:
    """One step's arrays as the layers index with them (int64), its query groups and its compress plans.

    angles     of every token, by table
    c4, c128   None in a model without such layers
    """

    token_ids: Tensor
    positions: Tensor
    swa_slots: Tensor
    window_angles: Angles
    compressed_angles: Angles
    groups: list[Group]
    c4: C4Plan | None
    c128: C128Plan | None
    layouts: Layouts

    @classmethod
    def of(cls, inputs: StepInputs, config: ModelConfig, frequencies: Frequencies, layouts: Layouts) -> Step:
        """The step of these inputs for a model of this shape."""
        positions = inputs.positions.long()
        ratios = set(config.compress_ratios[: config.num_hidden_layers]) - {0}
        compressed = frequencies.compressed
        return cls(
            token_ids=inputs.token_ids.long(),
            positions=positions,
            swa_slots=inputs.swa_slots.long(),
            window_angles=Angles.at(positions, frequencies.window),
            compressed_angles=Angles.at(positions, compressed),
            groups=query_groups(inputs, positions, config.sliding_window, ratios),
            c4=C4Plan.of(inputs, positions, compressed, layouts.c4_ring) if 4 in ratios else None,
            c128=C128Plan.of(inputs, positions, compressed) if 128 in ratios else None,
            layouts=layouts,
        )

    def angles(self, ratio: int) -> Angles:
        """Everything in a layer of this ratio turns by this table."""
        return self.compressed_angles if ratio else self.window_angles
