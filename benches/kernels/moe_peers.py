"""Other people's MXFP4 experts for the same case. What a peer times is less than a layer needs; its name says what.

humming: MXFP4 x E4M3 with one scale per token (the model has one per 128 channels), or x bf16. Two products and the
quantisation of both inputs; sorting, SwiGLU, routing weights and the sum over experts are left out, in its favour.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from benches.kernels.harness import Call, Peer
from torch import Tensor

from dsv4.kernels.moe.experts import Chosen

NAMES = {"w13": ("w1", "w3"), "w2": ("w2",)}
NOT_HERE = {"vllm": "Marlin W4A16 (vLLM)", "flashinfer": "FlashInfer", "triton_kernels": "matmul_ogs (triton_kernels)"}


def missing_peers() -> list[Peer]:
    """Rows that say which known peers nobody could run."""
    absent = [name for module, name in NOT_HERE.items() if importlib.util.find_spec(module) is None]
    return [Peer(", ".join(absent))] if absent else []


class Humming:
    """Its products for one way to read activations, each token count with the settings of its own heuristics."""

    def __init__(self, codes: Mapping[str, Tensor], scales: Mapping[str, Tensor], activations: str) -> None:
        from humming import ops  # noqa: PLC0415 - a peer may be absent
        from humming.schema import HummingInputSchema, HummingWeightSchema  # noqa: PLC0415
        from humming.transform import prepare_layer_config, transform_humming_tensors  # noqa: PLC0415

        self.ops: Any = ops
        self.fp8 = activations == "w4a8"
        self.name = f"humming {activations} products" + (", per-token scales" if self.fp8 else "")
        self.version = version("humming-kernels")
        self.locks = torch.zeros(1024, dtype=torch.int32, device="cuda")
        self.layers: dict[str, Any] = {}
        self.tensors: dict[str, dict[str, Tensor]] = {}
        self.widths: dict[str, tuple[int, int]] = {}
        for matrix, parts in NAMES.items():
            code = torch.cat([codes[part] for part in parts], 1)
            scale = torch.cat([scales[part] for part in parts], 1)
            self.E, N, packed = code.shape
            self.widths[matrix] = N, 2 * packed
            layer = prepare_layer_config(
                shape_n=N, shape_k=2 * packed, num_experts=self.E, torch_dtype=torch.bfloat16,
                weight_schema=HummingWeightSchema(
                    b_dtype="float4e2m1", bs_dtype="float8e8m0", weight_scale_group_size=32
                ),
                input_schema=HummingInputSchema(
                    a_dtype="float8e4m3" if self.fp8 else "bfloat16", input_scale_group_size=0
                ),
            )  # fmt: skip
            loaded = {"weight": code.view(torch.int32), "weight_scale": scale.view(torch.float8_e8m0fnu)}
            self.layers[matrix], self.tensors[matrix] = layer, transform_humming_tensors(layer, loaded)

    @classmethod
    def all(cls, codes: Mapping[str, Tensor], scales: Mapping[str, Tensor], activations: str) -> list[Humming]:
        """The peer, or nothing where it does not load."""
        if activations == "w4a4":
            return []
        try:
            return [cls(codes, scales, activations)]
        except Exception as error:  # noqa: BLE001 - whatever keeps a peer from loading, the run goes on without it
            print(f"humming {activations}: not available: {error}"[:200])
            return []

    def _kernels(self, pairs: int) -> tuple[dict[str, Tensor], int]:
        """Compiled products for this many pairs, and the pairs of a block."""
        from humming.kernel.humming import HummingKernel  # noqa: PLC0415
        from humming.tune import get_heuristics_config  # noqa: PLC0415

        found, size = {}, 0
        for matrix, layer in self.layers.items():
            settings = get_heuristics_config(layer, shape_m=pairs, gemm_type="indexed")
            how = json.dumps({"gemm_type": "indexed"}), json.dumps([[0, 1 << 30, settings]])
            found[matrix] = HummingKernel.prepare_kernels(layer.to_str(), *how).view(-1, 4)[0].clone()
            size = settings["block_shape"][0]
        return found, size

    def _sorted(self, ids: Tensor, size: int) -> dict[str, Tensor]:
        """Pairs by expert, each expert's padded to blocks of `size`."""
        flat = ids.flatten().long()
        counts = flat.bincount(minlength=self.E)
        padded = -(-counts // size) * size
        order = flat.sort(stable=True).indices
        first = padded.cumsum(0) - padded - (counts.cumsum(0) - counts)
        place = first[flat[order]] + torch.arange(len(order), device=ids.device)
        out = torch.full((int(padded.sum()),), flat.numel(), dtype=torch.int32, device=ids.device)
        out[place] = order.int()
        experts = torch.repeat_interleave(torch.arange(self.E, device=ids.device, dtype=torch.int32), padded // size)
        return {"sorted_ids": out, "expert_ids": experts, "num_tokens_padded": padded.sum().int()}

    def _input(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.ops.quant_input(x, "float8e4m3", group_size=None) if self.fp8 else (x, None)

    def chain(self, x: Tensor, chosen: Chosen) -> Call:
        """The call on bf16 x and these choices."""
        P, K = chosen.ids.numel(), chosen.ids.shape[1]
        kernels, size = self._kernels(P)
        plan = self._sorted(chosen.ids, size)
        N, _ = self.widths["w13"]
        middle = torch.empty(P, N, dtype=torch.bfloat16, device=x.device)
        y = torch.randn(P, N // 2, device=x.device).to(torch.bfloat16)
        rows = torch.empty(P, x.shape[1], dtype=torch.bfloat16, device=x.device)

        def product(matrix: str, a: Tensor, out: Tensor, top: int) -> None:
            values, scale = self._input(a)
            self.ops.launch_kernel(
                configs=kernels[matrix], inputs=values, input_scale=scale, outputs=out, locks=self.locks, top_k=top,
                valid_shape_m=P, **plan, **self.tensors[matrix],
            )  # fmt: skip

        def call() -> None:
            product("w13", x, middle, K)
            product("w2", y, rows, 1)

        return call
