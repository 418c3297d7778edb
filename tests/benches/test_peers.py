"""The bench beside the peers: its arithmetic, its pipe, our own driver, and what it does without peers."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator

import pytest
from benches.peers import __main__ as bench
from benches.peers import drive_ours, drivers, load, notes
from benches.peers.drivers import Absent, Driver, Samples


def samples(**rounds: list[list[int]]) -> Samples:
    return Samples(dict(rounds))


@pytest.fixture(scope="module")
def ours() -> Iterator[Driver]:
    driver = drivers.start(sys.executable, "drive_ours")
    yield driver
    driver.close()


def test_a_ratio_is_of_rounds_that_ran_next_to_each_other() -> None:
    # The machine was three times slower in the second round, for both.
    measured = samples(dsv4=[[1000, 1000, 5000], [3000] * 3, [1000] * 3], peer=[[7000] * 3, [21_000] * 3, [7000] * 3])
    assert measured.ratio("peer", "dsv4") == 7.0
    assert measured.median_us("dsv4") == 1.0
    assert measured.p99_us("dsv4") == 5.0


def test_bars_are_judged_by_what_was_measured() -> None:
    step = load.step(512)
    measured = {step: samples(dsv4=[[51_000]], vLLM=[[5_099_000]]), load.MATCH: samples(dsv4=[[15_000]])}
    assert bench.verdicts(measured) == [
        f"{step}: 51.0 us, at most 50: MISSED",
        f"{load.MATCH}: 15.0 us, at most 15: met",
        f"{step}: vLLM takes 100 times ours, at least 100: MISSED",
    ]


def test_a_table_has_a_dash_where_an_engine_has_no_such_measurement() -> None:
    measured = {"a": samples(dsv4=[[2000]], peer=[[50_000]]), "b": samples(dsv4=[[2_000_000]])}
    assert notes.table(measured, ["dsv4", "peer"], "dsv4").splitlines()[2:] == [
        "| a | 2.0 / 2.0 | 50.0 / 50.0 (25 x) |",
        "| b | 2,000 / 2,000 | – |",
    ]


def test_prompts_are_the_same_in_every_process_and_different_for_every_number() -> None:
    assert load.tokens(3, 50) == load.tokens(3, 50)
    assert load.tokens(3, 50) != load.tokens(4, 50)
    assert all(0 <= token < load.VOCAB for token in load.tokens(5, 1000))


def test_our_driver_answers_by_the_pipe(ours: Driver) -> None:
    assert ours.about["engine"] == "dsv4"
    assert {load.step(size) for size in load.STEP_SIZES} <= set(ours.names)
    for name in (load.ADMIT, load.step(1), load.ADMIT):
        times = ours.round(name)
        assert len(times) == (load.STEPS_A_ROUND[1] if name == load.step(1) else load.OPERATIONS_A_ROUND)
        assert min(times) > 0


SMALL = [name for name in drive_ours.MEASUREMENTS if name not in map(load.step, (512, 2048, 8192))]


@pytest.mark.parametrize("name", SMALL)
def test_every_measurement_of_ours_does_what_it_says(name: str) -> None:
    # Each asserts what its plans hold: samples, cached tokens, chunk sizes.
    one_round = drive_ours.MEASUREMENTS[name]()
    assert len(one_round()) == len(one_round()) > 0


def test_an_interpreter_that_is_not_there_is_skipped_with_what_to_do(tmp_path: object) -> None:
    with pytest.raises(Absent, match=r"No such file or directory; benches/peers/install\.sh"):
        drivers.start(f"{tmp_path}/python", "drive_vllm")


@pytest.mark.parametrize(("module", "driver"), [("vllm", "drive_vllm"), ("sglang", "drive_sglang python")])
def test_an_interpreter_without_the_peer_is_skipped_with_what_it_lacks(module: str, driver: str) -> None:
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed here")
    with pytest.raises(Absent, match=f"No module named '{module}'; benches/peers/install"):
        drivers.start(sys.executable, driver)


def test_a_peer_that_ends_in_the_middle_is_left_out_and_the_others_go_on(
    ours: Driver, capsys: pytest.CaptureFixture[str]
) -> None:
    class Mortal(Driver):
        def round(self, name: str) -> list[int]:
            if name == load.ADMIT:
                raise Absent("its driver ended with status 1")
            return [10]

    running = {
        "dsv4": Driver({}, [load.step(1), load.ADMIT], ours.process),
        "peer": Mortal({}, [load.step(1), load.ADMIT], ours.process),
    }
    measured = drivers.interleave(running, 2)
    assert list(running) == ["dsv4"]
    assert set(measured[load.step(1)].rounds) == {"dsv4", "peer"}
    assert set(measured[load.ADMIT].rounds) == {"dsv4"}
    assert "skipped: peer from" in capsys.readouterr().out
