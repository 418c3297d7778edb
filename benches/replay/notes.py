"""The report of a replay: Markdown tables and one figure. All numbers come from the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benches.replay.svg import Points, chart
from benches.replay.sweep import Row, best_of

HEAD = """# Replay: what a prefix cache finds in an hour of production chat

The core's prefix cache beside the published rules of other engines and two bounds. Written by
`{command}` in {minutes:.1f} minutes
on {machine}.

Trace: conversation_trace.jsonl of Mooncake's FAST'25 release, {requests:,} requests, {tokens:,} input tokens, sha256
`{digest}`. Geometry: V4-Flash, FP8 index rows, 3,850 bytes per token, window 3.07 MiB.

![hit rate by pool size](replay.svg)

## Best share of each rule

Hit rate in % of all input tokens; in brackets the share of the window bound's hits. The window bound is an upper bound
for every rule that resumes only where it holds the window; the full bound also for those that would not need one
(`benches/replay/bound.py` states and proves both). The bounds know the future: most conversations of this trace never
return, and a clairvoyant rule stores nothing of those.

"""

MIDDLE = """
SGLang, vLLM: as published; see `sglang.py` and `vllm.py` for the variants' pull requests. "dsv4 on paper" is
`checkpoints.py`: two LRUs, checkpoints at prompt ends and forks. "+ spare" adds a second list that is evicted first:
checkpoints that their own conversation has gone past, and one every 4,096 tokens. "dsv4 core" is the real core, fed the
tokens through its binding (`core.py`); its checkpoints hold a whole state slot and so cost 5.1 MB instead of 3.7.

## Every share

"""

TRAPS = """
## The published traps

Neither exists in the core. A window block that slides out is free at once, in a pool of its own: it queues behind
nothing and displaces nothing. And nobody sets a ratio: `plan_memory` gives the bytes that no running request can need
to full blocks and checkpoints. (Forced to so few checkpoints that conversations outnumber them, the core loses them
too.)

![replayed prefixes](replay_prefixes.svg)

![agent conversations](replay_windows.svg)

| scenario | rule | hit rate | published |
|---|---|---|---|
"""

PUBLISHED = {
    "2·4 prefixes": "vllm#43447: 0.00 % dense, 90.03 % after the fix",
    "2·8 prefixes": "vllm#43447: 0.00 % dense, 86.83 % after the fix",
    "SWA ratio 0.007": "sgl#26907: 2.46 % dense, 13.00 % kept",
    "SWA ratio 0.015": "sgl#26907: 8.18 % dense, 94.49 % kept",
}

TAIL = """
The prefix scenario is the published one (44,253 tokens, second pass counted), ideally scheduled: a wave ends together.
The core schedules its waves itself, BS requests at a time. Sixteen prefixes have 2,752 full blocks, which the bytes of
2,500 blocks do not hold under any rule.

The published run's agent conversations are not available; ours have the lengths in `traps.Turns`, 30 of them in a full
pool of 4,096 pages that holds them all, so there the two columns compare in kind. The core never computes the last
token of a turn, and every turn of ours ends where a block does: so it keeps one block less of each, 1.2 % of all
tokens. Its pools are planned for 30 requests at a time.

## What is assumed

- One request runs at a time, in order of arrival; time stamps and generation speed play no part. Memory of running
  requests besides the one is not modelled, so every rule has more room for its cache than in service.
- `--end named`: a request is its whole 512-token ids. The partial id and the output are left out, because the next turn
  brings them again under ids of its own; all input tokens stay in the denominator. `--end raw` keeps them.
- Two different ids share nothing, though their first 256 tokens might be equal.
- Bounds and the paper rule resume at multiples of 256 tokens; so do SGLang (page 256) and vLLM (lcm of its blocks).
- SGLang: online C128 states, chunks of 8,192, shortened where the SWA pool is smaller than two. Its memory formula
  charges running requests to the ratio. vLLM: blocks of 1,002,240 bytes, chunks of 2,048, no draft model. Paper rule: a
  checkpoint is 3.72 MB, 60 MB are set aside for the SWA blocks of the running request's chunk and its state.
- The window bound is a Lagrangian dual value after a fixed number of subgradient steps: valid at any step count, not
  the lowest possible. Both bounds leave running requests out.
"""


@dataclass(frozen=True)
class About:
    """Where the figures are from."""

    command: str
    machine: str
    digest: str
    num_requests: int
    num_input_tokens: int
    minutes: float


def line(row: Row) -> str:
    """A row as it is printed while the sweep runs."""
    return f"{row.name:44} " + " ".join(f"{_percent(rate):>8}" for rate in row.rates)


def report(
    about: About,
    sizes_gb: Sequence[int],
    above: Sequence[Row],
    measured: Sequence[Row],
    scenarios: Sequence[tuple[str, str, str]],
) -> tuple[str, str]:
    """replay.md and replay.svg; above: the full bound, the window bound, the paper rule without a limit."""
    best, lowest = best_of(measured), above[1]
    head = HEAD.format(
        command=about.command,
        minutes=about.minutes,
        machine=about.machine,
        digest=about.digest,
        requests=about.num_requests,
        tokens=about.num_input_tokens,
    )
    columns = "| rule | " + " | ".join(f"{size} GB" for size in sizes_gb) + " |\n|---" + "|---" * len(sizes_gb) + "|\n"
    first = "".join(_plain(row) for row in above) + "".join(_against(row, lowest) for row in best)
    every = "".join(_plain(row) for row in measured)
    traps = _traps(scenarios)
    figure = chart(
        "Tokens found in the trace, best share of each rule",
        "pool, GB (10⁹ bytes)",
        "hit rate, % of input tokens",
        {row.name: _points(sizes_gb, row) for row in (*above, *best)},
    )
    return head + columns + first + MIDDLE + columns + every + TRAPS + traps + TAIL, figure


def collapses(prefixes: Mapping[str, Points], windows: Mapping[str, Points]) -> dict[str, str]:
    """The two figures of the traps by file name."""
    return {
        "replay_prefixes.svg": chart(
            "2·BS prefixes of 44,253 tokens, replayed",
            "pool, blocks of 1,002,240 bytes (the core: as many bytes)",
            "hit rate of the second pass, %",
            prefixes,
        ),
        "replay_windows.svg": chart(
            "30 agent conversations in a full pool that holds them all",
            "SWA tokens per full token, % (the core: as many bytes)",
            "hit rate, % of input tokens",
            windows,
        ),
    }


def _traps(scenarios: Sequence[tuple[str, str, str]]) -> str:
    """Rows of the trap table; a scenario's first row tells what was published."""
    rows, before = [], ""
    for scenario, rule, rate in scenarios:
        rows.append(f"| {scenario} | {rule} | {rate} | {PUBLISHED.get(scenario, '') if scenario != before else ''} |\n")
        before = scenario
    return "".join(rows)


def _points(sizes_gb: Sequence[int], row: Row) -> list[tuple[float, float]]:
    return [(float(size), 100 * rate) for size, rate in zip(sizes_gb, row.rates, strict=True) if rate is not None]


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.2f}"


def _plain(row: Row) -> str:
    return f"| {row.name} | " + " | ".join(_percent(rate) for rate in row.rates) + " |\n"


def _against(row: Row, bound: Row) -> str:
    cells = []
    for rate, most in zip(row.rates, bound.rates, strict=True):
        share = f" ({100 * rate / most:.1f} %)" if rate is not None and most else ""
        cells.append(_percent(rate) + share)
    return f"| {row.name} | " + " | ".join(cells) + " |\n"
