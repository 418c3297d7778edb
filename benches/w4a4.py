"""What FP4 activations cost the answers: `python -m benches.w4a4 [--tokens N] [--check]`. CPU alone, about a minute.

The routed experts of the demo checkpoint read their inputs as bf16, as W4A8 (E4M3 with a scale per 128) and as W4A4
(MXFP4, a scale per 32); everything else of the model, the MXFP4 weights too, is the same. One held-out text
(tests/data/held_out) runs through each in windows, every next token scored with the text before it (teacher forcing):

    perplexity   exp of the mean negative log-likelihood
    agreement    share of positions whose most likely token is that of the model with bf16 inputs
    KL           mean Σ p (log p - log q) from that model to this one, in nats
    error        per layer: ‖routed experts' output - with bf16 inputs‖ / ‖with bf16 inputs‖, on the inputs and routes
                 of the bf16 model, so that layers do not add up

One more row is the bf16 model with the routed experts' sums scaled by 1 + 2^-21, a few float32 roundings: what lies
within it says nothing, because a model of random weights turns any roundings that differ into other answers.

Before it runs the model it compares both roundings with their definition, in float64 and value by value; exit status 1
if one is not its format's. The demo's weights are random: its perplexity says nothing about language.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tests.model.stepping import Planner, make_caches
from tokenizers import Tokenizer
from torch import Tensor

from dsv4.config.directory import DEMO
from dsv4.config.model import ModelConfig
from dsv4.model.checkpoint import open_checkpoint
from dsv4.model.model import DeepseekV4
from dsv4.model.moe import MoE
from dsv4.model.numerics import ExpertInputs, Numerics

TEXT = Path(__file__).parents[1] / "tests" / "data" / "held_out" / "doyle-holmes.txt"
NUMERICS = Numerics("bfloat16", "fp8_ds_mla", "fp4", "bf16")
NAMES: dict[ExpertInputs, str] = {"bf16": "bf16 (W4A16)", "fp8": "W4A8", "fp4": "W4A4"}
CONTROL = "bf16, sums nudged by 2^-21"
WINDOW = 512
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E4M3 = (*(m * 2.0**-9 for m in range(8)), *((8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8)))[:127]


@dataclass(frozen=True)
class Format:
    """Blocks of values with one power-of-two scale: `grid` are the magnitudes, by code, `floor` the least amax."""

    block: int
    grid: tuple[float, ...]
    floor: float


FORMATS: dict[ExpertInputs, Format] = {"fp8": Format(128, E4M3, 1e-4), "fp4": Format(32, E2M1, 6 * 2.0**-126)}


def defined(x: Tensor, form: Format) -> Tensor:
    """Rows x [T, n] as the format defines them: the smallest scale that lets amax fit, the nearest value, ties to even.

    By search over the grid in float64, sharing nothing with the rounding that it judges.
    """
    blocks = x.double().reshape(len(x), -1, form.block)
    amax = blocks.abs().amax(-1, keepdim=True).clamp_min(form.floor)
    mantissa, exponent = torch.frexp(amax / form.grid[-1])  # mantissa in [1/2, 1)
    scale = torch.ldexp(torch.ones_like(mantissa), exponent - (mantissa == 0.5).int())
    grid = torch.tensor(form.grid, dtype=torch.float64)
    distance = ((blocks / scale).abs().unsqueeze(-1) - grid).abs()
    odd = torch.arange(len(grid)) % 2
    nearest = torch.where(distance == distance.amin(-1, keepdim=True), odd, 2).argmin(-1)
    return (grid[nearest] * scale).copysign(blocks).flatten(1).float()


def probes(seed: int = 0) -> Tensor:
    """Rows [96, 256] of many magnitudes, with a tie and a largest value of every kind among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(96, 256, generator=generator).bfloat16().float()
    x *= torch.ldexp(torch.ones(96, 1), torch.randint(-12, 12, (96, 1), generator=generator))
    ties = torch.tensor((6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -5.0, -0.25))
    x[:8, :10] = ties * torch.ldexp(torch.ones(8, 1), torch.arange(-4, 4).view(8, 1))
    x[:8, 10:] = 0.0
    for row, largest in enumerate((7.0, 6.0, 5.9, 448.0, 449.0, 1e-6)):
        x[8 + row] = (x[8 + row] / x[8 + row].abs().amax() * largest).bfloat16().float()
    x[14] = 0.0
    return x


def wrong_values(rounding: Callable[[Tensor], Tensor], form: Format) -> int:
    """How many of the probes a rounding gives another value than its format does."""
    x = probes()
    return int((rounding(x) != defined(x, form)).sum())


@dataclass(frozen=True, slots=True)
class ListeningMoE(MoE):
    """A mixture of experts that keeps what it was given."""

    heard: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, x: Tensor, token_ids: Tensor) -> Tensor:
        self.heard.append((x, token_ids))
        return MoE.__call__(self, x, token_ids)


class NudgedMoE(MoE):
    """A mixture of experts whose sums are a few float32 roundings off, as another order of adding leaves them."""

    __slots__ = ()

    def routed(self, x: Tensor, token_ids: Tensor) -> Tensor:
        return MoE.routed(self, x, token_ids) * (1 + 2.0**-21)


def reading(moe: MoE, inputs: ExpertInputs) -> MoE:
    """The same experts with other inputs."""
    return replace(moe, numerics=replace(moe.numerics, expert_inputs=inputs))


