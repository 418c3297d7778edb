"""The command line of `python -m dsv4.serve`, as one table of settings.

Names are vLLM's; SGLang's are aliases, translated before parsing and reported once. Every flag has a DSV4_ variable;
the flag wins over the variable, the variable over the default.
"""

from __future__ import annotations

import argparse
import difflib
import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn

from dsv4.config.engine import EngineConfig
from dsv4.errors import ConfigError
from dsv4.serve.settings import ServeSettings

Source = Literal["flag", "env", "alias", "default"]

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"(\d+)\s*([kmgt]?)i?b?", re.IGNORECASE)
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def whole(text: str) -> int:
    """A count, at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError("must be at least 1")
    return number


def whole_or_zero(text: str) -> int:
    """A count, at least 0."""
    number = int(text)
    if number < 0:
        raise ValueError("must be at least 0")
    return number


def port_number(text: str) -> int:
    """A TCP port; 0 lets the system choose."""
    number = int(text)
    if not 0 <= number <= 65535:
        raise ValueError("must be from 0 to 65535")
    return number


def seconds(text: str) -> float:
    """A duration, at least 0."""
    number = float(text)
    if not 0 <= number < 1e9:
        raise ValueError("must be a number of seconds, at least 0")
    return number


def size(text: str) -> int:
    """Bytes, with or without a binary unit: 1073741824, 512M, 1GiB."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or int(match.group(1)) < 1:
        raise ValueError("must be a number of bytes such as 1073741824, 512M or 1GiB")
    return int(match.group(1)) * _UNITS[match.group(2).lower()]


def switch(text: str) -> bool:
    """A yes or a no."""
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise ValueError("must be on or off")


@dataclass(frozen=True, slots=True)
class Setting:
    """One flag: where it goes and how its text is read.

    target   "engine" (EngineConfig), "serve" (ServeSettings) or "both"
    bare     stands without a value and means "on"; its variable may also say "off"
    negated  on by default; "--no-..." stands without a value and means "off"
    secret   its value is never shown
    """

    flag: str
    target: Literal["engine", "serve", "both"]
    read: Callable[[str], Any] = str
    help: str = ""
    choices: tuple[str, ...] = ()
    field: str = ""
    repeatable: bool = False
    bare: bool = False
    negated: bool = False
    secret: bool = False

    @property
    def name(self) -> str:
        """The field that it sets."""
        return self.field or self.flag.removeprefix("--").replace("-", "_")

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return "DSV4_" + self.flag.removeprefix("--").replace("-", "_").upper()


SETTINGS: tuple[Setting, ...] = (
    Setting("--served-model-name", "engine", help="name that clients ask for; the model's own name by default"),
    Setting("--host", "serve", help="address to bind"),
    Setting("--port", "serve", port_number, "port to bind; 0 lets the system choose"),
    Setting("--tokenizer", "engine", help="directory of the tokenizer; the model's by default"),
    Setting("--load-format", "engine", help="where weights come from", choices=("auto", "safetensors", "dummy")),
    Setting("--device", "engine", help="what to compute on"),
    Setting("--dtype", "engine", help="activations", choices=("auto", "bfloat16", "float32")),
    Setting("--kv-cache-dtype", "engine", help="KV rows", choices=("auto", "fp8_ds_mla", "bf16", "float32")),
    Setting("--indexer-dtype", "engine", help="index rows", choices=("auto", "fp8", "fp4", "float32")),
    Setting("--max-model-len", "engine", whole, "most tokens of one request, prompt and output together"),
    Setting("--kv-cache-memory-bytes", "engine", size, "bytes for all KV pools together, such as 2GiB"),
    Setting("--max-num-seqs", "engine", whole, "most requests running at once"),
    Setting("--max-num-batched-tokens", "engine", whole, "token budget of one step"),
    Setting("--max-steps-in-flight", "engine", whole, "2: plan the next step while one runs; 1: after it"),
    Setting("--recipe", "engine", help="limits by device and load: a name, or the path of a .toml file"),
    Setting("--max-num-queued-reqs", "engine", whole_or_zero, "bound of the queue in requests"),
    Setting("--max-num-queued-tokens", "engine", whole_or_zero, "bound of the queue in tokens"),
    Setting(
        "--cuda-graphs",
        "engine",
        switch,
        "capture decode steps at start and replay them (the default on a GPU)",
        bare=True,
        negated=True,
    ),
    Setting(
        "--enable-prefix-caching",
        "engine",
        switch,
        "reuse the KV blocks of requests that began with the same tokens (the default)",
        bare=True,
        negated=True,
    ),
    Setting(
        "--prefix-cache-retention-interval",
        "engine",
        whole_or_zero,
        "tokens between places inside a prompt where others can start; 0: its end and forks only",
    ),
    Setting("--record-trace", "engine", help="file for everything that goes into the core, to be replayed later"),
    Setting("--seed", "engine", int, "seeds the draws of requests that bring no seed"),
    Setting("--default-thinking", "both", switch, "think when a request does not say (on, off)"),
    Setting(
        "--default-reasoning-effort",
        "both",
        help="effort when a request names none",
        choices=("auto", "low", "high", "max"),
    ),
    Setting("--allow-special-in-content", "engine", switch, "user text may become control tokens", bare=True),
    Setting("--stream-interval", "serve", whole, "tokens per frame of a stream after the first"),
    Setting(
        "--shutdown-timeout", "serve", seconds, "seconds that SIGTERM waits for requests", field="shutdown_timeout_s"
    ),
    Setting("--max-body-bytes", "serve", size, "largest request body"),
    Setting(
        "--api-key",
        "serve",
        help="key that clients must send; repeatable",
        field="api_keys",
        repeatable=True,
        secret=True,
    ),
    Setting("--api-key-file", "serve", help="file with one key per line", field="api_key_file"),
    Setting("--insecure", "serve", switch, "bind other addresses than loopback without a key", bare=True),
    Setting("--share-prefix-cache", "serve", switch, "keys may reuse each other's prefixes", bare=True),
    Setting(
        "--sse-keep-alive-interval",
        "serve",
        seconds,
        "seconds of silence before a comment line; 0 is off",
        field="keep_alive_interval_s",
    ),
    Setting("--strict-fields", "serve", switch, "refuse unknown request fields", bare=True),
    Setting("--max-logprobs", "serve", whole_or_zero, "most alternatives per token"),
    Setting("--dry-run", "serve", switch, "print what the configuration gives, and serve nothing", bare=True),
    Setting("--json", "serve", switch, "print it as a JSON object", bare=True),
    Setting("--log-level", "serve", help="what is logged", choices=("debug", "info", "warning", "error")),
)

