"""Random weights of the right scale for every tensor of a checkpoint, in the format of the file they stand for.

A tensor depends on the seed and its name alone, whatever was taken before it, and on every machine alike: the numbers
are sums of bytes of SHAKE-256, which are integers, so nothing is left to a library's random generator or to rounding.

Scales keep activations of order one through any depth: a projection divides by the square root of its fan-in, the two
that write to the residual streams also by that of the depth; the streams mix evenly; rows of KV are longer than one, so
that attention looks at about ten keys and answers depend on the context; logits spread by about 2.5.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import statistics
from collections.abc import Iterator

import torch
from torch import Tensor

from dsv4.config.model import ModelConfig
from dsv4.errors import CheckpointError
from dsv4.kernels.quant.reference import e2m1_codes, e8m0_values
from dsv4.model.checkpoint import TORCH_DTYPES
from dsv4.model.schema import (
    Flavour,
    Form,
    Shape,
    expected,
    flavoured,
    layout,
    scale_name,
)

CHUNK = 1 << 22  # bytes per call of the hash
LOGIT_SPREAD = 2.5
KV_LENGTH = 1.6
MIXING_SCALE = 0.3
# Exponents that are added to the scales of a weight, so that blocks differ, and their effect on its spread.
FP8_STEPS, MXFP4_STEPS = (-1, 0, 1), (0, 1)
# A stored value is a random byte (FP8) or nibble (MXFP4) looked up among as many equally likely values of a normal
# variable, whose standard deviation in units of the scale lies in target..2 target.
FP8_TARGET, MXFP4_TARGET = 32.0, 1.6


class DummySource:
    """A source of tensors like an opened checkpoint's, made up as they are taken.

    seed      any integer
    flavour   which kind of checkpoint to stand for
    drafts    whether mtp.* exist
    """

    def __init__(
        self, config: ModelConfig, seed: int = 0, *, flavour: Flavour = "official", drafts: bool = True
    ) -> None:
        self._config, self._seed, self._flavour = config, seed, flavour
        wanted = {name: spec for name, spec in expected(config).items() if drafts or not name.startswith("mtp.")}
        self._weights = wanted
        self._scales = {scale_name(name): name for name, spec in wanted.items() if flavoured(spec, flavour).scale_shape}
        self._layout = {n: held for n, held in layout(config, flavour).items() if n in wanted or n in self._scales}

    def names(self) -> Iterator[str]:
        """All tensors, scales included, in official order."""
        return iter(self._layout)

    def has(self, name: str) -> bool:
        """Whether the checkpoint that this stands for has the tensor."""
        return name in self._layout

    def take(self, name: str) -> Tensor:
        """The tensor in its stored dtype and shape, made anew on every call."""
        if name not in self._layout:
            raise CheckpointError(f"a {self._flavour} checkpoint of this config has no tensor {name}")
        dtype = TORCH_DTYPES[self._layout[name][0]]
        if name in self._scales:
            return self._scale(self._scales[name], dtype)
        spec = self._weights[name]
        form = flavoured(spec, self._flavour)
        if form.format == "table":
            return self._table(name, spec.shape).to(dtype)
        if form.format == "plain":
            return self._values(name, spec.shape).to(dtype)
        return self._quantised(name, form).view(dtype)

    def _values(self, name: str, shape: Shape) -> Tensor:
        centre, spread = _centre_and_spread(name, shape, self._config)
        return draw(self._seed, name, shape).mul_(spread).add_(centre)

    def _scaling(self, weight: str) -> tuple[int, float]:
        """E8M0 byte of the scales of a weight before steps, and the spread of its values in units of such a scale."""
        spec = self._weights[weight]
        mxfp4 = flavoured(spec, self._flavour).format == "mxfp4"
        target, steps = (MXFP4_TARGET, MXFP4_STEPS) if mxfp4 else (FP8_TARGET, FP8_STEPS)
        _, spread = _centre_and_spread(weight, spec.shape, self._config)
        spread /= math.sqrt(sum(4.0**step for step in steps) / len(steps))
        exponent = math.floor(math.log2(spread / target))
        return 127 + exponent, spread * 2.0**-exponent

    def _scale(self, weight: str, dtype: torch.dtype) -> Tensor:
        form = flavoured(self._weights[weight], self._flavour)
        steps = torch.tensor(MXFP4_STEPS if form.format == "mxfp4" else FP8_STEPS, dtype=torch.int32)
        choice = integers(self._seed, scale_name(weight), form.scale_shape or (), len(steps))
        exponents = self._scaling(weight)[0] + steps[choice]
        return e8m0_values(exponents) if dtype is torch.float32 else exponents.to(torch.uint8).view(dtype)

    def _quantised(self, name: str, form: Form) -> Tensor:
        _, spread = self._scaling(name)
        if form.format == "mxfp4":
            codes = e2m1_codes(_quantiles(16) * spread)
            byte = torch.arange(256)
            table = codes[byte & 15] | (codes[byte >> 4] << 4)
        else:
            table = (_quantiles(256) * spread).to(torch.float8_e4m3fn).view(torch.uint8)
        return random_bytes(self._seed, name, math.prod(form.shape), table).view(form.shape)

    def _table(self, name: str, shape: Shape) -> Tensor:
        """Distinct experts for every token id: an arithmetic progression shorter than the number of experts."""
        tokens, chosen = shape
        experts = self._config.n_routed_experts
        first = integers(self._seed, name + ":first", (tokens,), experts)
        step = 1 + integers(self._seed, name + ":step", (tokens,), max(1, (experts - 1) // max(1, chosen - 1)))
        return (first[:, None] + torch.arange(chosen) * step[:, None]) % experts


def _centre_and_spread(name: str, shape: Shape, config: ModelConfig) -> tuple[float | Tensor, float]:
    """Mean and standard deviation of the values of one tensor."""
    streams = config.hc_mult
    even = -math.log(max(streams - 1, 1))  # sigmoid(even) is about 1 / streams
    last = name.removesuffix(".weight").rpartition(".")[2]
    fan_in = shape[-1] ** -0.5
    if last == "kv_norm" or re.search(r"attn\.compressor\.norm\.weight$", name):
        return KV_LENGTH, 0.1
    if last.endswith("norm"):
        return 1.0, 0.1
    if last.startswith("hc_") and last.endswith("_scale"):
        return MIXING_SCALE, 0.1 * MIXING_SCALE
    if last == "hc_head_base":
        return even, 0.2
    if last.startswith("hc_") and last.endswith("_base"):
        mix = (2 * torch.eye(streams)).flatten()  # a stream keeps most of itself
        return torch.cat((torch.full((streams,), even), torch.zeros(streams), mix)), 0.2
    spreads = {
        "attn_sink": 0.5,
        "bias": 0.1,
        "ape": 0.5,
        "embed": 1.0,
        "head": LOGIT_SPREAD * fan_in,
        "wo_b": 2 * fan_in * (2 * config.num_hidden_layers) ** -0.5,
        "w2": 2 * fan_in * (2 * config.num_hidden_layers) ** -0.5,
    }
    return 0.0, spreads.get(last, fan_in)


def draw(seed: int, name: str, shape: Shape) -> Tensor:
    """Independent numbers of mean 0 and variance 1, float32, at most 3.5: the sum of four bytes, nearly normal."""
    out = torch.empty(math.prod(shape))
    for start in range(0, out.numel(), CHUNK // 4):
        part, chunk = out[start : start + CHUNK // 4], start // (CHUNK // 4)
        part.copy_(_hash(seed, name, chunk, 4 * part.numel()).view(4, -1).sum(0, dtype=torch.int32))
    # A byte has mean 127.5 and variance (256^2 - 1) / 12.
    return out.sub_(4 * 127.5).mul_((4 * (256**2 - 1) / 12) ** -0.5).view(shape)


def integers(seed: int, name: str, shape: Shape, below: int) -> Tensor:
    """Integers in 0..below - 1, int64, `below` at most 2^16 (the bias of the remainder is below / 2^32)."""
    words = random_bytes(seed, name, 4 * math.prod(shape)).view(torch.int32)
    return (words.to(torch.int64) & 0xFFFFFFFF).remainder(below).view(shape)


def random_bytes(seed: int, name: str, count: int, table: Tensor | None = None) -> Tensor:
    """uint8 [count], each looked up in a table [256] uint8 if there is one."""
    out, lookup = torch.empty(count, dtype=torch.uint8), None if table is None else bytes(table.tolist())
    for start in range(0, count, CHUNK):
        part = out[start : start + CHUNK]
        part.copy_(_hash(seed, name, start // CHUNK, part.numel(), lookup))
    return out


def _hash(seed: int, name: str, chunk: int, count: int, lookup: bytes | None = None) -> Tensor:
    digest = hashlib.shake_256(f"dsv4 {seed} {chunk} {name}".encode()).digest(count)
    return torch.frombuffer(bytearray(digest if lookup is None else digest.translate(lookup)), dtype=torch.uint8)


@functools.cache
def _quantiles(count: int) -> Tensor:
    """The middles of `count` equally likely ranges of a normal variable, scaled to variance 1; float32."""
    normal = statistics.NormalDist()
    x = torch.tensor([normal.inv_cdf((i + 0.5) / count) for i in range(count)], dtype=torch.float64)
    return (x / x.square().mean().sqrt()).float()
