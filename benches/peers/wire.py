"""A driver's side of the pipe: it reads the name of a measurement, runs one round of it, answers with a line of JSON.

    bench ── "admit 8K, cold\\n" ──▶ driver (its own interpreter, its imports and setup done once)
    bench ◀── {"times": [ns, ...]} ──

Rounds of all engines take turns this way, so that whatever else the machine does falls on each of them.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Mapping

from benches.peers.load import Round


def serve(about: Mapping[str, str], prepare: Mapping[str, Callable[[], Round]]) -> None:
    """Tells what this driver is and can, then answers until the pipe closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the engine prints is none of ours
    print(json.dumps({"about": about, "names": list(prepare)}), file=answers, flush=True)
    rounds: dict[str, Round] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in rounds:
            rounds[name] = prepare[name]()
            rounds[name]()  # the first one warms up
        gc.collect()
        gc.disable()
        times = rounds[name]()
        gc.enable()
        print(json.dumps({"times": times}), file=answers, flush=True)
