"""Text comes out as soon as its code points are complete, and the same as decoding everything at once."""

from __future__ import annotations

import random
import time

from tests.engine.text.tiny import tokenizer

from dsv4.engine.text import Detokenizer


def of_bytes(data: bytes) -> list[int]:
    tok = tokenizer()
    of_byte = {tok.token_bytes(i): i for i in range(tok.vocab_size) if len(tok.token_bytes(i)) == 1}
    return [of_byte[bytes([byte])] for byte in data]


def test_a_code_point_comes_with_its_last_byte() -> None:
    text = Detokenizer(tokenizer())
    assert [text.push([token_id]) for token_id in of_bytes("a世👩".encode())] == ["a", "", "", "世", "", "", "", "👩"]
    assert text.finish() == ""


def test_bytes_that_never_complete_are_replaced_at_the_end() -> None:
    text = Detokenizer(tokenizer())
    assert text.push(of_bytes("世".encode()[:2])) == ""
    assert text.finish() == "�"


def test_bytes_that_can_no_longer_complete_are_replaced_at_once() -> None:
    assert Detokenizer(tokenizer()).push(of_bytes(b"\xe4\xb8a\xff")) == "�a�"


def test_any_bytes_decode_as_all_at_once() -> None:
    seed = 11
    draw = random.Random(seed)
    alphabet = [0x61, 0x80, 0xBF, 0xC2, 0xE0, 0xED, 0xA0, 0xE4, 0xB8, 0xF0, 0x9F, 0xF4, 0x90, 0xFF]
    for turn in range(500):
        data = bytes(draw.choices(alphabet, k=draw.randint(1, 12)))
        text = Detokenizer(tokenizer())
        parts = [text.push([token_id]) for token_id in of_bytes(data)]
        assert "".join([*parts, text.finish()]) == data.decode("utf-8", "replace"), (
            f"seed {seed}, turn {turn}: {data!r}"
        )


def test_hidden_tokens_leave_no_text() -> None:
    tok = tokenizer()
    first, *rest = of_bytes("世".encode())
    text = Detokenizer(tok, hidden=frozenset([tok.eos_id]))
    assert text.push([first, tok.eos_id, *rest]) == "世"


def test_a_mark_ends_the_bytes_before_it() -> None:
    tok = tokenizer()
    text = Detokenizer(tok, marks={tok.think_id: "!"})
    assert text.push([*of_bytes(b"a\xe4"), tok.think_id, *of_bytes(b"b")]) == "a�!b"


def test_the_cost_of_a_token_does_not_grow_with_the_answer() -> None:
    """Symptom of the classic mistake: bytes that never become text are decoded again with every token."""
    [broken] = of_bytes(b"\x80")
    text = Detokenizer(tokenizer())

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(2000):
            text.push([broken])
        return time.perf_counter() - start

    first = min(seconds() for _ in range(3))
    for _ in range(20):
        text.push([broken] * 5000)
    assert min(seconds() for _ in range(3)) < 10 * first
