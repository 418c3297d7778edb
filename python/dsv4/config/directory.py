"""A model directory: where a name leads, and its JSON files read without trusting them."""

from __future__ import annotations

import difflib
import json
import stat
from pathlib import Path
from typing import NoReturn

from dsv4.config.fields import shown
from dsv4.errors import CheckpointError

DEMO = Path(__file__).parents[1] / "demo"
MAX_JSON_BYTES = 256 << 20  # the index of the largest released checkpoint is 13 MB


def resolve_model(name: str) -> Path:
    """The directory that `name` means: "demo" is the checkpoint inside the package, anything else is a path.

    Raises CheckpointError when it is no directory with a config.json, and says what is near it.
    """
    try:
        path = DEMO if name == "demo" else Path(name).expanduser()
        if not path.is_dir():
            found = "is a file, not a directory" if path.exists() else "does not exist"
            raise CheckpointError(f"model directory {shown(str(path))} {found}{_nearby(path)}")
        if not (path / "config.json").is_file():
            raise CheckpointError(f"model directory {shown(str(path))} has no config.json{_inside(path)}")
    except (OSError, RuntimeError) as error:  # RuntimeError: a home directory that cannot be found
        raise CheckpointError(f"model directory {shown(name)} cannot be read: {error}") from error
    return path


def _nearby(path: Path) -> str:
    if not path.parent.is_dir():
        return "; a model is a directory in the official format, or `demo`"
    names = sorted(entry.name for entry in path.parent.iterdir() if (entry / "config.json").is_file())
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f"; beside it: {', '.join(close)}" if close else "; a model is a directory in the official format, or `demo`"


def _inside(path: Path) -> str:
    names = sorted(entry.parent.name for entry in path.glob("*/config.json"))
    return f"; did you mean one of its folders: {', '.join(names[:5])}?" if names else ""


def within(directory: Path, path: Path) -> Path:
    """`path` with links followed, a regular file that the checkpoint may name; otherwise CheckpointError.

    Links may stay inside the directory, or lead to the blobs of a hub cache (models--x/snapshots/y -> models--x/blobs),
    whose snapshots are nothing but such links.
    """
    try:
        real, home = path.resolve(strict=True), directory.resolve(strict=True)
        regular = stat.S_ISREG(real.stat().st_mode)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    homes = [home]
    if home.parent.name == "snapshots":
        homes.append(home.parents[1] / "blobs")
    if not any(real.is_relative_to(allowed) for allowed in homes):
        raise CheckpointError(f"{path} leads to {real}, outside the model directory {directory}")
    if not regular:
        raise CheckpointError(f"{path} is not a regular file")
    return real


def read_json(directory: Path, name: str) -> dict[str, object]:
    """The object in one JSON file of the directory; CheckpointError when it is anything else."""
    path = within(directory, directory / name)
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise CheckpointError(f"{directory / name} has {size} bytes; at most {MAX_JSON_BYTES} are read")
    return parse_json(path.read_bytes(), str(directory / name))


def parse_json(data: bytes, where: str) -> dict[str, object]:
    """The JSON object in `data`: UTF-8, no key twice, no NaN or Infinity. CheckpointError names `where`."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            names = [key for key, _ in pairs]
            twice = next(key for key in names if names.count(key) > 1)
            raise CheckpointError(f"{where} has the key {twice!r} twice")
        return keys

    def constant(word: str) -> NoReturn:
        raise CheckpointError(f"{where} contains {word}, which is not JSON")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where} is not UTF-8: {error}") from error
    except RecursionError as error:
        raise CheckpointError(f"{where} is nested too deeply to be a checkpoint's JSON") from error
    except ValueError as error:
        raise CheckpointError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} holds a JSON {type(value).__name__}, not an object")
    return value
