"""The report on the core's speed: Markdown tables and two figures. All numbers come from the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benches.peers.curve import Point
from benches.peers.drivers import Samples
from benches.replay.svg import chart

HEAD = """# The core's speed, beside what users have today

Written by `{command}`. All figures are microseconds on one 2-core CPU machine
in one run; "(n x)" is a peer's time over ours, the median over rounds in which the engines took turns.
`benches/peers/install.sh` makes the environment of the peers.

{about}

{judged}

## Side by side

{table}

"""

ROWS = """What a row is, exactly, is the function of that name in `benches/peers/drive_*.py`. In short:

- **step**: dsv4: `plan` into lent memory (every array of the step is written: tokens, positions, write slots, compress
  plan; of the block tables the rows that changed), `StepDone` from a list, `advance`, through the binding. "Lists
  read": with the lists of ids that the engine's loop asks for. vLLM: `Scheduler.schedule()` and
  `update_from_output()`; its arrays are filled elsewhere, later. SGLang: its scheduler needs model workers, so
  this is `alloc_decode` of the whole batch alone.
- **admit**: a prompt of 8,192 tokens nobody has seen. dsv4: `submit` of an int32 array and the `plan` that starts it:
  keys of 32 blocks, look-up, reservation, a first step of 256 tokens; or of 7,936 with all its arrays; or given as a
  Python list, whose conversion costs the difference. vLLM: `Request` (hashes), `add_request`, `schedule` (takes its
  blocks). SGLang: `match_prefix` that finds nothing and `alloc_extend`; it hashes nothing.
- **match**: dsv4: `explain` of a waiting request, which looks it up (keys, find, compare of all tokens, need, evictable
  blocks) and says a sentence; the second `explain` has the keys. vLLM: `Request` and `get_computed_blocks`; the second
  row has the hashes. It compares hashes, not tokens. SGLang: `match_prefix`, which compares tokens and has no hashes.
- **start behind**: the `plan` that finds 8K, lends its 32 blocks and window, and plans the 40 tokens that are left.
- **serve**: from the token list to the request's last event, in pools that are full of others' prefixes, so that each
  block is evicted before it is taken. SGLang: match, evict, `alloc_extend`, insert.

The prefix cache is on everywhere. vLLM's cache groups are the ones it makes of its own DeepSeek-V4 layer specs (five
groups over one pool, 1,002,240 bytes a block, hashes every 4 tokens); SGLang's are its full and SWA pools of 256-token
pages. Peers run under CPython 3.12 with the wheels of PyPI, without a GPU; nothing of theirs is replaced or stubbed.
Two settings of vLLM that a GPU engine makes itself are made by the driver: its hybrid cache groups are on (the CPU
platform turns them off), and its cache layout is block by block.

"""

CURVE = """## What a step's cost depends on

It should be linear in the requests that run, and know nothing of those that wait and of the pool.

![cost per request and step](core_speed_running.svg)

Up to some 2,000 requests it is. Beyond, each costs more: what a step touches (request, slots, rows of the step: a
dozen cache lines and more per request) no longer fits the second-level cache of 2 MB, and each of its passes fetches it
again (`core_layout.md`).

{running}

![cost of a step with 64 decoding](core_speed_flat.svg)

Waiting, "for a row": {decoding} requests decode and no more may; "for blocks": more may run, but the pool has too few
blocks. Pool: 64 requests decode; the other blocks are unused, or all in the prefix cache. "Admit 8K" is `submit` and
`plan` of 8,192 tokens beside the 64, its arrays included; where all is cached, its blocks are evicted first.

{flat}
"""


def line(point: Point) -> str:
    """A point as it is printed while the curve is measured."""
    per = f"{1000 * point.median_us / point.x:8.1f} ns a request" if point.line == "running" else ""
    return f"{point.line:28} {point.x:9,} {point.median_us:9.1f} us, p99 {point.p99_us:9.1f} {per}".rstrip()


def table(measured: Mapping[str, Samples], engines: Sequence[str], ours: str) -> str:
    """A row per measurement, a column per engine: median, p99, and how many times ours."""
    rows = ["| µs, median / p99 | " + " | ".join(engines) + " |", "|---" * (len(engines) + 1) + "|"]
    for name, samples in measured.items():
        rows.append(f"| {name} | " + " | ".join(_cell(samples, engine, ours) for engine in engines) + " |")
    return "\n".join(rows)


def _cell(samples: Samples, engine: str, ours: str) -> str:
    if engine not in samples.rounds:
        return "–"
    text = f"{_us(samples.median_us(engine))} / {_us(samples.p99_us(engine))}"
    if engine == ours or ours not in samples.rounds:
        return text
    return f"{text} ({_times(samples.ratio(engine, ours))} x)"


def _us(value: float) -> str:
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def report(
    command: str,
    about: Sequence[str],
    measured: Mapping[str, Samples],
    engines: Sequence[str],
    ours: str,
    judged: Sequence[str],
    points: Sequence[Point],
) -> dict[str, str]:
    """File names and texts: core_speed.md, and the figures where the curve was measured."""
    text = HEAD.format(
        command=command,
        about="\n".join(f"- {each}" for each in about),
        judged="\n".join(f"- {each}" for each in judged),
        table=table(measured, engines, ours),
    )
    text += ROWS
    if not points:
        return {"core_speed.md": text}
    run = [point for point in points if point.line == "running"]
    flat = [point for point in points if point.line != "running"]
    text += CURVE.format(running=_running(run), flat=_flat(flat), decoding=64)
    return {
        "core_speed.md": text,
        "core_speed_running.svg": chart(
            "plan + StepDone + advance, per decoding request (flat: linear)",
            "requests decoding",
            "ns per request and step, median",
            {"dsv4 core": [(point.x, 1000 * point.median_us / point.x) for point in run]},
        ),
        "core_speed_flat.svg": chart(
            "plan + StepDone + advance with 64 decoding",
            "requests waiting, or blocks in the pool",
            "µs per step, median",
            _lines([point for point in flat if "admit" not in point.line and point.x > 0]),
        ),
    }


def _lines(points: Sequence[Point]) -> dict[str, list[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        lines.setdefault(point.line, []).append((point.x, point.median_us))
    return lines


def _running(points: Sequence[Point]) -> str:
    rows = ["| decoding | µs per step, median / p99 | ns per request |", "|---|---|---|"]
    rows += [f"| {p.x:,} | {_us(p.median_us)} / {_us(p.p99_us)} | {1000 * p.median_us / p.x:.0f} |" for p in points]
    return "\n".join(rows)


def _flat(points: Sequence[Point]) -> str:
    rows = ["| line | x | µs, median / p99 |", "|---|---|---|"]
    rows += [f"| {p.line} | {p.x:,} | {_us(p.median_us)} / {_us(p.p99_us)} |" for p in points]
    return "\n".join(rows)
