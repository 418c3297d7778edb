"""A source with one line changed, for the emulator to find."""

from __future__ import annotations

import shutil
from pathlib import Path


def mutated(source: Path, text: str, instead: str, folder: Path) -> Path:
    """The source with `instead` where it has `text`, which it has once; headers of its own folder go with it."""
    whole = source.read_text()
    assert whole.count(text) == 1, "the kernel has changed: write the mutant anew"
    for header in source.parent.glob("*.cuh"):
        shutil.copy(header, folder)
    path = folder / "mutant.cu"
    path.write_text(whole.replace(text, instead))
    return path