ALIASES: Mapping[str, str] = {
    "--model": "MODEL",
    "--model-path": "MODEL",
    "--tokenizer-path": "--tokenizer",
    "--context-length": "--max-model-len",
    "--max-running-requests": "--max-num-seqs",
    "--chunked-prefill-size": "--max-num-batched-tokens",
    "--max-queued-requests": "--max-num-queued-reqs",
    "--random-seed": "--seed",
    "--disable-radix-cache": "--no-enable-prefix-caching",
}
"""Other engines' names; SGLang's, and vLLM's old name of the positional."""

VALUE_ALIASES: Mapping[tuple[str, str], str] = {
    ("--kv-cache-dtype", "fp8"): "fp8_ds_mla",
    ("--kv-cache-dtype", "fp8_e4m3"): "fp8_ds_mla",
    ("--kv-cache-dtype", "bfloat16"): "bf16",
}

WITHOUT_EFFECT: Mapping[str, bool] = {
    "--trust-remote-code": False,
    "--tokenizer-mode": True,
    "--tool-call-parser": True,
    "--reasoning-parser": True,
    "--enable-auto-tool-choice": False,
    "--enable-metrics": False,
}
"""Flags of other engines that are taken and do nothing here; whether they bring a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What a command line means.

    sources   where each setting that is not a default came from
    notes     what to tell the user: aliases translated, flags without effect
    dry_run   print what the configuration gives and serve nothing; `json`: as an object
    """

    engine: EngineConfig
    serve: ServeSettings
    sources: Mapping[str, Source] = field(default_factory=dict)
    notes: Sequence[str] = ()
    dry_run: bool = False
    json: bool = False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def parse(argv: Sequence[str], variables: Mapping[str, str]) -> Launch:
    """Reads a command line. Raises ConfigError with the flag, the value and what is allowed."""
    notes: list[str] = []
    translated, aliased = _translate(argv, notes)
    known, unknown = _parser().parse_known_args(translated)
    if unknown:
        raise ConfigError(_unknown(unknown[0]))
    texts = {name: value for name, value in vars(known).items() if value is not None}
    sources: dict[str, Source] = dict.fromkeys(texts, "flag")
    sources.update(dict.fromkeys(aliased & set(texts), "alias"))
    by_name = {setting.name: setting for setting in SETTINGS}
    for setting in SETTINGS:
        text = variables.get(setting.variable)
        if text is not None and setting.name not in texts:
            texts[setting.name] = text.split(",") if setting.repeatable else text
            sources[setting.name] = "env"
    if "DSV4_MODEL" in variables and "model" not in texts:
        texts["model"], sources["model"] = variables["DSV4_MODEL"], "env"
    values = {name: _read(by_name.get(name), text, sources[name]) for name, text in texts.items()}
    return _build(values, by_name, sources, notes)


