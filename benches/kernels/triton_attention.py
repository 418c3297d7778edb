"""The Triton kernel of sparse decode where another one serves, with that one as its peer (hopper_attention.py)."""

from __future__ import annotations

from dataclasses import replace

import torch
from benches.kernels.bench_sparse_decode import SHAPES, WINDOW, Bench, H, Inputs
from benches.kernels.harness import Call, Case, Peer

from dsv4.kernels.attention import sparse_decode as ours
from dsv4.kernels.attention.split import scratch_of, split_of
from dsv4.kernels.cuda.choice import TRITON


def case(bench: Bench, shape: str, B: int) -> Case:
    """Both kernels on the same inputs."""
    served = bench.case(shape, B)
    units = -(-(WINDOW + SHAPES[shape][0]) // ours.UNIT)
    split = split_of(B, H, units, bench.num_sms)
    scratch = scratch_of(split, B, H, units, torch.device("cuda"))
    positions = torch.full((B,), SHAPES[shape][1], dtype=torch.int32, device="cuda")
    sets: list[Inputs] = [bench.inputs(shape, B) for _ in range(served.sets)]

    def make(i: int) -> Call:
        x = sets[i]
        tensors = (x.q, bench.sink, bench.window, x.window_slots, positions)
        inputs, out = ours.checked(*tensors, bench.rows(shape, x)), torch.empty_like(x.q)
        return lambda: ours.launch_triton(inputs, out, split, scratch)

    peers = [Peer(f"{served.served} kernel", make=served.make)]
    return replace(served, op="sparse_decode_triton", make=make, peers=peers, check=None, served=TRITON)
