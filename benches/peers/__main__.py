"""Our core beside the peers' schedulers and caches, one run, one machine: `python -m benches.peers --python PYTHON`.

PYTHON is an interpreter that has vLLM and SGLang (benches/peers/install.sh makes one); without it, ours alone is
measured and the peers are skipped, with the reason. `--notes` writes docs/notes/core_speed.md and its figures.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benches.peers import curve, load, notes
from benches.peers.drivers import PEERS, Absent, Driver, Samples, interleave, start
from benches.run import machine

OURS = "dsv4"
NOTES = Path(__file__).parents[2] / "docs" / "notes"
BARS = (  # issue, bar, microseconds
    (load.step(512), 50.0),
    (load.ADMIT, 40.0),
    (load.FILLED, 40.0),
    (load.MATCH, 15.0),
)
TIMES_VLLM = (load.step(512), 100.0)


def open_all(python: str | None) -> dict[str, Driver]:
    """Ours, and every peer that can be driven; says which cannot."""
    drivers = {OURS: start(sys.executable, "drive_ours")}
    for engine, driver in PEERS if python else ():
        try:
            drivers[engine] = start(str(python), driver)
        except Absent as absent:
            print(f"skipped: {engine}: {absent}", flush=True)
    if python is None:
        print("skipped: vLLM, SGLang: no --python; benches/peers/install.sh makes an environment with both", flush=True)
    return drivers


def verdicts(measured: Mapping[str, Samples]) -> list[str]:
    """Each bar, what was measured, and whether that meets it."""
    found = []
    for name, most in BARS:
        if name in measured:
            median = measured[name].median_us(OURS)
            found.append(f"{name}: {median:.1f} us, at most {most:.0f}: {'met' if median <= most else 'MISSED'}")
    name, least = TIMES_VLLM
    if name in measured and "vLLM" in measured[name].rounds:
        ratio = measured[name].ratio("vLLM", OURS)
        verdict = "met" if ratio >= least else "MISSED"
        found.append(f"{name}: vLLM takes {ratio:.0f} times ours, at least {least:.0f}: {verdict}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, and writes the notes if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benches.peers", description=__doc__)
    parser.add_argument("--python", help="interpreter of an environment with vLLM and SGLang")
    parser.add_argument("--rounds", type=int, default=7, help="how often each engine has its turn")
    parser.add_argument("--no-curve", action="store_true", help="leave out running, waiting and pool sizes")
    parser.add_argument("--notes", action="store_true", help="write docs/notes/core_speed.md and its figures")
    given = parser.parse_args(argv)
    before = os.getloadavg()
    about = [f"{machine()}, load average {before[0]:.2f} before"]
    print(about[0], flush=True)
    drivers = open_all(given.python)
    for engine, driver in drivers.items():
        facts = (f"{key} {value}" for key, value in driver.about.items() if key != "engine")
        about.append(f"{engine}: " + ", ".join(facts))
        print(about[-1], flush=True)
    measured = interleave(drivers, given.rounds)
    for driver in drivers.values():
        driver.close()
    print(notes.table(measured, list(drivers), OURS), flush=True)
    judged = verdicts(measured)
    print("\n".join(judged), flush=True)
    points = []
    for point in [] if given.no_curve else curve.points():
        print(notes.line(point), flush=True)
        points.append(point)
    after = os.getloadavg()
    about.append(f"load average {after[0]:.2f} after; {given.rounds} rounds of each measurement, engines taking turns")
    print(about[-1])
    if given.notes:
        peers = "--python PYTHON " if given.python else ""
        command = f"python -m benches.peers {peers}--rounds {given.rounds} --notes"
        for name, text in notes.report(command, about, measured, list(drivers), OURS, judged, points).items():
            (NOTES / name).write_text(text)
            print(f"wrote docs/notes/{name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
