"""DeepSeek-V4 on one GPU: a step's tokens in, logits out, every op by a kernel.

ids ─▶ embed ─▶ 4 equal streams ─▶ boundary ─▶ attention ─▶ boundary ─▶ experts ─▶ ... ─▶ head boundary ─▶ logits
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dsv4.config.model import ModelConfig
from dsv4.kernels.linear.gemm import Workspace, bf16_linear
from dsv4.kernels.mhc.boundary import Epsilons, Site, boundary, first_boundary, head_boundary
from dsv4.model.caches import Caches
from dsv4.model.gpu.attention import Attention
from dsv4.model.gpu.dimensions import check_dimensions
from dsv4.model.gpu.moe import MoE
from dsv4.model.gpu.step import Bounds, Step, on_device
from dsv4.model.gpu.weights import Shelf
from dsv4.model.inputs import StepInputs
from dsv4.model.model import StepOutput
from dsv4.model.numerics import Numerics
from dsv4.model.step import Frequencies
from dsv4.model.weights import TensorSource


@dataclass(frozen=True, slots=True)
class Layer:
    """Attention and experts; the sites in front of each, with the norm that follows."""

    attn_site: Site
    attn: Attention
    ffn_site: Site
    ffn: MoE


class GpuDeepseekV4:
    """The model of one checkpoint in the released formats, packed as it is. Same contract as `DeepseekV4`.

    Raises UnsupportedModel for dimensions that no kernel is made for, CheckpointError for other formats.
    """

    def __init__(
        self, config: ModelConfig, source: TensorSource, numerics: Numerics, device: torch.device | str = "cuda"
    ) -> None:
        check_dimensions(config, numerics)
        self.config = config
        self.numerics = numerics
        self.device = torch.device(device)
        shelf, fp4 = Shelf(source, self.device), numerics.index == "fp4"
        self._workspace = Workspace(self.device)
        self._eps = Epsilons(config.rms_norm_eps, config.hc_eps, config.hc_sinkhorn_iters)
        self._embedding = shelf.bf16("embed.weight")
        self._layers = [self._take_layer(shelf, i, fp4=fp4) for i in range(config.num_hidden_layers)]
        self._head_site = _site(shelf, "hc_head", "norm.weight")
        self._head = shelf.bf16("head.weight")
        self._frequencies = on_device(Frequencies.of(config), self.device)

    def _take_layer(self, shelf: Shelf, i: int, *, fp4: bool) -> Layer:
        config, prefix, ratio = self.config, f"layers.{i}", self.config.compress_ratios[i]
        hashed = i < config.num_hash_layers
        return Layer(
            attn_site=_site(shelf, f"{prefix}.hc_attn", f"{prefix}.attn_norm.weight"),
            attn=Attention.take(shelf, config, self._workspace, f"{prefix}.attn", ratio, fp4=fp4),
            ffn_site=_site(shelf, f"{prefix}.hc_ffn", f"{prefix}.ffn_norm.weight"),
            ffn=MoE.take(shelf, config, self._workspace, f"{prefix}.ffn", hashed=hashed),
        )

    @torch.inference_mode()
    def forward(self, inputs: StepInputs, caches: Caches, bounds: Bounds) -> StepOutput:
        """Runs one step: writes the tokens' rows and state to the caches, returns the wanted logits.

        inputs  on this device; bounds are the host's knowledge of it. Nothing is read back from the device.
        """
        if not len(inputs.token_ids):
            streams = self._embedding.new_empty(0, self.config.hc_mult, self.config.hidden_size)
            return StepOutput(torch.empty(0, len(self._head), device=self.device), streams)
        step = Step.of(inputs, bounds, self.config, self._frequencies, caches.layouts)
        x = self._embedding[inputs.token_ids.long()]
        streams = x[:, None].expand(-1, self.config.hc_mult, -1).contiguous()
        at, out = first_boundary(streams, self._layers[0].attn_site, self._eps), x
        for i, (layer, pools) in enumerate(zip(self._layers, caches.layers, strict=False)):  # drafts' pools come after
            if i:
                at = boundary(at.streams, out, at.post, at.comb, layer.attn_site, self._eps)
            out = layer.attn(at.u, step, pools)
            at = boundary(at.streams, out, at.post, at.comb, layer.ffn_site, self._eps)
            out = layer.ffn(at.u, inputs.token_ids)
        streams, u = head_boundary(at.streams, out, at.post, at.comb, self._head_site, self._eps)
        logits = bf16_linear(u[inputs.sample_tokens.long()], self._head, self._workspace, dtype=torch.float32)
        return StepOutput(logits, streams)


def _site(shelf: Shelf, prefix: str, norm: str) -> Site:
    fn, scale, base = (shelf.vector(f"{prefix}_{name}") for name in ("fn", "scale", "base"))
    return Site(fn, scale, base, shelf.bf16(norm))