def variant(model: DeepseekV4, change: Callable[[MoE], MoE]) -> DeepseekV4:
    """The model with other mixtures of experts; every other weight is shared."""
    other = copy.copy(model)
    other.blocks = [replace(block, ffn=change(block.ffn)) for block in model.blocks]
    return other


def parts(moe: MoE) -> dict[str, Any]:
    """What one of the classes above is made of."""
    return {name: getattr(moe, name) for name in MoE.__dataclass_fields__}


def score(model: DeepseekV4, windows: Sequence[Sequence[int]]) -> Tensor:
    """log p of every token after every position but a window's last, [windows (WINDOW - 1), vocab] float32."""
    rows = []
    planner = Planner(model.config.sliding_window, full=8, swa=40, slots=2)
    caches = make_caches(model.config, model.numerics, planner)
    for number, tokens in enumerate(windows):
        logits = model.forward(planner.step([(str(number), tokens)], sample="all"), caches).logits
        planner.finish(str(number))
        rows.append(logits[:-1].log_softmax(-1))
    return torch.cat(rows)


@dataclass(frozen=True)
class Result:
    """One row of the first table."""

    name: str
    perplexity: float
    agreement: float
    kl: float


def judged(name: str, log_p: Tensor, reference: Tensor, wanted: Tensor) -> Result:
    """log_p and the reference's [R, vocab], the text's own next tokens [R]."""
    return Result(
        name,
        perplexity=math.exp(float(-log_p.gather(1, wanted[:, None]).double().mean())),
        agreement=float((log_p.argmax(-1) == reference.argmax(-1)).double().mean()),
        kl=float((reference.exp() * (reference - log_p)).sum(-1).double().mean()),
    )


def errors(model: DeepseekV4, inputs: ExpertInputs) -> list[float]:
    """The relative error of each layer's routed experts, over everything that a listening model heard."""
    found = []
    for block in model.blocks:
        assert isinstance(block.ffn, ListeningMoE)
        x, token_ids = (torch.cat(parts) for parts in zip(*block.ffn.heard, strict=True))
        exact = MoE.routed(block.ffn, x, token_ids)
        found.append(float((reading(block.ffn, inputs).routed(x, token_ids) - exact).norm() / exact.norm()))
    return found


def compare(num_tokens: int) -> tuple[list[Result], dict[ExpertInputs, list[float]]]:
    """The tables: one result per kind of inputs, and per kind that rounds the error of each layer."""
    config = ModelConfig.load(DEMO)
    ids = Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(TEXT.read_text(encoding="utf-8")).ids[:num_tokens]
    windows = [ids[first : first + WINDOW] for first in range(0, len(ids), WINDOW)]
    windows = [window for window in windows if len(window) > 1]
    wanted = torch.tensor([token for window in windows for token in window[1:]])
    with open_checkpoint(DEMO, config) as source:
        model = variant(DeepseekV4(config, source, NUMERICS), lambda moe: ListeningMoE(**parts(moe)))
    reference = score(model, windows)
    nudged = score(variant(model, lambda moe: NudgedMoE(**parts(moe))), windows)
    results = [judged(NAMES["bf16"], reference, reference, wanted), judged(CONTROL, nudged, reference, wanted)]
    layers = {}
    with torch.inference_mode():
        for inputs in FORMATS:
            layers[inputs] = errors(model, inputs)
    for inputs in FORMATS:
        other = variant(model, lambda moe, inputs=inputs: reading(moe, inputs))  # type: ignore[misc]
        results.append(judged(NAMES[inputs], score(other, windows), reference, wanted))
    return results, layers


def tables(results: Sequence[Result], layers: dict[ExpertInputs, list[float]]) -> str:
    """Both tables, in Markdown."""
    lines = ["| experts' inputs | perplexity | greedy agreement with bf16 | KL from bf16, nats |", "|---|---|---|---|"]
    lines += [f"| {r.name} | {r.perplexity:.1f} | {r.agreement:.2%} | {r.kl:.5f} |" for r in results]
    count = len(next(iter(layers.values())))
    lines += [
        "",
        f"| error of the routed experts, layer | {' | '.join(map(str, range(count)))} |",
        "|---" * (count + 1) + "|",
    ]
    lines += [f"| {NAMES[inputs]} | {' | '.join(f'{e:.4f}' for e in found)} |" for inputs, found in layers.items()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks the roundings, prints the tables; 1 if a rounding is not its format's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of the text (4096)")
    parser.add_argument("--check", action="store_true", help="compare the roundings with their definition, and stop")
    args = parser.parse_args(arguments)
    bad = {i: wrong_values(replace(NUMERICS, expert_inputs=i).expert_input, form) for i, form in FORMATS.items()}
    for inputs, count in bad.items():
        print(f"{NAMES[inputs]}: {count} of {probes().numel()} probes are not what the format makes of them")
    if any(bad.values()):
        print("a rounding is broken: the model was not run")
        return 1
    if args.check:
        return 0
    torch.set_num_threads(1)  # the demo's products are small: on a busy machine two threads mostly wait for each other
    started = time.perf_counter()
    results, layers = compare(args.tokens)
    print(f"demo checkpoint, RANDOM weights; {args.tokens} tokens of {TEXT.name} in windows of {WINDOW}")
    print(tables(results, layers))
    print(f"{time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
