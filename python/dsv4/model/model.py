"""DeepSeek-V4 over paged caches: a step's tokens in, logits out.

ids ─▶ embed ─▶ N equal streams ─▶ blocks ─▶ streams ─▶ mHC head ─▶ norm ─▶ logits
                                   ▲    │        └──▶ MTP
                                 caches ┘
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dsv4.config.model import ModelConfig
from dsv4.kernels.linear.reference import column_major, linear
from dsv4.kernels.mhc.reference import expand
from dsv4.model.block import Block
from dsv4.model.caches import Caches
from dsv4.model.inputs import StepInputs
from dsv4.model.mhc import HyperHead
from dsv4.model.norm_rope import RMSNorm
from dsv4.model.numerics import Numerics
from dsv4.model.step import Frequencies, Step
from dsv4.model.weights import TensorSource, take_vector


class StepOutput(NamedTuple):
    """logits [R, vocab] float32 of the sampled tokens; streams [T, N, C] after the last layer, which MTP reads."""

    logits: Tensor
    streams: Tensor


class DeepseekV4:
    """The model of one checkpoint, its weights in float32.

    A row of the output depends on its own request alone, bit for bit: not on how the request was cut into steps, nor on
    what else is in the step.
    """

    def __init__(self, config: ModelConfig, source: TensorSource, numerics: Numerics) -> None:
        self.config = config
        self.numerics = numerics
        self.embedding = take_vector(source, "embed.weight")
        self.blocks = [
            Block.take(
                source,
                config,
                numerics,
                f"layers.{i}",
                ratio=config.compress_ratios[i],
                hashed=i < config.num_hash_layers,
            )
            for i in range(config.num_hidden_layers)
        ]
        self.hc_head = HyperHead.take(source, config, numerics, "hc_head")
        self.norm = RMSNorm.take(source, config, numerics, "norm")
        self.head = column_major(take_vector(source, "head.weight"))
        self.frequencies = Frequencies.of(config)

    @torch.inference_mode()
    def forward(self, inputs: StepInputs, caches: Caches) -> StepOutput:
        """Runs one step: writes the tokens' rows and state to the caches, returns the wanted logits.

        A step of no tokens touches nothing.
        """
        if not len(inputs.token_ids):
            empty = self.embedding.new_empty(0, self.config.hc_mult, self.config.hidden_size)
            return StepOutput(self.embedding.new_empty(0, self.config.vocab_size), empty)
        step = Step.of(inputs, self.config, self.frequencies, caches.layouts)
        streams = expand(self.embed(step.token_ids), self.config.hc_mult)
        for block, pools in zip(self.blocks, caches.layers, strict=False):  # draft layers' pools come after
            streams = block(streams, step, pools, step.token_ids)
        sampled = streams[inputs.sample_tokens.long()]
        return StepOutput(self.logits(self.norm(self.hc_head(sampled))), streams)

    def embed(self, token_ids: Tensor) -> Tensor:
        """[T] int64 -> [T, C]."""
        return self.numerics.rounded(self.embedding[token_ids])

    def logits(self, x: Tensor) -> Tensor:
        """From x [R, C], normalised -> [R, vocab], float32 products."""
        return linear(x, self.head)
