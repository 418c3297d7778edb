"""How a kernel is timed on a GPU: graph replays over inputs that do not fit the L2 cache, at settled clocks.

A case is one op at one shape: `make(i)` returns the call on the i-th set of inputs, `bytes` and `flops` what no version
can avoid. The floor is the larger of bytes / 4.3 TB/s (a measured copy on an H200) and flops / 790 TFLOP/s (bf16), or
the rate that the case names. A peer alternates with us in the same process, replay by replay; the ratio is the median
of those pairs.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

COPY_BYTES_PER_S = 4.3e12
BF16_FLOPS = 790e12
FP8_FLOPS = 1400e12
TOUCHED = 200e6  # bytes of one round of calls: more than three times the L2 cache
MOST_SETS = 96
REPLAYS = 25
SETTLE_S = 0.25

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Peer:
    """Somebody else's kernels for the same case: `make` as the case's own, or why it is missing."""

    name: str
    version: str = ""
    make: Callable[[int], Call] | None = None
    missing: str = "not installed"


@dataclass(frozen=True, slots=True)
class Case:
    """One op at one shape.

    bytes, flops   what the op must move and compute; `touched` what one set of inputs holds, if that is more
    served         by which of several implementations of ours
    check          raises AssertionError if the op is wrong here; runs before anything is timed
    """

    op: str
    shape: dict[str, int | str]
    dtype: str
    bytes: int
    make: Callable[[int], Call]
    launches: int
    flops: int = 0
    flops_per_s: float = BF16_FLOPS
    touched: int = 0
    routing: str = ""
    served: str = ""
    check: Callable[[], None] | None = None
    peers: Sequence[Peer] = field(default_factory=tuple)

    @property
    def floor_us(self) -> float:
        return max(self.bytes / COPY_BYTES_PER_S, self.flops / self.flops_per_s) * 1e6

    @property
    def sets(self) -> int:
        """How many sets of inputs one graph goes through."""
        return int(min(MOST_SETS, max(2, -(-TOUCHED // max(self.bytes, self.touched, 1)))))


def capture(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """All calls, in order, as one graph; each has run once before, so nothing compiles inside."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    return graph


def settle(graphs: Sequence[torch.cuda.CUDAGraph], seconds: float) -> None:
    """Replays until clocks and power are those of a steady load."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for graph in graphs:
            graph.replay()
        torch.cuda.synchronize()


def alternate(graphs: Sequence[torch.cuda.CUDAGraph], replays: int) -> list[list[float]]:
    """Microseconds of each replay: one list per graph, the i-th entries one after the other."""
    marks = [[torch.cuda.Event(enable_timing=True) for _ in graphs] for _ in range(replays)]
    ends = [[torch.cuda.Event(enable_timing=True) for _ in graphs] for _ in range(replays)]
    for starts_of, ends_of in zip(marks, ends, strict=True):
        for graph, start, end in zip(graphs, starts_of, ends_of, strict=True):
            start.record()
            graph.replay()
            end.record()
    torch.cuda.synchronize()
    return [[marks[r][g].elapsed_time(ends[r][g]) * 1e3 for r in range(replays)] for g in range(len(graphs))]


def medians(
    calls: Mapping[str, Sequence[Call]], replays: int, settle_s: float
) -> tuple[dict[str, float], list[list[float]]]:
    """Microseconds of a call by name, and of every replay of all its calls; the graphs take turns."""
    graphs = [capture(made) for made in calls.values()]
    settle(graphs, settle_s)
    times = alternate(graphs, replays)
    return {n: round(statistics.median(t) / len(calls[n]), 2) for n, t in zip(calls, times, strict=True)}, times


def say(part: str, **row: object) -> None:
    """A line of a visit's part (visit.py), which also says that it is alive."""
    print(json.dumps({"part": part} | row), flush=True)


def run_parts(parts: Mapping[str, Callable[[], None]], names: Sequence[str]) -> None:
    """A visit's parts in this process, each with a line when it has ended."""
    for name in names:
        parts[name]()
        torch.cuda.synchronize()
        say(name, ended=True)


def measure(case: Case) -> Iterator[dict[str, object]]:
    """One row for each peer of the case, or one without a peer."""
    calls = [case.make(i) for i in range(case.sets)]
    ours = capture(calls)
    for peer in case.peers or (Peer("none", missing="no peer"),):
        theirs, kept = None, list[Call]()  # a graph keeps nothing alive of what its calls hold
        why = peer.missing
        if peer.make is not None:
            try:
                kept = [peer.make(i) for i in range(case.sets)]
                theirs = capture(kept)
            except Exception as error:  # noqa: BLE001 - a peer that fails is a row that says so, not the end of the run
                why = f"failed: {error}"[:160]
        graphs = [ours] if theirs is None else [ours, theirs]
        settle(graphs, SETTLE_S)
        times = alternate(graphs, REPLAYS)
        mine = [t / case.sets for t in times[0]]
        us = statistics.median(mine)
        row: dict[str, object] = {
            "op": case.op,
            "shape": case.shape,
            "dtype": case.dtype,
            "us": round(us, 3),
            "us_min": round(min(mine), 3),
            "us_max": round(max(mine), 3),
            "gbps": round(case.bytes / us / 1e3, 1),
            "tflops": round(case.flops / us / 1e6, 2),
            "floor_us": round(case.floor_us, 3),
            "x_floor": round(us / case.floor_us, 2),
            "launches": case.launches,
            "routing": case.routing,
            "served": case.served,
            "peer": peer.name,
            "peer_version": peer.version,
        }
        if theirs is None:
            row |= {"peer_us": None, "ratio": None, "skipped": why}
        else:
            pairs = [a / b for a, b in zip(times[0], times[1], strict=True)]
            row |= {
                "peer_us": round(statistics.median(times[1]) / case.sets, 3),
                "ratio": round(statistics.median(pairs), 3),
            }
        yield row


def card() -> dict[str, object]:
    """Clocks, power and throttling of the first GPU now, as nvidia-smi says; empty where it says nothing."""
    fields = "name,driver_version,clocks.sm,clocks.mem,power.draw,clocks_event_reasons.active"
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return {}
    name, driver, sm, mem, watts, throttle = (part.strip() for part in line.split(","))
    return {"device": name, "driver": driver, "sm_mhz": sm, "mem_mhz": mem, "watts": watts, "throttle": throttle}
