"""The command line: one table, other engines' names, variables, and refusals that say what is allowed."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from dsv4.config.engine import EngineConfig
from dsv4.errors import ConfigError
from dsv4.serve.args import SETTINGS, check_binding, is_loopback, parse
from dsv4.serve.settings import ServeSettings


def test_nothing_said_is_the_demo_on_loopback() -> None:
    launch = parse([], {})
    assert launch.engine == EngineConfig(progress=True)
    assert launch.serve == ServeSettings()
    assert (launch.sources, launch.notes) == ({}, ())


def test_every_setting_sets_a_field_that_exists() -> None:
    engine = {item.name for item in fields(EngineConfig)}
    serve = {item.name for item in fields(ServeSettings)} | {"api_key_file", "dry_run", "json"}
    for setting in SETTINGS:
        assert setting.target == "serve" or setting.name in engine, setting.flag
        assert setting.target == "engine" or setting.name in serve, setting.flag


def test_every_field_of_the_engine_can_be_set_or_is_for_libraries() -> None:
    settable = {setting.name for setting in SETTINGS if setting.target != "serve"} | {"model"}
    assert {item.name for item in fields(EngineConfig)} - settable == {"progress", "max_output_queue_items"}


def test_flags_reach_their_fields() -> None:
    launch = parse(
        ["/models/v4", "--port", "9000", "--max-model-len=4096", "--kv-cache-memory-bytes", "2GiB", "--strict-fields",
         "--default-thinking", "off", "--shutdown-timeout", "5", "--api-key", "a", "--api-key", "b", "--seed", "-1"],
        {},
    )  # fmt: skip
    assert (launch.engine.model, launch.engine.max_model_len) == ("/models/v4", 4096)
    assert (launch.engine.kv_cache_memory_bytes, launch.engine.seed) == (2 << 30, -1)
    assert (launch.engine.default_thinking, launch.serve.default_thinking) == (False, False)
    assert (launch.serve.port, launch.serve.strict_fields, launch.serve.shutdown_timeout_s) == (9000, True, 5.0)
    assert launch.serve.api_keys == ("a", "b")
    assert launch.sources["port"] == "flag"


@pytest.mark.parametrize(
    ("argv", "variables", "is_on"),
    [
        ([], {}, True),
        (["--enable-prefix-caching"], {"DSV4_ENABLE_PREFIX_CACHING": "off"}, True),
        (["--no-enable-prefix-caching"], {}, False),
        (["--disable-radix-cache"], {}, False),
        ([], {"DSV4_ENABLE_PREFIX_CACHING": "off"}, False),
    ],
)
def test_the_prefix_cache_is_on_unless_it_is_switched_off(
    argv: list[str], variables: dict[str, str], is_on: bool
) -> None:
    assert parse(argv, variables).engine.enable_prefix_caching is is_on


def test_a_flag_wins_over_its_variable_and_a_variable_over_the_default() -> None:
    variables = {"DSV4_PORT": "1", "DSV4_MODEL": "there", "DSV4_MAX_NUM_SEQS": "7", "DSV4_STRICT_FIELDS": "off"}
    launch = parse(["--port", "2"], variables)
    assert (launch.serve.port, launch.engine.model, launch.engine.max_num_seqs) == (2, "there", 7)
    assert launch.sources == {"port": "flag", "model": "env", "max_num_seqs": "env", "strict_fields": "env"}


def test_other_engines_names_are_translated_and_noted_once() -> None:
    argv = ["--model-path", "m", "--context-length", "512", "--max-running-requests=3", "--chunked-prefill-size", "64",
            "--random-seed", "5", "--trust-remote-code", "--tool-call-parser", "x", "--reasoning-parser=y",
            "--kv-cache-dtype", "fp8"]  # fmt: skip
    launch = parse(argv, {})
    assert (launch.engine.model, launch.engine.max_model_len, launch.engine.max_num_seqs) == ("m", 512, 3)
    assert (launch.engine.max_num_batched_tokens, launch.engine.seed) == (64, 5)
    assert launch.engine.kv_cache_dtype == "fp8_ds_mla"
    assert launch.sources["max_model_len"] == "alias"
    assert "--context-length is --max-model-len here" in launch.notes
    assert sum("--trust-remote-code" in note for note in launch.notes) == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--max-model-length", "5"], ("--max-model-length", "did you mean --max-model-len")),
        (["--frobnicate"], ("--frobnicate",)),
        (["a", "b"], ("one model only", "'b'")),
        (["--port", "http"], ("--port", "'http'")),
        (["--port", "65536"], ("65536", "0 to 65535")),
        (["--dtype", "float8"], ("float8", "bfloat16")),
        (["--max-num-seqs", "0"], ("--max-num-seqs", "at least 1")),
        (["--kv-cache-memory-bytes", "much"], ("much", "1GiB")),
        (["--default-thinking", "maybe"], ("maybe", "on or off")),
        (["--shutdown-timeout", "nan"], ("nan", "seconds")),
        (["--api-key", " "], ("empty key",)),
        (["--host", "0.0.0.0"], ("0.0.0.0", "--api-key", "--insecure")),
        (["--api-key-file", "/nonexistent"], ("/nonexistent",)),
        (["--port"], ("--port",)),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_is_allowed(argv: list[str], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(argv, {})
    for word in words:
        assert word in str(caught.value)


def test_a_bad_variable_is_refused_by_its_own_name() -> None:
    with pytest.raises(ConfigError, match="DSV4_PORT: 'http'"):
        parse([], {"DSV4_PORT": "http"})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    check_binding(ServeSettings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_other_addresses_need_a_key_or_a_word(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigError):
        check_binding(ServeSettings(host=host))
    check_binding(ServeSettings(host=host, api_keys=("k",)))
    check_binding(ServeSettings(host=host, insecure=True))


def test_keys_come_from_a_file_one_per_line(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nalpha\n\n  beta \n")
    assert parse(["--api-key", "first", "--api-key-file", str(path)], {}).serve.api_keys == ("first", "alpha", "beta")
    path.write_text("# none\n")
    with pytest.raises(ConfigError, match="holds no key"):
        parse(["--api-key-file", str(path)], {})
