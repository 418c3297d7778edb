"""Prompts computed by one core and decoded by another, through the binding."""

from __future__ import annotations

import pytest
from tests.core.shapes import memory_of, small_core

from dsv4._core import Core, Errands, Message, Outcome, RoomEvent, StepDone, Tick, Transfer, replay_trace
from dsv4.errors import ConfigError, InvalidRequest, Misuse

PREFILL, DECODE = 0xA, 0xB
BLOCK = (7, 1)
REFUSALS = ("unknown", "closed", "prompt_mismatch", "busy")
REASONS = (
    "cancelled",
    "deadline",
    "peer_lost",
    "lease_expired",
    *(f"refused_{word}" for word in REFUSALS),
    "length_mismatch",
    "items_mismatch",
    "digest_mismatch",
    "tag_mismatch",
    "non_finite",
    "transfer_failed",
    "prompt_too_long",
    "room_dp_rank_mismatch",
)
MESSAGES = [
    Message("join", 5, 1, (600, 2**128 - 1)),
    Message("want", 5, 1),
    Message("offer", 5, 1, (600, 3, 1, 256, [BLOCK, (8, 0)], [BLOCK], BLOCK, BLOCK)),
    Message("chunk_done", 5, 1, (1, 2, 2**64 - 1)),
    Message("final", 5, 1, (3, 4)),
    Message("commit", 2**63 - 1),
    Message("abort_ack", 5, 1, (True,)),
    Message("beat", fields=(3, 2**64 - 1)),
    Message("rooms", fields=([(1, 0), (2, 5)],)),
    *(Message("refuse", 5, 1, (word,)) for word in REFUSALS),
    *(Message("abort", 5, 1, (word,)) for word in REASONS),
]


def roomy_core(side: str) -> Core:
    core = small_core()
    core.open_rooms(side, transport="in_process", max_rooms=100, max_bytes_in_flight=2**30)
    return core


@pytest.mark.parametrize("message", MESSAGES, ids=repr)
def test_a_message_is_made_again_from_its_parts(message: Message) -> None:
    assert Message(message.word, message.room, message.epoch, message.fields) == message


@pytest.mark.parametrize(
    ("word", "fields"),
    [
        ("hello", ()),
        ("want", (1,)),
        ("join", (1,)),
        ("join", (-1, 0)),
        ("join", (2**32, 0)),
        ("abort", ("tired",)),
        ("abort", (3,)),
        ("refuse", ("cancelled",)),
        ("offer", (600, 3, 1, 256, [7], [], BLOCK, BLOCK)),
        ("chunk_done", (1, 2, 2**64)),
        ("rooms", ([(1,)],)),
    ],
)
def test_a_message_that_cannot_be_is_refused(word: str, fields: tuple[object, ...]) -> None:
    with pytest.raises((ValueError, TypeError, OverflowError)):
        Message(word, 5, 0, fields)


def advance(core: Core, *events: RoomEvent | StepDone | Tick) -> Outcome:
    outcome = core.advance(events)
    core.audit()
    return outcome


def test_two_cores_serve_one_request() -> None:
    prefill, decode = roomy_core("prefill"), roomy_core("decode")
    prompt = list(range(300))
    asked = decode.submit(prompt, max_tokens=3, transfer=Transfer(room=5, peer=PREFILL))
    computed = prefill.submit(prompt, max_tokens=3, transfer=Transfer(room=5, peer=DECODE))
    tokens: list[int] = []
    ends: list[tuple[Core, int, int]] = []
    digest = 0
    memory = {id(core): memory_of(core) for core in (prefill, decode)}
    resets: list[str] = []
    waiting: list[tuple[Core, Outcome]] = [(core, advance(core)) for core in (decode, prefill)]
    for _ in range(200):
        while waiting:
            core, outcome = waiting.pop(0)
            mine, other = (PREFILL, decode) if core is prefill else (DECODE, prefill)
            for request, token, code in zip(outcome.request_ids, outcome.tokens, outcome.finished, strict=True):
                tokens += [token] if core is decode and token >= 0 else []
                ends += [(core, request, code)] if code else []
            errands: Errands = outcome.errands
            resets += [group for group, _ in errands.resets]
            for _, _, message in errands.messages:
                waiting.append((other, advance(other, RoomEvent.peer(mine, 0, message))))
            for posting in errands.postings:
                assert posting.key == (5, 0, DECODE)
                digest += 1
                waiting.append((core, advance(core, RoomEvent.ticket_ended(posting.ticket, True, 1))))
            for _, key, _ in errands.checks:
                event = RoomEvent.inspected(key, first_token=9, tag=key, digests=[digest])
                waiting.append((core, advance(core, event)))
        for core in (prefill, decode):
            plan = core.plan(memory[id(core)])
            if plan is not None:
                waiting.append((core, advance(core, StepDone(plan.step_id, [9] * plan.num_samples))))
        if len(ends) == 2:
            break
    assert tokens == [9, 9, 9]
    assert sorted(ends, key=lambda end: end[0] is prefill) == [(decode, asked, 2), (prefill, computed, 2)]
    assert sorted(resets) == ["aux", "state"]
    for core in (prefill, decode):
        stats = core.stats()
        assert all(stats[f"{group}_free"] == stats[f"{group}_capacity"] for group in ("full", "swa", "state", "aux"))


