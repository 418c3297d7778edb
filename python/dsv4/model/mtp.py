"""The plain MTP block of the preview checkpoints: one more layer that guesses the token after the next.

    streams X_t after the last layer ─▶ hnorm ─▶ h_proj ─┐
    embedding of token t + 1 ─────────▶ enorm ─▶ e_proj ─┴▶ block (window, by score) ─▶ own mHC head, own norm ─▶ head

Embedding and head are the model's. Row t keeps position t, for RoPE and in the block's own window cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4.model.block import Block
from dsv4.model.caches import Caches
from dsv4.model.inputs import StepInputs
from dsv4.model.mhc import HyperHead
from dsv4.model.model import DeepseekV4, StepOutput
from dsv4.model.norm_rope import RMSNorm
from dsv4.model.step import Step
from dsv4.model.weights import Linear, TensorSource


class MtpBlock:
    """Plain MTP block `index` of a checkpoint, on top of its model. Its pools follow those of the main layers."""

    def __init__(self, model: DeepseekV4, source: TensorSource, index: int = 0) -> None:
        config, numerics, prefix = model.config, model.numerics, f"mtp.{index}"
        self.model = model
        self.layer = config.num_hidden_layers + index
        self.e_proj = Linear.take(source, numerics, f"{prefix}.e_proj")
        self.h_proj = Linear.take(source, numerics, f"{prefix}.h_proj")
        self.enorm = RMSNorm.take(source, config, numerics, f"{prefix}.enorm")
        self.hnorm = RMSNorm.take(source, config, numerics, f"{prefix}.hnorm")
        self.block = Block.take(source, config, numerics, prefix, ratio=0, hashed=False)
        self.hc_head = HyperHead.take(source, config, numerics, f"{prefix}.hc_head")
        self.norm = RMSNorm.take(source, config, numerics, f"{prefix}.norm")

    @torch.inference_mode()
    def forward(self, streams: Tensor, next_token_ids: Tensor, inputs: StepInputs, caches: Caches) -> StepOutput:
        """The block over the tokens of a step that the model has run.

        streams         [T, N, C]: the model's output for this step, or this block's own, to look one token further
        next_token_ids  [T]: the token after each token of the step
        out             logits [R, vocab] for the token after the next, and the block's own streams
        """
        if not len(inputs.token_ids):
            return StepOutput(self.model.embedding.new_empty(0, self.model.config.vocab_size), streams)
        step = Step.of(inputs, self.model.config, self.model.frequencies, caches.layouts)
        e = self.e_proj(self.enorm(self.model.embed(next_token_ids.long())))
        h = self.h_proj(self.hnorm(streams).flatten(0, 1)).view_as(streams)
        mixed = self.model.numerics.rounded(e[:, None] + h)
        out = self.block(mixed, step, caches.layers[self.layer], step.token_ids)
        return StepOutput(self.model.logits(self.norm(self.hc_head(out[inputs.sample_tokens.long()]))), out)