def _translate(argv: Sequence[str], notes: list[str]) -> tuple[list[str], set[str]]:
    """Other engines' spellings into ours, each reported once."""
    translated: list[str] = []
    aliased: set[str] = set()
    tokens = iter(argv)
    for token in tokens:
        flag, equals, value = token.partition("=")
        if flag in WITHOUT_EFFECT:
            if WITHOUT_EFFECT[flag] and not equals:
                next(tokens, None)
            _note(notes, f"{flag} has no effect here: dsv4 decides this from the checkpoint")
        elif flag in ALIASES:
            ours = ALIASES[flag]
            _note(notes, f"{flag} is {ours} here")
            aliased.add("model" if ours == "MODEL" else ours.removeprefix("--").removeprefix("no-").replace("-", "_"))
            if ours != "MODEL":
                translated.append(ours + equals + value)
            elif equals:
                translated.append(value)
        elif (flag, value) in VALUE_ALIASES:
            translated.append(f"{flag}={VALUE_ALIASES[flag, value]}")
        else:
            previous = translated[-1] if translated else ""
            translated.append(VALUE_ALIASES.get((previous, token), token))
    return translated, aliased


def _note(notes: list[str], text: str) -> None:
    if text not in notes:
        notes.append(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m dsv4.serve",
        description="Serve a DeepSeek-V4 checkpoint over an OpenAI-compatible HTTP API.",
        epilog="Every flag has an environment variable: --max-num-seqs is DSV4_MAX_NUM_SEQS.",
        allow_abbrev=False,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a checkpoint's directory, or demo (the default)")
    for setting in SETTINGS:
        described = setting.help + (f" ({', '.join(setting.choices)})" if setting.choices else "")
        parser.add_argument(
            setting.flag,
            dest=setting.name,
            help=described,
            **_argument_form(setting),
        )
        if setting.negated:
            parser.add_argument("--no-" + setting.flag[2:], dest=setting.name, action="store_const", const="off")
    return parser


def _argument_form(setting: Setting) -> dict[str, Any]:
    if setting.bare:
        return {"action": "store_const", "const": "on"}
    return {"action": "append" if setting.repeatable else "store", "metavar": "X"}


def _unknown(token: str) -> str:
    if not token.startswith("-"):
        return f"one model only: {token!r} is left over"
    flag = token.partition("=")[0]
    ours = [setting.flag for setting in SETTINGS]
    ours += (
        ["--no-" + setting.flag[2:] for setting in SETTINGS if setting.negated] + list(ALIASES) + list(WITHOUT_EFFECT)
    )
    nearest = difflib.get_close_matches(flag, ours, n=1, cutoff=0.7)
    hint = f"; did you mean {nearest[0]}?" if nearest else "; see --help"
    return f"unknown flag {flag}{hint}"


def _read(setting: Setting | None, text: str | list[str], source: Source) -> object:
    if setting is None:
        return text
    if isinstance(text, list):
        return tuple(text)
    name = setting.variable if source == "env" else setting.flag
    if setting.choices and text not in setting.choices:
        raise ConfigError(f"{name}: {text!r} is not one of {', '.join(setting.choices)}")
    try:
        return setting.read(text)
    except ValueError as error:
        raise ConfigError(f"{name}: {text!r} is not accepted: {error}") from None


def _build(
    values: dict[str, object], by_name: Mapping[str, Setting], sources: Mapping[str, Source], notes: Sequence[str]
) -> Launch:
    key_file = values.pop("api_key_file", None)
    given = values.pop("api_keys", ())
    keys = tuple(map(str, given)) if isinstance(given, tuple) else ()
    if key_file is not None:
        keys += _keys_in(Path(str(key_file)))
    if any(not key.strip() for key in keys):
        raise ConfigError("--api-key: an empty key would let everybody in")
    dry_run, as_json = bool(values.pop("dry_run", False)), bool(values.pop("json", False))
    if as_json and not dry_run:
        raise ConfigError("--json is the form of what --dry-run prints; give both")
    targets = {name: setting.target for name, setting in by_name.items()} | {"model": "engine"}
    engine = {name: value for name, value in values.items() if targets[name] in ("engine", "both")}
    serve = {name: value for name, value in values.items() if targets[name] in ("serve", "both")}
    launch = Launch(
        engine=EngineConfig(progress=True, **engine),  # type: ignore[arg-type]
        serve=ServeSettings(api_keys=keys, **serve),  # type: ignore[arg-type]
        sources=dict(sources),
        notes=tuple(notes),
        dry_run=dry_run,
        json=as_json,
    )
    check_binding(launch.serve)
    return launch


def _keys_in(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file: {path} cannot be read: {error}") from None
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"--api-key-file: {path} holds no key; write one per line")
    return keys


def check_binding(settings: ServeSettings) -> None:
    """Refuses to open the server to other machines without a key. Raises ConfigError."""
    if settings.api_keys or settings.insecure or is_loopback(settings.host):
        return
    raise ConfigError(
        f"--host {settings.host} lets other machines in, and no key is set; "
        "give --api-key or --api-key-file, or --insecure if that is meant"
    )


def is_loopback(host: str) -> bool:
    """Whether an address is only reachable from this machine; names other than localhost count as not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def field_names() -> frozenset[str]:
    """Every field that a setting may set: what a test compares the table with."""
    return frozenset(item.name for cls in (EngineConfig, ServeSettings) for item in fields(cls))