def test_rooms_are_refused_with_typed_errors() -> None:
    alone, decode = small_core(), roomy_core("decode")
    with pytest.raises(Misuse, match="no rooms"):
        alone.submit([1], max_tokens=1, transfer=Transfer(room=5, peer=PREFILL))
    decode.submit([1], max_tokens=1, transfer=Transfer(room=5, peer=PREFILL))
    with pytest.raises(InvalidRequest, match="in use") as refused:
        decode.submit([1], max_tokens=1, transfer=Transfer(room=5, peer=PREFILL))
    assert refused.value.param == "room"
    with pytest.raises(InvalidRequest, match="room"):
        decode.submit([1], max_tokens=1, transfer=Transfer(room=2**63, peer=PREFILL))
    for ranks in ((), (1, 1)):
        with pytest.raises(InvalidRequest, match="peer_ranks"):
            decode.submit([1], max_tokens=1, transfer=Transfer(room=6, peer=PREFILL, peer_ranks=ranks))
    with pytest.raises(ConfigError):
        decode.open_rooms("decode", transport="tcp", max_rooms=1, max_bytes_in_flight=1)
    with pytest.raises(ConfigError):
        alone.open_rooms("decode", transport="tcp", max_rooms=0, max_bytes_in_flight=1)
    for side, transport in (("both", "tcp"), ("decode", "pigeon")):
        with pytest.raises(ValueError, match="it is one of"):
            alone.open_rooms(side, transport=transport, max_rooms=1, max_bytes_in_flight=1)
    for make in (
        lambda: Transfer(room=-1, peer=1),
        lambda: Transfer(room=1, peer=2**128),
        lambda: Transfer(room=1, peer=1, on_failure="pray"),
        lambda: RoomEvent.fenced(1, "silence"),
    ):
        with pytest.raises((ValueError, OverflowError)):
            make()


def test_an_abort_before_the_other_side_heard_of_it_leaves_nothing() -> None:
    decode = roomy_core("decode")
    request = decode.submit([1, 2], max_tokens=1, transfer=Transfer(room=5, peer=PREFILL))
    assert "room 5" in decode.explain(request)
    assert decode.abort(request)
    assert [message.word for _, _, message in advance(decode).errands.messages] == ["join", "abort"]
    advance(decode, Tick(1))
    assert decode.stats()["num_rooms"] == 0


def test_a_rank_refuses_rooms_of_another_and_what_happens_in_rooms_replays() -> None:
    core = small_core()
    core.record()
    core.open_rooms("prefill", transport="tcp", max_rooms=8, max_bytes_in_flight=1 << 30, dp=(1, 2))
    other = Transfer(room=4, epoch=0, peer=9, peer_ranks=[])
    with pytest.raises(InvalidRequest, match="room 4 is for dp_rank 0 of 2, but dp_rank 1 was asked for"):
        core.submit([1, 2, 3], max_tokens=1, transfer=other)
    core.submit([1, 2, 3], max_tokens=1, transfer=Transfer(room=5, epoch=0, peer=9, peer_ranks=[]))
    core.advance([Tick(1_000_000)])
    core.shutdown()
    replay = replay_trace(core.take_trace())
    assert (replay.difference, replay.is_complete, replay.num_requests, replay.num_calls) == (None, True, 1, 5)


@pytest.mark.parametrize(("side", "dp"), [("prefill", (2, 2)), ("prefill", (0, 0)), ("decode", (0, 2))])
def test_a_rank_that_does_not_exist_is_a_config_error(side: str, dp: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="dp_rank"):
        small_core().open_rooms(side, transport="tcp", max_rooms=8, max_bytes_in_flight=1, dp=dp)
