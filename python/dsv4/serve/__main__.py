"""`python -m dsv4.serve MODEL`, also `dsv4 serve MODEL`: the HTTP server as a process of its own."""

from __future__ import annotations

import os
import sys

from dsv4.engine.engine import AsyncEngine
from dsv4.serve.launch import run


def main() -> int:
    """Serves until a signal says otherwise; returns the exit status."""
    argv = sys.argv[1:]
    if argv[:1] == ["serve"]:  # the word that the `dsv4` script has and `python -m dsv4.serve` has not
        argv = argv[1:]
    return run(argv, os.environ, AsyncEngine.running)


if __name__ == "__main__":
    sys.exit(main())
