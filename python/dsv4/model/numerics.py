"""Which values are rounded, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dsv4.kernels.cache.reference import Kind
from dsv4.kernels.quant.reference import MXFP4_BLOCK, WEIGHT_BLOCK, fake_fp4, fake_fp8

ExpertInputs = Literal["fp8", "fp4", "bf16"]


@dataclass(frozen=True, slots=True)
class Numerics:
    """The formats of one model. float32 three times: nothing is quantised or simulated.

    dtype  activations: "bfloat16" rounds them where the official code holds bf16, and simulates FP8 on the input of
           every FP8 or FP4 product; all arithmetic is float32 either way
    kv     packed rows of window and compressed KV: "fp8_ds_mla", "bf16" or "float32"
    index  packed rows of index keys, and what index queries are rounded to: "fp4", "fp8" or "float32"
    expert_inputs  what the routed experts' products read where dtype is "bfloat16": "fp8" (W4A8, the checkpoint's own),
                   "fp4" (W4A4: MXFP4) or "bf16" (W4A16)
    """

    dtype: Literal["bfloat16", "float32"]
    kv: Kind
    index: Kind
    expert_inputs: ExpertInputs = "fp8"

    @property
    def bf16(self) -> bool:
        """Whether activations are held in bf16."""
        return self.dtype == "bfloat16"

    def rounded(self, x: Tensor) -> Tensor:
        """Values x as the official code would hold it; float32 in either case."""
        return x.to(torch.bfloat16).float() if self.bf16 else x

    def quantised(self, x: Tensor) -> Tensor:
        """Values x as an FP8 or FP4 product reads it: E4M3 with one scale per 128 values."""
        return fake_fp8(x, WEIGHT_BLOCK) if self.bf16 else x

    def expert_input(self, x: Tensor) -> Tensor:
        """Values x as a product of the routed experts reads it; `quantised`, unless `expert_inputs` says otherwise."""
        if not self.bf16 or self.expert_inputs == "bf16":
            return x
        return fake_fp4(x, MXFP4_BLOCK) if self.expert_inputs == "fp4" else self.quantised(x)


FLOAT32 = Numerics("float32", "float32", "float32")
