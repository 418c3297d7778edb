"""A recorded engine replays to the same plans and outcomes, and a damaged file says so."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.engine.gates import whole

from dsv4 import EngineConfig
from dsv4._core import replay_trace
from dsv4.engine.engine import AsyncEngine
from dsv4.engine.trace import main
from dsv4.errors import ConfigError, TraceError
from dsv4.types import SamplingParams

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


async def serve(config: EngineConfig) -> None:
    """The demo with three requests at once, one of them left early, and one that finds a prefix."""
    async with AsyncEngine.running(config) as engine:
        prompts = [[5, 6, 7] * 200, list(range(100, 130)), [5, 6, 7] * 150]
        streams = [await engine.open(prompt, GREEDY) for prompt in prompts]
        await asyncio.gather(*(whole(stream) for stream in streams[:2]))
        streams[2].leave()
        await whole(await engine.open(prompts[0], GREEDY))


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "demo.trace"
    config = EngineConfig(
        model="demo", max_model_len=1024, max_num_seqs=4, max_num_batched_tokens=256, record_trace=str(path), seed=3
    )
    asyncio.run(serve(config))
    return path


def test_a_recorded_engine_replays_to_the_same_plans_and_outcomes(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replay = replay_trace(trace.read_bytes())
    assert (replay.difference, replay.is_complete, replay.num_requests) == (None, True, 4)
    assert replay.num_steps > 12
    assert replay.num_tokens > 600 + 30
    assert main([str(trace)]) == 0
    assert f"{replay.num_steps} steps" in capsys.readouterr().out


@pytest.mark.parametrize("place", [0, 9, 20, 300, -1])
def test_one_flipped_byte_is_reported(trace: Path, tmp_path: Path, place: int) -> None:
    damaged = bytearray(trace.read_bytes())
    damaged[place] ^= 0x40
    with pytest.raises(TraceError):
        replay_trace(bytes(damaged))
    (tmp_path / "damaged").write_bytes(damaged)
    assert main([str(tmp_path / "damaged")]) == 2


def test_a_file_that_ends_early_is_reported_with_what_was_whole(trace: Path) -> None:
    with pytest.raises(TraceError, match=r"the \d+ calls before it are whole"):
        replay_trace(trace.read_bytes()[:-2])


def test_a_file_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    config = EngineConfig(model="demo", record_trace=str(tmp_path / "nowhere" / "x.trace"))
    with pytest.raises(ConfigError, match="No such file"):
        asyncio.run(serve(config))
