"""Text to ids and back: exact bytes, control tokens only on request, clear words for damaged files."""

from __future__ import annotations

import json
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.engine.text.tiny import PAD, description, official, tokenizer

from dsv4.engine.text import Tokenizer
from dsv4.engine.text.prompt import BOS, DSML, EOS, THINK
from dsv4.errors import CheckpointError, InvalidRequest

DEMO = Path(__file__).parents[3] / "python" / "dsv4" / "demo"
TEXTS = [
    "",
    "Hello, world!",
    " \n\n  x ",
    "世界 é\u0301 12345678",
    "\x00\x7f\xa0\xad\ufeff",
    "👩‍👩‍👧 \u2028",
    "a" * 5000,
]


def load(
    directory: Path, tokenizer_json: object = None, config: object = None, vocab_size: int | None = None
) -> Tokenizer:
    """A tokenizer from files with these contents; None writes the tiny one's, and no config."""
    data = description() if tokenizer_json is None else tokenizer_json
    (directory / "tokenizer.json").write_text(data if isinstance(data, str) else json.dumps(data))
    if config is not None:
        (directory / "tokenizer_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return Tokenizer.load(directory, vocab_size=vocab_size)


def changed(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(description())
    return found | changes


@pytest.mark.parametrize("text", TEXTS)
def test_plain_text_is_encoded_as_the_library_does(text: str) -> None:
    want = official().encode(text, add_special_tokens=False).ids
    assert tokenizer().encode(text) == want
    assert tokenizer().encode(text, control=True) == want
    assert tokenizer().decode(want) == text


def test_random_text_comes_back() -> None:
    draw = random.Random(7)
    for turn in range(200):
        text = "".join(
            chr(
                draw.choice(
                    [draw.randrange(0x20, 0x7F), draw.randrange(0xA0, 0xD800), draw.randrange(0xE000, 0x110000)]
                )
            )
            for _ in range(draw.randint(0, 40))
        )
        ids = tokenizer().encode(text)
        assert tokenizer().decode(ids) == text, f"seed 7, turn {turn}"
        assert ids == official().encode(text, add_special_tokens=False).ids, f"seed 7, turn {turn}"


def test_control_strings_become_tokens_only_on_request() -> None:
    tok = tokenizer()
    text = f"a{EOS}{THINK}b{DSML}c"
    assert tok.control_ids.isdisjoint(tok.encode(text))
    assert tok.decode(tok.encode(text)) == text
    matched = tok.encode(text, control=True)
    assert matched == official().encode(text, add_special_tokens=False).ids
    assert [i for i in matched if i in tok.control_ids] == [tok.eos_id, tok.think_id, tok.dsml_id]
    assert tok.decode(matched) == text


def test_bytes_of_tokens_are_exact() -> None:
    tok = tokenizer()
    text = "世x"
    assert b"".join(map(tok.token_bytes, tok.encode(text))) == text.encode()
    single = {tok.token_bytes(i) for i in range(tok.vocab_size) if len(tok.token_bytes(i)) == 1}
    assert single == {bytes([byte]) for byte in range(256)}
    assert tok.token_bytes(tok.eos_id) == EOS.encode()


def test_broken_bytes_are_replaced() -> None:
    tok = tokenizer()
    of_byte = {tok.token_bytes(i): i for i in range(tok.vocab_size)}
    assert tok.decode([of_byte[b"\xe4"], of_byte[b"\xb8"], of_byte[b"a"]]) == "�a"


def test_only_flagged_tokens_are_skipped_in_raw_text() -> None:
    tok = tokenizer()
    ids = [tok.bos_id, *tok.encode("a"), tok.think_id, tok.eos_id]
    assert tok.decode(ids) == f"{BOS}a{THINK}{EOS}"
    assert tok.decode(ids, skip_special_tokens=True) == f"a{THINK}"
    assert tok.special_ids == {tok.bos_id, tok.eos_id, tok.control_id(PAD)}
    assert tok.special_ids < tok.control_ids


def test_rows_without_a_token_are_empty_and_other_ids_are_refused(tmp_path: Path) -> None:
    tok = load(tmp_path, vocab_size=1000)
    assert tok.vocab_size == 1000
    assert tok.token_bytes(999) == b""
    assert tok.decode([999]) == ""
    for token_id in (-1, 1000, 1 << 70):
        with pytest.raises(InvalidRequest, match="0 to 999"):
            tok.decode([token_id])


def test_a_lone_surrogate_is_refused_with_its_place() -> None:
    with pytest.raises(InvalidRequest, match=r"U\+D83D at character 2"):
        tokenizer().encode("ab\ud83d")


@pytest.mark.parametrize("text", [" " * 300_000 + "x", "a" * 300_000, "世" * 100_000, "7" * 300_000, "\n " * 100_000])
def test_long_monotonous_text_is_encoded(text: str) -> None:
    assert tokenizer().decode(tokenizer().encode(text)) == text


def test_encoding_lets_other_threads_run() -> None:
    stop = threading.Event()
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while not stop.is_set():
            ticks += 1

    other = threading.Thread(target=tick)
    other.start()
    try:
        text = "Hello, world! " * 80_000
        before = ticks
        tokenizer().encode(text)
        during = ticks - before
    finally:
        stop.set()
        other.join()
    # A call that kept the interpreter would let the other thread have a few slices of 5 ms at best.
    assert during > 200_000


def test_many_threads_get_the_same_ids() -> None:
    text = "Hello, world! 世界 " * 50
    want = tokenizer().encode(text)
    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append(tokenizer().encode(text))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [want] * 8


def test_truncation_and_padding_of_the_file_are_not_applied(tmp_path: Path) -> None:
    tok = load(
        tmp_path,
        changed(truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}),
    )
    assert len(tok.encode("Hello, world! " * 10)) > 4


@pytest.mark.parametrize("config", [None, {}, {"bos_token": BOS, "eos_token": {"content": EOS}}, {"eos_token": None}])
def test_names_of_the_ends_of_sequence(tmp_path: Path, config: object) -> None:
    tok = load(tmp_path, config=config)
    assert (tok.bos_id, tok.eos_id) == (0, 1)


@pytest.mark.parametrize(
    ("tokenizer_json", "config", "vocab_size", "words"),
    [
        ("{", None, None, "is not JSON"),
        ("{}", None, None, "added_tokens"),
        ("[]", None, None, "not an object"),
        ({"added_tokens": []}, None, None, "is not a tokenizer"),
        ({"added_tokens": [{"id": "x", "content": "y"}]}, None, None, "added_tokens"),
        (None, None, 100, "the model has 100 rows"),
        (None, {"eos_token": "</s>"}, None, "eos_token '</s>'"),
        (None, {"bos_token": 5}, None, "bos_token 5"),
        (None, "{", None, "is not JSON"),
    ],
)
def test_damaged_files_are_named(
    tmp_path: Path, tokenizer_json: object, config: object, vocab_size: int | None, words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path, tokenizer_json, config, vocab_size)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    found = changed()
    found["added_tokens"] = [token for token in found["added_tokens"] if token["content"] != DSML]
    with pytest.raises(CheckpointError, match="｜DSML｜"):
        load(tmp_path, found)


def test_the_demos_tokenizer_loads() -> None:
    rows = json.loads((DEMO / "config.json").read_text())["vocab_size"]
    tok = Tokenizer.load(DEMO, vocab_size=rows)
    text = f"Hello, world! 世界\n\n<{DSML}x"
    assert tok.decode(tok.encode(text)) == text
    assert tok.vocab_size == rows


@pytest.mark.skipif(
    "DSV4_TEST_TOKENIZER" not in os.environ, reason="needs a directory with the official tokenizer.json"
)
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("The capital of France is", [671, 6102, 294, 8760, 344]),
        ("Hello, world!", [19923, 14, 2058, 3]),
        ("1234567890", [6895, 18009, 25744, 18]),
        ("hello world  ", [33310, 2058, 262]),
        (f"<{DSML}", [30, 128825]),
    ],
)
def test_official_ids(text: str, ids: list[int]) -> None:
    tok = Tokenizer.load(Path(os.environ["DSV4_TEST_TOKENIZER"]), vocab_size=129_280)
    assert tok.encode(text, control=True) == ids
    assert tok.decode(ids) == text


def test_text_that_cannot_fit_is_refused_by_its_bytes_before_it_is_encoded() -> None:
    found = tokenizer()
    longest = max(len(found.token_bytes(token_id)) for token_id in range(found.vocab_size))
    found.check_length(100 * longest, max_model_len=101)
    with pytest.raises(InvalidRequest, match=f"{100 * longest + 1} bytes, which are at least 101 tokens") as caught:
        found.check_length(100 * longest + 1, max_model_len=101)
    assert caught.value.code == "context_length_exceeded"


def test_a_panic_inside_the_library_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        pass

    class Panicking:
        def encode_batch_fast(self, texts: list[str], *, add_special_tokens: bool) -> None:
            raise PanicException("retry-limit-in-match over")

    found = tokenizer()
    monkeypatch.setattr(found, "_plain", Panicking())
    with pytest.raises(InvalidRequest, match="gave up on a text of 3 characters"):
        found.encode("   ")
